// Products input by input, with outputs in lanes and sums in registers: for depthwise layers, where every output reads
// one input channel, so that there is nothing to list, and for kernels with more taps than list entries can name.
// Weights are int32.
#include "fire.h"
#include "product.h"

namespace tandem::cpu {

namespace {

// Where the outputs of a tile find their bytes in a pixel.
struct Reader {
  bool depthwise;  // output n reads channel n / group_outputs
  int64_t group_outputs, outputs;

  explicit Reader(const Geometry& geometry)
      : depthwise(geometry.is_depthwise()), group_outputs(geometry.group_outputs()), outputs(geometry.outputs) {}

  // The bytes of L outputs; all outputs of a group read the same.
  template <int L>
  TANDEM_INLINE Bytes<L> bytes(const uint8_t* input, int64_t output) const {
    if (!depthwise) return Bytes<L>{} + *input;
    if (group_outputs == 1 && output + L <= outputs) return load<Bytes<L>>(input + output);
    uint8_t bytes[L] = {};
    for (int i = 0; i < L && output + i < outputs; ++i) bytes[i] = input[(output + i) / group_outputs];
    return load<Bytes<L>>(bytes);
  }
};

// Calls f(weights, input) for every input of a tile's group that is inside of the image: its weights, and the byte in
// sheet p, of a depthwise layer that of the first channel.
template <int R, class F>
TANDEM_INLINE void for_inputs(const Layer& layer, const Tiling& tiling, const Tile& tile, int64_t row, int p,
                              const F& f) {
  const Geometry& geometry = layer.geometry;
  const auto* weights = reinterpret_cast<const int32_t*>(tile.weights);
  const int64_t out_width = geometry.out_width(), lines = row / out_width;
  const int64_t x = row % out_width, y = lines % geometry.out_height(), b = lines / geometry.out_height();
  const int64_t channel = geometry.is_depthwise() ? 0 : tile.channel / tiling.outputs * tiling.channels;
  const bool one = tiling.channels == 1;
  for (int64_t tap = 0; tap < tiling.taps; ++tap) {
    const int64_t iy = geometry.input(0, y, tap / geometry.kernel[1]);
    const int64_t ix = geometry.input(1, x, tap % geometry.kernel[1]);
    if (!geometry.has_input(0, iy) || !geometry.has_input(1, ix)) continue;
    const uint8_t* pixel = layer.stored + geometry.pixel(p, b, iy, ix) + channel;
    if (one) {  // a loop of its own keeps the sums of depthwise layers in registers
      f(weights + tap * 16 * R, pixel);
      continue;
    }
    for (int64_t c = 0; c < tiling.channels; ++c) f(weights + tiling.row(tap, c) * 16 * R, pixel + c);
  }
}

// The sums of the eight steps of plane p, for a row and the outputs of a tile.
template <int L, int R>
TANDEM_INLINE void step_sums(const Layer& layer, const Tiling& tiling, const Tile& tile, int64_t row, int p,
                             WideSums<L, R> (&sums)[8]) {
#pragma GCC unroll 8
  for (int t = 0; t < 8; ++t) sums[t] = WideSums<L, R>{};
  const Reader reader(layer.geometry);
  for_inputs<R>(layer, tiling, tile, row, p, [&](const int32_t* weights, const uint8_t* input) TANDEM_INLINE_LAMBDA {
#pragma GCC unroll 8
    for (int s = 0; s < R * kLanes / L; ++s) {
      const auto bytes = reader.bytes<L>(input, tile.channel + s * L);
      const auto spikes = convert<int32_t, uint8_t, L>(bytes), weight = load<Int<L>>(weights + s * L);
#pragma GCC unroll 8
      for (int t = 0; t < 8; ++t) sums[t].part[s] += weight & (spikes << (31 - t) >> 31);
    }
  });
}

TANDEM_CPU_KERNEL(fire_plain, (const Layer& layer, const Tiling& tiling, const Tile& tile), (layer, tiling, tile)) {
  with_registers<L>(tile, [&](auto registers) TANDEM_INLINE_LAMBDA {
    constexpr int R = decltype(registers)::value;
    using S = WideSums<L, R>;
    run_neurons<L, S, false>(tile, layer.neuron, [&](int64_t row, int p, S(&sums)[8]) TANDEM_INLINE_LAMBDA {
      step_sums<L, R>(layer, tiling, tile, tile.first_row + row, p, sums);
    });
  });
}

TANDEM_CPU_KERNEL(sum_plain, (const Layer& layer, const Tiling& tiling, const Tile& tile, double* windows),
                  (layer, tiling, tile, windows)) {
  with_registers<L>(tile, [&](auto registers) TANDEM_INLINE_LAMBDA {
    constexpr int R = decltype(registers)::value, H = L / 2, S = R * kLanes / H;
    typedef Vec<double, H> Wide;
    const Reader reader(layer.geometry);
    for (int64_t row = 0; row < tile.rows; ++row, windows += 16 * R) {
      Wide sum[S] = {};
      const auto add = [&](const int32_t* weights, const uint8_t* input) TANDEM_INLINE_LAMBDA {
#pragma GCC unroll 16
        for (int s = 0; s < S; ++s) {
          const auto counts = convert<int32_t, uint8_t, H>(reader.bytes<H>(input, tile.channel + s * H));
          const auto weight = load<Int<H>>(weights + s * H);
          sum[s] += __builtin_convertvector(counts, Wide) * __builtin_convertvector(weight, Wide);
        }
      };
      for_inputs<R>(layer, tiling, tile, tile.first_row + row, 0, add);
      std::memcpy(windows, sum, sizeof(sum));
    }
  });
}

}  // namespace

void Plain::fire_steps(const Tile& tile, const BlockInputs&, Workspace&) const { fire_plain(layer_, tiling(), tile); }

void Plain::sum_counts(const Tile& tile, const BlockInputs&, Workspace&, double* windows) const {
  sum_plain(layer_, tiling(), tile, windows);
}

}  // namespace tandem::cpu
