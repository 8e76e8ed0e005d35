#include "moving.h"

#include <algorithm>

#include "../cpu/vectors.h"
#include "depthwise.h"
#include "window.h"

namespace tandem::cpu {

namespace {

// Moves of an input pixel and one K-block of a group: those that rose, then those that fell.
struct Segment {
  int32_t begin, falling, end;
};

// The weights of a tap for a segment: those of its channel c begin at row `first` + c of a tile.
struct TapRows {
  Segment moves;
  int64_t first;
};

template <int L>
TANDEM_INLINE Int<float, L> load_integers(const int32_t* p) {
  return load<Int<float, L>>(p);
}
template <int L>
TANDEM_INLINE Int<float, L> load_integers(const int8_t* p) {
  return convert<int32_t, int8_t, L>(load<typename Simd<int8_t, L>::type>(p));
}

// An input moves by one, so the change of a sum is a sum of weights with signs, which fits int32 (unit.h).
template <int L, int S, class E>
TANDEM_INLINE void add_rows_of(const E* weights, const std::vector<TapRows>& taps, const int32_t* channels,
                               double* sums) {
  Int<float, L> change[S] = {};
  for (const TapRows& tap : taps) {
    const E* rows = weights + tap.first * (L * S);
    for (int32_t i = tap.moves.begin; i < tap.moves.falling; ++i) {
      const E* row = rows + channels[i] * int64_t{L * S};
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) change[s] += load_integers<L>(row + s * L);
    }
    for (int32_t i = tap.moves.falling; i < tap.moves.end; ++i) {
      const E* row = rows + channels[i] * int64_t{L * S};
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) change[s] -= load_integers<L>(row + s * L);
    }
  }
  int32_t all[L * S];
  std::memcpy(all, change, sizeof(all));
  for (int i = 0; i < L * S; ++i) sums[i] += static_cast<double>(all[i]);
}

template <int L>
TANDEM_INLINE void add_rows_body(const Tile& tile, const std::vector<TapRows>& taps, const int32_t* channels,
                                 double* sums) {
  constexpr int S = kLanes / L;
  if (tile.bytes) {
    const auto* weights = static_cast<const int8_t*>(tile.weights);
    return tile.registers == 1 ? add_rows_of<L, S>(weights, taps, channels, sums)
                               : add_rows_of<L, 2 * S>(weights, taps, channels, sums);
  }
  const auto* weights = static_cast<const int32_t*>(tile.weights);
  tile.registers == 1 ? add_rows_of<L, S>(weights, taps, channels, sums)
                      : add_rows_of<L, 2 * S>(weights, taps, channels, sums);
}
TANDEM_CPU_LANES_KERNEL(add_rows,
                        (const Tile& tile, const std::vector<TapRows>& taps, const int32_t* channels, double* sums),
                        (tile, taps, channels, sums))

Layer packed(Layer layer) {
  layer.geometry = packed_geometry(layer.geometry);
  return layer;
}

Prepared prepared_of(const Layer& layer) {
  if (layer.prepared == nullptr) return Prepared(Tiling(layer.geometry));
  return Prepared(layer, true, false, serial_for);
}

}  // namespace

// The moves of a step by segments.
struct MovingSums::Gathering {
  std::vector<Segment> segments;      // by pixel, group and K-block; those without moves are empty
  std::vector<int64_t> filled;        // the others
  std::vector<int32_t> channels;      // of the moves, within their K-block
  mutable std::vector<TapRows> taps;  // of the output pixel that is being added to
};

MovingSums::MovingSums(const Layer& layer, int64_t image_height, int64_t image_width)
    : layer_(layer),
      packed_(packed(layer)),
      prepared_(prepared_of(packed_)),
      image_height_(image_height),
      image_width_(image_width),
      width_(prepared_.tiling().width()),
      rows_(layer.geometry.out_height() * layer.geometry.out_width()) {}

int64_t MovingSums::size(int64_t outputs, int64_t groups, int64_t rows) {
  const int64_t each = outputs / groups, widest = each > kLanes ? 2 * kLanes : kLanes;
  return groups * ((each + widest - 1) / widest * widest) * rows;
}

Tile MovingSums::tile(int64_t number, int64_t rows, int64_t first_row) const {
  static const SpikeLists no_lists;
  static const std::vector<float> ones(2 * kLanes, 1.f);
  const int64_t per_group = prepared_.tiling().tiles_per_group;
  if (packed_.prepared == nullptr) {
    const int64_t first = number * width_, channels = std::min(width_, layer_.geometry.outputs - first);
    return {no_lists, rows, first_row, 1, prepared_.tiling().registers, false, nullptr, ones.data(), first, channels};
  }
  return prepared_.tile(packed_, number / per_group, number % per_group, 0, no_lists, rows, first_row);
}

template <class F>
void MovingSums::for_rows(int64_t pixel, const F& f) const {
  const Geometry& g = layer_.geometry;
  const int64_t width = g.out_width();
  for_readers(g, 0, pixel / image_width_, g.out_height(), [&](int64_t ky, int64_t y) {
    for_readers(g, 1, pixel % image_width_, width,
                [&](int64_t kx, int64_t x) { f(ky * g.kernel[1] + kx, y * width + x); });
  });
}

