#include "moving.h"

#include <algorithm>
#include <vector>

#include "../cpu/vectors.h"
#include "tile.h"

namespace tandem::cpu {

namespace {

template <int L>
TANDEM_INLINE Int<L> load_integers(const int32_t* p) {
  return load<Int<L>>(p);
}
template <int L>
TANDEM_INLINE Int<L> load_integers(const int8_t* p) {
  return convert<int32_t, int8_t, L>(load<typename Simd<int8_t, L>::type>(p));
}

// Adds the weights of inputs that moved to the sums of N tiles, S vectors each. The weights of neuron `first` begin at
// `rows` in the first tile; `tile` and `next` are the distances to the next tile's weights and sums.
template <int L, int S, int N, class E>
TANDEM_INLINE void add_weights(const E* rows, int64_t tile, int32_t first, const int32_t* move, const int32_t* end,
                               int32_t* sums, int64_t next) {
  typedef typename Simd<uint32_t, L>::type Words;  // which wrap
  Words sum[N * S];
#pragma GCC unroll 8
  for (int k = 0; k < N * S; ++k) sum[k] = load<Words>(sums + k / S * next + k % S * L);
  uint32_t falls = 0;
  for (; move < end; ++move) {
    const int32_t sign = sign_of(*move);
    const E* row = rows + (neuron_of(*move) - first) * int64_t{L * S};
#pragma GCC unroll 8
    for (int k = 0; k < N * S; ++k) {
      sum[k] += reinterpret_cast<Words>(load_integers<L>(row + k / S * tile + k % S * L) ^ sign);
    }
    falls -= sign;  // -w = ~w + 1
  }
#pragma GCC unroll 8
  for (int k = 0; k < N * S; ++k) store(sums + k / S * next + k % S * L, sum[k] + falls);
}

// An input moves by one, so a change is a sum of weights with signs, which fits int32 (weights/unit.h).
TANDEM_CPU_KERNEL(take_changes, (int32_t* changes, double* sums, int64_t n), (changes, sums, n)) {
  for (int64_t k = 0; k < n; ++k) sums[k] += changes[k], changes[k] = 0;
}

}  // namespace

MovingSums::MovingSums(const Layer& layer)
    : layer_(layer),
      prepared_(layer),
      width_(prepared_.tiling().width()),
      lines_(layer.geometry.out_height()),
      line_(layer.geometry.out_width()),
      rows_(lines_ * line_) {}

int64_t MovingSums::size(int64_t outputs, int64_t groups, int64_t rows) {
  const int64_t group_outputs = outputs / groups, widest = group_outputs > kLanes ? 2 * kLanes : kLanes;
  return groups * ((group_outputs + widest - 1) / widest * widest) * rows;
}

Tile MovingSums::tile(int64_t number) const {
  static const std::vector<float> ones(2 * kLanes, 1.f);
  Tile tile = prepared_.tile(number);
  if (layer_.prepared == nullptr) tile.unit = ones.data();
  return tile;
}

template <class F>
TANDEM_INLINE void MovingSums::for_rows(int32_t pixel, const F& f) const {
  const Geometry& g = layer_.geometry;
  const auto width = static_cast<int32_t>(g.width);
  for_readers(g, 0, pixel / width, lines_, [&](int64_t line, int64_t y) TANDEM_INLINE_LAMBDA {
    for_readers(g, 1, pixel % width, line_,
                [&](int64_t column, int64_t x) TANDEM_INLINE_LAMBDA { f(line * g.kernel[1] + column, y * line_ + x); });
  });
}

// Adds the weights of moves that read the same taps to the sums of a row: `rows` and `sums` are those of the first of
// the group's tiles.
template <int L, int S, class E>
TANDEM_INLINE void MovingSums::add_to_row(const E* rows, int32_t first, const int32_t* move, const int32_t* end,
                                          int32_t* sums) const {
  const int64_t tiles = prepared_.tiling().tiles_per_group, tile = prepared_.tiling().tile_size;
  const int64_t next = rows_ * width_;
  const auto add = [&](auto at_once, int64_t i) TANDEM_INLINE_LAMBDA {
    add_weights<L, S, decltype(at_once)::value>(rows + i * tile, tile, first, move, end, sums + i * next, next);
  };
  constexpr int N = std::max(1, 8 / S);  // as many as there are registers for
  int64_t i = 0;
  for (; i + N <= tiles; i += N) add(std::integral_constant<int, N>{}, i);
  if (N > 2 && i + 2 <= tiles) add(std::integral_constant<int, 2>{}, i), i += 2;
  for (; i < tiles; ++i) add(std::integral_constant<int, 1>{}, i);
}

// Moves of one input pixel and K-block are added together; of a linear layer all, by the rows of their weights.
template <int L, int S, class E>
TANDEM_INLINE int64_t MovingSums::add_as(const Moves& moves, int32_t* changes, uint8_t* reached,
                                         Workspace& outer) const {
  const Geometry& g = layer_.geometry;
  const Tiling& tiling = prepared_.tiling();
  const auto* weights = reinterpret_cast<const E*>(tile(0).weights);
  const auto channels = static_cast<int32_t>(g.channels), group_channels = static_cast<int32_t>(g.group_channels());
  const auto block = static_cast<int32_t>(tiling.block_channels);
  if (g.is_linear() && group_channels == channels) {
    Workspace workspace(outer);
    auto* const rows = workspace.take<int32_t>(moves.size());
    std::transform(moves.begin(), moves.end(), rows,
                   [&](int32_t move) { return static_cast<int32_t>(tiling.row(0, neuron_of(move))) ^ sign_of(move); });
    add_to_row<L, S>(weights, 0, rows, rows + moves.size(), changes);
    reached[0] |= moves.size() > 0;
    return moves.size() * g.outputs;
  }
  int64_t synapses = 0;
  for (const int32_t *begin = moves.begin(), *end = begin; begin < moves.end(); begin = end) {
    const int32_t pixel = neuron_of(*begin) / channels, channel = neuron_of(*begin) - pixel * channels;
    const int32_t group = group_channels == channels ? 0 : channel / group_channels,
                  within = channel - group * group_channels;
    const int32_t q = block >= group_channels ? 0 : within / block, step = std::min(block, group_channels - q * block);
    const int32_t first = pixel * channels + group * group_channels + q * block;
    while (end < moves.end() && neuron_of(*end) < first + step) ++end;
    const E* rows = weights + group * tiling.tiles_per_group * tiling.tile_size + tiling.first_row(q) * width_;
    int32_t* to = changes + group * tiling.tiles_per_group * rows_ * width_;
    for_rows(pixel, [&](int64_t tap, int64_t row) TANDEM_INLINE_LAMBDA {
      reached[row] |= 1;
      synapses += (end - begin) * g.group_outputs();
      add_to_row<L, S>(rows + tap * step * (L * S), first, begin, end, to + row * (L * S));
    });
  }
  return synapses;
}

int64_t MovingSums::add_by_channel(const Moves& moves, int32_t* changes, uint8_t* reached) const {
  const auto channels = static_cast<int32_t>(layer_.geometry.channels);
  const int64_t outputs = layer_.geometry.outputs / channels;
  const bool ones = layer_.prepared == nullptr;
  int64_t synapses = 0;
  for (const int32_t move : moves) {
    const int32_t pixel = neuron_of(move) / channels, sign = sign_of(move);
    const int64_t first = neuron_of(move) % channels * outputs;
    for_rows(pixel, [&](int64_t tap, int64_t row) {
      reached[row] |= 1;
      synapses += outputs;
      for (int64_t output = first; output < first + outputs; ++output) {
        const int64_t number = output / width_, lane = output % width_;
        const auto* weights = ones ? nullptr : reinterpret_cast<const int32_t*>(tile(number).weights);
        const int32_t weight = ones ? 1 : weights[tap * width_ + lane];
        changes[(number * rows_ + row) * width_ + lane] += (weight ^ sign) - sign;
      }
    });
  }
  return synapses;
}

int64_t MovingSums::add(const Moves& moves, int32_t* changes, uint8_t* reached, Workspace& workspace) const {
  if (layer_.geometry.is_depthwise() || layer_.prepared == nullptr) return add_by_channel(moves, changes, reached);
  int64_t synapses = 0;
  at_level([&](auto lanes) TANDEM_INLINE_LAMBDA {
    constexpr int L = decltype(lanes)::value, S = kLanes / L;
    const auto add = [&](auto weight) TANDEM_INLINE_LAMBDA {
      using E = decltype(weight);
      return prepared_.tiling().registers == 1 ? add_as<L, S, E>(moves, changes, reached, workspace)
                                               : add_as<L, 2 * S, E>(moves, changes, reached, workspace);
    };
    synapses = prepared_.bytes() ? add(int8_t{}) : add(int32_t{});
  });
  return synapses;
}

void MovingSums::fire(int32_t* changes, double* sums, int64_t first_row, int64_t rows, const Neuron& neuron) const {
  const int64_t tiles = prepared_.tiling().tiles();
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t begin = (i * rows_ + first_row) * width_;
    take_changes(changes + begin, sums + begin, rows * width_);
    fire_window_sums(tile(i).for_rows(first_row, rows), sums + begin, neuron);
  }
}

}  // namespace tandem::cpu
