// u = W c, the product of a window's counts: the sum of a layer's currents over its steps in one multiplication. In
// place of the steps this kernel has more pixels. The product is written, or neurons of window timing integrate it in
// registers.
#include "product_launch.cuh"
#include "window_ends.cuh"

namespace tandem::cuda {

namespace {

// A block has sixty-four outputs and sixty-four pixels: two tiles, each by two warps that split the depth.
template <class Operands>
using CountShape = Shape<Counted<Operands>, 4, 1, 2, 2>;

template <class S, class End>
__global__ void __launch_bounds__(S::kThreads, 3)
    window_product_kernel(const __grid_constant__ DeviceGeometry g, const __grid_constant__ End end, int64_t channels) {
  extern __shared__ __align__(16) unsigned char memory[];
  const typename S::Place at;
  using Totals = Vec<typename S::Sum, S::kVec>;
  auto* higher = reinterpret_cast<Totals*>(memory + S::kSharedBytes);
  const int digits = count_digits<S>(g);
  if (S::Operands::kDigits && digits > 1) {
    Sums<S> sums = {};
    multiply<S>(g, 0, digits, 1, memory, at, sums);
    __syncthreads();
    add_up<S>(memory, at, sums, [&](int i, const Totals& total) { higher[i] = total; });
    __syncthreads();
  }
  Sums<S> sums = {};
  multiply<S>(g, 0, 1, 0, memory, at, sums);
  __syncthreads();
  static_assert(S::kThreads / S::kWarpsDepth * S::kItems * S::kSteps % S::kThreads == 0, "whole warps end");
  add_up<S>(memory, at, sums, [&](int i, const Totals& total) {
    const int lane = i % 32;
    const int t = i / 32 % S::kSteps;
    const int item = i / (32 * S::kSteps) % S::kItems;
    const int tile = i / (32 * S::kSteps * S::kItems);
    const int output = static_cast<int>(blockIdx.y) * S::kOutputs + (item / 2 * 8 + lane / 4) * S::kVec;
    const int64_t pixel = static_cast<int64_t>(blockIdx.x) * S::kPixels + tile * S::kTilePixels + t * kWarpPixels +
                          lane % 4 * 2 + item % 2;
    Products<S::kVec> products;
    products.live = pixel < g.pixels ? min(g.group_outputs - output, S::kVec) : 0;
    products.channel = blockIdx.z * static_cast<uint32_t>(g.group_outputs) + output;
    products.n = pixel * channels + products.channel;
#pragma unroll
    for (int j = 0; j < S::kVec; ++j) {
      products.u.at[j] = static_cast<float>(total.at[j]);
      if constexpr (S::Operands::kDigits) {
        const int64_t above = digits > 1 ? higher[i].at[j] : 0;
        const float unit = j < products.live ? g.units[products.channel + j] : 0;
        products.u.at[j] = rounded_mul(static_cast<float>(256 * above + total.at[j]), unit);
      }
    }
    end(products);
  });
}

template <class Operands, class End>
int launch(const Layer& layer, End end, void* stream) {
  using S = CountShape<Operands>;
  constexpr int kSharedBytes = S::kSharedBytes + S::kHigherBytes;
  const cudaError_t status =
      cudaFuncSetAttribute(&window_product_kernel<S, End>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (status != cudaSuccess) return cudaGetLastError();
  end.whole = end.whole && layer.geometry.group_outputs() % 4 == 0;
  window_product_kernel<S, End>
      <<<grid_of<S>(layer.geometry), S::kThreads, kSharedBytes, static_cast<cudaStream_t>(stream)>>>(
          geometry_for<S>(layer), end, layer.geometry.outputs);
  return cudaGetLastError();
}

template <class End>
int launch(const Layer& layer, Operand operand, const End& end, void* stream) {
  if (layer.geometry.neurons() == 0) return cudaSuccess;
  if (!layer.counted() || !can_run(layer, operand) || !is_prepared(layer, operand)) return cudaErrorInvalidValue;
  if (is_plain(layer, operand)) return run_plain(layer, end, stream);
  return launch_for(operand, [&](auto operands) { return launch<decltype(operands)>(layer, end, stream); });
}

}  // namespace

bool prefers_window_product(const Layer& layer, Operand operand) {
  return layer.counted() && can_run(layer, operand) && prefers_run(layer, operand);
}

int window_product(const Layer& layer, Operand operand, float* u, void* stream) {
  return launch(layer, operand, Write{u, is_aligned(u, 16)}, stream);
}

int run_window(const Layer& layer, Operand operand, void* stream) {
  return launch(layer, operand, Fire{layer.neuron, fit_four(layer.neuron), 4}, stream);
}

}  // namespace tandem::cuda
