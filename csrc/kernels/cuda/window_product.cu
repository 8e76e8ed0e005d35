// u = W c, the product of a window's counts: the sum of a layer's currents over its steps in one multiplication. In
// place of the steps this kernel has more pixels. The product is written, or neurons of window timing integrate it in
// registers.
#include "product_launch.cuh"

namespace tandem::cuda {

namespace {

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    window_product_kernel(const __grid_constant__ DeviceGeometry g, const __grid_constant__ WindowEnd end) {
  extern __shared__ __align__(128) unsigned char memory[];
  const typename S::Position position;
  const int digits = count_digits<S>(g);
  Sums<S> sums[S::kSums] = {};
  multiply_depth<S>(g, 0, 1, digits, memory, position, sums);
  __syncthreads();  // the ring has been read
  // The thread's products pass through shared memory, so that a loop over them exists once.
  auto* const products = reinterpret_cast<Vec<float, 4>*>(memory) + position.thread;
#pragma unroll
  for (int pair = 0; pair < S::kPairs; ++pair) {
    const int output = static_cast<int>(blockIdx.y) * S::kOutputs + position.row + (pair * 8 + position.g) * 4;
    const uint32_t channel = blockIdx.z * static_cast<uint32_t>(g.group_outputs) + output;
    const int live = min(g.group_outputs - output, 4);
    Neurons<4, false> neurons(end.a, channel, live, g.outputs_aligned);
    const auto units = live > 0 ? neurons.take(g.weights.units + channel) : fill<float, 4>(0);
    unroll<2 * S::kGroups>([&](int i) {
      const auto below = sums_of<S>(sums[0], pair, i % 2, i / 2),
                 above = sums_of<S>(sums[S::kSums - 1], pair, i % 2, i / 2);
      products[i * S::kThreads] = generate<4>([&](int j) {
        int64_t sum = below.at[j];
        if (S::kSums > 1) add_wide<256>(sum, above.at[j]);
        return rounded_mul(static_cast<float>(sum), units.at[j]);
      });
    });
#pragma unroll 1
    for (int i = 0; i < 2 * S::kGroups; ++i) {
      const int64_t pixel =
          static_cast<int64_t>(blockIdx.x) * S::kPixels + position.column + i / 2 * kMmaPixels + position.q * 2 + i % 2;
      neurons.live = pixel < g.pixels ? live : 0;
      end(neurons, pixel * g.outputs + channel, products[i * S::kThreads]);
    }
  }
}

}  // namespace

int run_window(const Layer& layer, Choice choice, float* u, const Card& card, void* stream) {
  const auto run_in = [&](auto shape) {
    using S = decltype(shape);
    return launch_tiles<S>(layer, u, card, &window_product_kernel<S>, WindowEnd{layer.neuron, u, layer.gate_bytes()},
                           stream);
  };
  if (choice == Choice::kLarge) return run_in(TileShape<LargeCounts>{});
  return choice == Choice::kWide ? run_in(TileShape<WideCounts>{}) : run_in(TileShape<NarrowCounts>{});
}

}  // namespace tandem::cuda
