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
  for (int digit = S::kDigits - 1; digit > 1; --digit) add_digit<S>(sums[digit], sums[digit - 1]);
#pragma unroll
  for (int item = 0; item < S::kItems; ++item) {
    const int output = static_cast<int>(blockIdx.y) * S::kOutputs + at.row + (item / 2 * 8 + at.g) * S::kVec;
    const int live = min(g.group_outputs - output, S::kVec);
    const uint32_t channel = blockIdx.z * static_cast<uint32_t>(g.group_outputs) + output;
    Vec<float, S::kVec> units;
#pragma unroll
    for (int j = 0; j < S::kVec; ++j) units.at[j] = j < live ? g.units[channel + j] : 0;
#pragma unroll
    for (int t = 0; t < S::kSteps; ++t) {
      const int64_t pixel =
          static_cast<int64_t>(blockIdx.x) * S::kPixels + at.column + t * kMmaPixels + at.q * 2 + item % 2;
      Products<S::kVec> products;
      products.live = pixel < g.pixels ? live : 0;
      products.channel = channel;
      products.n = pixel * (static_cast<int64_t>(gridDim.z) * g.group_outputs) + channel;
      const auto above = sums_of<S>(sums[1], item, t);
      const auto below = sums_of<S>(sums[0], item, t);
#pragma unroll
      for (int j = 0; j < S::kVec; ++j) {
        const int64_t sum = static_cast<int64_t>(above.at[j]) * 256 + below.at[j];
        products.u.at[j] = rounded_mul(static_cast<float>(sum), units.at[j]);
      }
      end(products);
    }
  }
}

}  // namespace

int run_window(const Layer& layer, const Card& card, const WindowEnd& end, void* stream) {
  return launch_tiles<CountShape>(layer, card, &window_product_kernel<CountShape>, end, stream);
}

}  // namespace tandem::cuda
