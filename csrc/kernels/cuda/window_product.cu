// u = W c, the product of a window's counts: a layer's currents summed over its steps, multiplied once. The operand of
// a step is eight more pixels here.
#include "product_launch.cuh"

namespace tandem::cuda {

namespace {

// Sixty-four outputs by sixty-four pixels to a block: two warps' worth, whose depth two each share.
template <class Operands>
using CountShape = Shape<Counted<Operands>, 4, 1, 2, 2>;

template <class S>
__global__ void __launch_bounds__(S::kThreads, 3)
    window_product_kernel(const __grid_constant__ DeviceGeometry g, float* __restrict__ u, int64_t channels) {
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
  add_up<S>(memory, at, sums, [&](int i, const Totals& total) {
    const int lane = i % 32;
    const int t = i / 32 % S::kSteps;
    const int item = i / (32 * S::kSteps) % S::kItems;
    const int tile = i / (32 * S::kSteps * S::kItems);
    const int output = static_cast<int>(blockIdx.y) * S::kOutputs + (item / 2 * 8 + lane / 4) * S::kVec;
    const int64_t pixel = static_cast<int64_t>(blockIdx.x) * S::kPixels + tile * S::kTilePixels + t * kWarpPixels +
                          lane % 4 * 2 + item % 2;
    const int live = min(g.group_outputs - output, S::kVec);
    if (pixel >= g.pixels || live <= 0) return;
    const int64_t channel = blockIdx.z * static_cast<int64_t>(g.group_outputs) + output;
    float* to = u + pixel * channels + channel;
    Vec<float, S::kVec> out;
#pragma unroll
    for (int j = 0; j < S::kVec; ++j) {
      out.at[j] = static_cast<float>(total.at[j]);
      if constexpr (S::Operands::kDigits) {
        const int64_t above = digits > 1 ? higher[i].at[j] : 0;
        const float unit = j < live ? g.units[channel + j] : 0;
        out.at[j] = rounded_mul(static_cast<float>(256 * above + total.at[j]), unit);
      }
    }
    if (g.outputs_aligned) return store(to, out);
#pragma unroll
    for (int j = 0; j < S::kVec; ++j) {
      if (j < live) to[j] = out.at[j];
    }
  });
}

template <class Operands>
int launch(const Layer& layer, float* u, void* stream) {
  using S = CountShape<Operands>;
  constexpr int kSharedBytes = S::kSharedBytes + S::kHigherBytes;
  const cudaError_t status =
      cudaFuncSetAttribute(&window_product_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (status != cudaSuccess) return cudaGetLastError();
  DeviceGeometry g = geometry_for<S>(layer);
  g.outputs_aligned = g.group_outputs % 4 == 0 && is_aligned(u, 16);
  window_product_kernel<S>
      <<<grid_of<S>(layer.geometry), S::kThreads, kSharedBytes, static_cast<cudaStream_t>(stream)>>>(
          g, u, layer.geometry.outputs);
  return cudaGetLastError();
}

}  // namespace

bool prefers_window_product(const Layer& layer, Operand operand) {
  if (layer.geometry.groups > 1 && layer.geometry.group_outputs() < 16) return false;  // most of a tile would be empty
  constexpr int64_t kExact = (int64_t{1} << 31) / (128 * 255);                         // summands of an int32
  const bool exact = operand == Operand::kInt8 || operand == Operand::kFloat32;
  return layer.counted() && can_multiply(layer, operand, exact ? kExact : 1 << 24);
}

int window_product(const Layer& layer, Operand operand, float* u, void* stream) {
  if (layer.geometry.neurons() == 0) return cudaSuccess;
  if (!prefers_window_product(layer, operand) || !is_prepared(layer, operand)) return cudaErrorInvalidValue;
  switch (operand) {
    case Operand::kFloat16:
      return launch<Float16Weights>(layer, u, stream);
    case Operand::kBFloat16:
      return launch<BFloat16Weights>(layer, u, stream);
    case Operand::kFloat32:
      return launch<DigitWeights>(layer, u, stream);
    case Operand::kFloat32High:
      return launch<Float32Weights<2>>(layer, u, stream);
    case Operand::kFloat32Medium:
      return launch<Float32Weights<1>>(layer, u, stream);
    case Operand::kInt8:
      return launch<Int8Weights>(layer, u, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace tandem::cuda
