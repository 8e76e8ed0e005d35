// u = W c, the product of a window's counts: the sum of a layer's currents over its steps in one multiplication. In
// place of the steps this kernel has more pixels. The product is written, or neurons of window timing integrate it in
// registers.
#include "product_launch.cuh"

namespace tandem::cuda {

namespace {

// int32 has no room for the sum of all digits, but for that of all digits but the lowest.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    window_product_kernel(const __grid_constant__ DeviceGeometry g, const __grid_constant__ WindowEnd end) {
  extern __shared__ __align__(128) unsigned char memory[];
  const typename S::Position position;
  const int digits = count_digits<S>(g);
  Sums<S> sums[S::kDigits] = {};
  multiply_depth<S>(g, 0, 1, digits, memory, position, sums);
#pragma unroll
  for (int digit = S::kDigits - 1; digit > 1; --digit) {
    unroll<S::kSums>([&](int i) { sums[digit - 1][i / 4][i % 4] += 256 * sums[digit][i / 4][i % 4]; });
  }
#pragma unroll
  for (int pair = 0; pair < S::kPairs; ++pair) {
    const int output = static_cast<int>(blockIdx.y) * S::kOutputs + position.row + (pair * 8 + position.g) * 4;
    const uint32_t channel = blockIdx.z * static_cast<uint32_t>(g.group_outputs) + output;
    const int live = min(g.group_outputs - output, 4);
    Neurons<4, false> neurons(end.a, channel, live, g.outputs_aligned);
    const auto units = live > 0 ? neurons.take(g.weights.units + channel) : fill<float, 4>(0);
#pragma unroll
    for (int i = 0; i < 2 * S::kColumns; ++i) {
      const int64_t pixel =
          static_cast<int64_t>(blockIdx.x) * S::kPixels + position.column + i / 2 * kMmaPixels + position.q * 2 + i % 2;
      const auto above = sums_of<S>(sums[1], pair, i % 2, i / 2), below = sums_of<S>(sums[0], pair, i % 2, i / 2);
      const auto u = generate<4>([&](int j) {
        int64_t sum = below.at[j];
        add_wide<256>(sum, above.at[j]);
        return rounded_mul(static_cast<float>(sum), units.at[j]);
      });
      neurons.live = pixel < g.pixels ? live : 0;
      end(neurons, pixel * g.outputs + channel, u);
    }
  }
}

}  // namespace

int run_window(const Layer& layer, float* u, const Card& card, void* stream) {
  const auto run_in = [&](auto shape) {
    using S = decltype(shape);
    return launch_tiles<S>(layer, u, card, &window_product_kernel<S>, WindowEnd{layer.neuron, u, layer.gate_bytes()},
                           stream);
  };
  if (most_digits(layer.weights.dtype) <= 2) return run_in(TileShape<CountTiles<2>>{});
  return run_in(TileShape<CountTiles<kMostDigits>>{});
}

}  // namespace tandem::cuda
