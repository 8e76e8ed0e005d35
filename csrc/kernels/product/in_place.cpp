#include "in_place.h"

#include <atomic>

#include "fire.h"
#include "prepared.h"
#include "units.h"
#include "window.h"

namespace tandem::cpu {

namespace {

// Rows of which the inputs of one group are gathered at a time.
constexpr int64_t kRows = 8;

// The inputs of some rows as bytes in the order of the weights, [rows, planes, inputs].
struct Gathered {
  const Layer& layer;
  int64_t first_row, rows;
  const uint8_t* bytes;
};

void gather(const Layer& layer, int64_t group, int64_t first_row, int64_t rows, uint8_t* out) {
  const Geometry& g = layer.geometry;
  const int64_t channels = g.group_channels(), taps = g.taps();
  const bool channels_last = layer.weights.channels_last;
  for (int64_t row = first_row; row < first_row + rows; ++row) {
    const int64_t x = row % g.out_width(), lines = row / g.out_width();
    const int64_t y = lines % g.out_height(), b = lines / g.out_height();
    for (int p = 0; p < layer.plane_count(); ++p, out += g.inputs()) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t iy = y * g.stride[0] - g.padding[0] + tap / g.kernel[1] * g.dilation[0];
        const int64_t ix = x * g.stride[1] - g.padding[1] + tap % g.kernel[1] * g.dilation[1];
        const bool inside = iy >= 0 && iy < g.height && ix >= 0 && ix < g.width;
        const uint8_t* pixel = layer.planes + (((p * g.batch + b) * g.height + iy) * g.width + ix) * g.channels;
        for (int64_t c = 0; c < channels; ++c) {
          out[channels_last ? tap * channels + c : c * taps + tap] = inside ? pixel[group * channels + c] : 0;
        }
      }
    }
  }
}

// The eight sums of one output for the inputs of a row and plane.
template <int L, class E>
TANDEM_INLINE void sum_row(const E* weights, float factor, const uint8_t* bytes, int64_t inputs, int32_t (&sums)[8]) {
  Int<float, L> step[8] = {};
  int64_t k = 0;
  for (; k + L <= inputs; k += L) {
    const auto w = to_fixed(load_floats<L>(weights + k) * factor);
    const auto spikes = convert<int32_t, uint8_t, L>(load<Bytes<L>>(bytes + k));
#pragma GCC unroll 8
    for (int t = 0; t < 8; ++t) step[t] += (spikes & (1 << t)) != 0 ? w : Int<float, L>{};
  }
  for (int t = 0; t < 8; ++t) {
    sums[t] = 0;
    for (int i = 0; i < L; ++i) sums[t] += step[t][i];
  }
  for (; k < inputs; ++k) {
    const int32_t w = to_fixed(load_floats<1>(weights + k) * factor)[0];
    for (int t = 0; t < 8; ++t) sums[t] += bytes[k] >> t & 1 ? w : 0;
  }
}

// The sums [rows, planes, 8, 16] of outputs [first, first + count) and their units.
template <int L, class E>
TANDEM_INLINE bool sum_outputs(const Gathered& in, int64_t first, int64_t count, int32_t* sums, float* unit) {
  const int64_t inputs = in.layer.geometry.inputs();
  bool finite = true;
  for (int64_t i = 0; i < kLanes; ++i) {
    if (i >= count) {
      unit[i] = 0;
      for (int64_t r = 0; r < in.rows * in.layer.plane_count() * 8; ++r) sums[r * kLanes + i] = 0;
      continue;
    }
    const E* weights = static_cast<const E*>(in.layer.weights.data) + (first + i) * inputs;
    int exponent;
    finite &= unit_exponent<L>(weights, inputs, exponent);
    unit[i] = power_of_two(exponent);
    for (int64_t r = 0; r < in.rows * in.layer.plane_count(); ++r) {
      int32_t steps[8];
      sum_row<L>(weights, power_of_two(-exponent), in.bytes + r * inputs, inputs, steps);
      for (int t = 0; t < 8; ++t) sums[(r * 8 + t) * kLanes + i] = steps[t];
    }
  }
  return finite;
}