int64_t MovingSums::gather(const Moves& moves, uint8_t* reached, Gathering& to) const {
  const Geometry& g = layer_.geometry;
  const Tiling& tiling = prepared_.tiling();
  const int64_t channels = g.group_channels(), block = tiling.block_channels, count = moves.size();
  const auto segments = static_cast<size_t>(image_height_ * image_width_ * g.groups * tiling.blocks);
  if (to.segments.size() < segments) to.segments.resize(segments);
  to.channels.resize(count);
  int64_t synapses = 0, pixel = -1, taps = 0;
  for (int64_t begin = 0, end = 0; begin < count; begin = end) {
    const int64_t n = neuron_of(moves[begin]), group = n / channels, q = n % channels / block;
    const int64_t first = group * channels + q * block, last = std::min(first + block, (group + 1) * channels);
    while (end < count && neuron_of(moves[end]) < last) ++end;
    int32_t rising = static_cast<int32_t>(begin), falling = static_cast<int32_t>(end);
    for (int64_t i = begin; i < end; ++i) {
      const auto c = static_cast<int32_t>(neuron_of(moves[i]) - first);
      to.channels[moves[i] < 0 ? --falling : rising++] = c;
    }
    const int64_t number = group * tiling.blocks + q;
    to.segments[number] = {static_cast<int32_t>(begin), falling, static_cast<int32_t>(end)};
    to.filled.push_back(number);
    if (group / g.groups != pixel) {
      pixel = group / g.groups;
      taps = 0;
      for_rows(pixel, [&](int64_t, int64_t row) { reached[row] |= 1, ++taps; });
    }
    synapses += (end - begin) * taps * g.group_outputs();
  }
  return synapses;
}

void MovingSums::add_to_row(const Gathering& from, int64_t row, double* sums) const {
  const Geometry& g = layer_.geometry;
  const Tiling& tiling = prepared_.tiling();
  const int64_t top = row / g.out_width() * g.stride[0] - g.padding[0];
  const int64_t left = row % g.out_width() * g.stride[1] - g.padding[1];
  for (int64_t group = 0; group < g.groups; ++group) {
    from.taps.clear();
    for (int64_t tap = 0; tap < g.taps(); ++tap) {
      const int64_t y = top + tap / g.kernel[1] * g.dilation[0], x = left + tap % g.kernel[1] * g.dilation[1];
      if (y < 0 || y >= image_height_ || x < 0 || x >= image_width_) continue;
      const Segment* segment = &from.segments[((y * image_width_ + x) * g.groups + group) * tiling.blocks];
      for (int64_t q = 0; q < tiling.blocks; ++q, ++segment) {
        if (segment->begin == segment->end) continue;
        const int64_t step = tiling.last_channel(g, q) - tiling.first_channel(q);
        from.taps.push_back({*segment, tiling.block_offset(g, q) / width_ + tap * step});
      }
    }
    if (from.taps.empty()) continue;
    for (int64_t i = group * tiling.tiles_per_group; i < (group + 1) * tiling.tiles_per_group; ++i) {
      add_rows(tile(i, 0, 0), from.taps, from.channels.data(), sums + (i * rows_ + row) * width_);
    }
  }
}

int64_t MovingSums::add_by_channel(const Moves& moves, double* sums, uint8_t* reached) const {
  const int64_t channels = layer_.geometry.channels, each = layer_.geometry.outputs / channels;
  const bool ones = packed_.prepared == nullptr;
  int64_t synapses = 0;
  for (const int32_t move : moves) {
    const int64_t pixel = neuron_of(move) / channels, first = neuron_of(move) % channels * each;
    for_rows(pixel, [&](int64_t tap, int64_t row) {
      reached[row] |= 1;
      synapses += each;
      for (int64_t output = first; output < first + each; ++output) {
        const int64_t number = output / width_, lane = output % width_;
        const auto* weights = ones ? nullptr : static_cast<const int32_t*>(tile(number, 0, 0).weights);
        const double weight = ones ? 1 : weights[tap * width_ + lane];
        sums[(number * rows_ + row) * width_ + lane] += move < 0 ? -weight : weight;
      }
    });
  }
  return synapses;
}

int64_t MovingSums::add(const Moves& moves, double* sums, uint8_t* reached) const {
  thread_local Gathering gathering;
  if (moves.size() == 0) return 0;
  if (is_depthwise(layer_.geometry) || packed_.prepared == nullptr) return add_by_channel(moves, sums, reached);
  Gathering& gathered = gathering;
  const int64_t synapses = gather(moves, reached, gathered);
  for (int64_t row = 0; row < rows_; ++row) {
    if ((reached[row] & 1) != 0) add_to_row(gathered, row, sums);
  }
  for (const int64_t number : gathered.filled) gathered.segments[number] = {};
  gathered.filled.clear();
  return synapses;
}

void MovingSums::fire(const double* sums, int64_t first_row, int64_t rows, const Neuron<float>& neuron) const {
  const int64_t tiles = packed_.geometry.groups * prepared_.tiling().tiles_per_group;
  for (int64_t i = 0; i < tiles; ++i) {
    fire_sums(tile(i, rows, first_row), sums + (i * rows_ + first_row) * width_, neuron, nullptr);
  }
}

}  // namespace tandem::cpu
