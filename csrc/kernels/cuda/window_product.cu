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
  extern __shared__ __align__(16) unsigned char memory[];
  const typename S::Place at;
  const int digits = count_digits<S>(g);
  Sums<S> sums[S::kDigits] = {};
  multiply<S>(g, 0, 1, digits, memory, at, sums);
#pragma unroll
  for (int digit = S::kDigits - 1; digit > 1; --digit) {
    each_sum<S>(sums[digit - 1], [&](int32_t& sum, int i) { sum += 256 * (&sums[digit][0][0][0])[i]; });
  }
  const int64_t channels = static_cast<int64_t>(gridDim.z) * g.group_outputs;
#pragma unroll
  for (int unit = 0; unit < S::kUnits; ++unit) {
    const int output = static_cast<int>(blockIdx.y) * S::kOutputs + at.row + (unit * 8 + at.g) * 4;
    const uint32_t channel = blockIdx.z * static_cast<uint32_t>(g.group_outputs) + output;
    const int live = min(g.group_outputs - output, 4);
    Neurons<4, float, false> neurons(end.a, channel, live, g.outputs_aligned);
    const auto units = live > 0 ? neurons.take(g.units + channel) : fill<float, 4>(0);
#pragma unroll
    for (int i = 0; i < 2 * S::kColumns; ++i) {
      const int64_t pixel =
          static_cast<int64_t>(blockIdx.x) * S::kPixels + at.column + i / 2 * kMmaPixels + at.q * 2 + i % 2;
      const auto above = sums_of<S>(sums[1], unit, i % 2, i / 2), below = sums_of<S>(sums[0], unit, i % 2, i / 2);
      Vec<float, 4> u;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        int64_t sum = below.at[j];
        add_wide<256>(sum, above.at[j]);
        u.at[j] = rounded_mul(static_cast<float>(sum), units.at[j]);
      }
      neurons.live = pixel < g.pixels ? live : 0;
      end(g, neurons, pixel * channels + channel, u);
    }
  }
}

}  // namespace

int run_window(const Layer& layer, float* u, const Card& card, void* stream) {
  return launch_tiles<CountShape>(layer, u, card, &window_product_kernel<CountShape>, WindowEnd{layer.neuron, u},
                                  stream);
}

}  // namespace tandem::cuda