template <int L>
TANDEM_INLINE void sum_tile_body(const Gathered& in, int64_t first, int64_t count, int32_t* sums, float* unit,
                                 bool* finite) {
  switch (in.layer.weights.dtype) {
    case DType::kBFloat16:
      *finite = sum_outputs<L, BFloat16>(in, first, count, sums, unit);
      return;
    case DType::kFloat16:
      *finite = sum_outputs<L, Float16>(in, first, count, sums, unit);
      return;
    case DType::kInt8:
      *finite = sum_outputs<L, int8_t>(in, first, count, sums, unit);
      return;
    default:
      *finite = sum_outputs<L, float>(in, first, count, sums, unit);
  }
}
TANDEM_CPU_LANES_KERNEL(sum_tile,
                        (const Gathered& in, int64_t first, int64_t count, int32_t* sums, float* unit, bool* finite),
                        (in, first, count, sums, unit, finite))

// Calls use(tile, sums) for the tiles of all rows.
template <class Use>
Refusal for_tiles(const Layer& layer, ParallelFor parallel, const Use& use) {
  thread_local Scratch<uint8_t> bytes_memory;
  const Geometry& geometry = layer.geometry;
  const int64_t rows = geometry.rows(), outputs = geometry.group_outputs();
  const int planes = layer.plane_count();
  uint8_t* bytes = bytes_memory.reserve(std::min(rows, kRows) * planes * geometry.inputs());
  std::atomic<bool> all_finite{true};
  static const SpikeLists no_lists;
  for (int64_t first_row = 0; first_row < rows; first_row += kRows) {
    const int64_t count = std::min(kRows, rows - first_row);
    for (int64_t group = 0; group < geometry.groups; ++group) {
      gather(layer, group, first_row, count, bytes);
      const Gathered in{layer, first_row, count, bytes};
      constexpr int64_t kGrain = 1 << 15;  // weights worth a thread
      const int64_t tiles = (outputs + kLanes - 1) / kLanes, grain = 1 + kGrain / (kLanes * geometry.inputs() + 1);
      parallel_ranges(parallel, tiles, grain, [&](int64_t begin, int64_t end) {
        thread_local Scratch<int32_t> sums_memory;
        int32_t* sums = sums_memory.reserve(count * planes * 8 * kLanes);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t channel = group * outputs + i * kLanes;
          const int64_t channels = std::min<int64_t>(kLanes, outputs - i * kLanes);
          float unit[kLanes];
          bool finite;
          sum_tile(in, channel, channels, sums, unit, &finite);
          if (!finite) all_finite = false;
          use(Tile{no_lists, count, first_row, planes, 1, false, nullptr, unit, channel, channels}, sums);
        }
      });
    }
  }
  return all_finite ? Refusal::kNone : Refusal::kNotFinite;
}

}  // namespace

Refusal run_in_place(const Layer& layer, ParallelFor parallel) {
  uint8_t* open = reserve_open(layer);
  const Refusal refusal = for_tiles(
      layer, parallel, [&](const Tile& tile, const int32_t* sums) { fire_sums(tile, sums, layer.neuron, open); });
  write_mask(layer, open, parallel);
  return refusal;
}

Refusal window_product_in_place(const Layer& layer, float* u, ParallelFor parallel) {
  return for_tiles(layer, parallel, [&](const Tile& tile, const int32_t* sums) {
    thread_local Scratch<double> windows_memory;
    double* windows = windows_memory.reserve(tile.rows * tile.width());
    add_steps(sums, layer.neuron.T, tile.rows, tile.width(), windows);
    write_products(tile, windows, u, layer.geometry.outputs);
  });
}

}  // namespace tandem::cpu
