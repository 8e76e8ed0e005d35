// Linear and convolutional layers: the product of spikes and weights for all steps of a window on the tensor cores, and
// the neurons it drives, in one kernel. There is one mma per step, so that a warp ends with all steps of its neurons in
// registers. It turns them over in shared memory: each lane then integrates one neuron, and neighbours store together.
// Weights and spike planes pass through a ring of stages in shared memory.
#include <limits>

#include "neurons.cuh"
#include "product_tile.cuh"

namespace tandem::cuda {

namespace {

// Integrates neuron n, channel o, over the steps of plane p; its products begin at `sums`. Returns its gate after the
// last plane.
template <class S>
__device__ __forceinline__ uint32_t integrate(const Neuron<float>& a, int64_t n, int64_t o, int p,
                                              const typename S::Sum* sums, State& state) {
  Neurons<1> neuron;
  neuron.begin(a, remainder(n, a.v_init_size));
  neuron.load_parameters(a, o);
  if (p > 0) {
    neuron.v.at[0] = state.v;
    neuron.z.at[0] = state.z;
    neuron.counts = state.counts;
  }
  Vec<float, 1> current[S::kSumSteps];
#pragma unroll
  for (int t = 0; t < S::kSumSteps; ++t) {
    auto total = sums[t * S::kSumStep];
#pragma unroll
    for (int depth = 1; depth < S::kWarpsDepth; ++depth) total += sums[t * S::kSumStep + depth * S::kSumTiles];
    current[t].at[0] = S::Operands::product(total, t);
  }
  const int first = p * kPlaneSteps;
  const int steps = min(a.T - first, S::kSumSteps);
  neuron.begin_plane(a, n, p);
  neuron.scale_products(current);
  neuron.add_residual(a, n, first, 0, steps, current);
  neuron.advance(a, 0, steps, current);
  if (first + kPlaneSteps >= a.T) return neuron.end(a, n);
  neuron.end_plane(a, n, p);
  state = {neuron.v.at[0], neuron.z.at[0], neuron.counts};
  return 0;
}

// Integrates the tile of the running warp; warps that share its depth take turns.
template <class S>
__device__ __forceinline__ void integrate_tile(const Neuron<float>& a, const DeviceGeometry& g, int p,
                                               const typename S::Place& at, const typename S::Sum* tile_sums,
                                               State* states) {
  constexpr int kTileOutputs = 16 * S::kTiles;
  constexpr int kTurns = kWarpPixels * kTileOutputs / 32;
#pragma unroll 1
  for (int turn = at.depth; turn < kTurns; turn += S::kWarpsDepth) {
    // At sixteen outputs a warp takes two pixels at once, four apart for the sake of the banks.
    const int row = (turn * 32 + at.lane) % kTileOutputs;
    const int column = kTileOutputs == 16 ? turn + at.lane / 16 * 4 : turn * 32 / kTileOutputs;
    const int64_t output = static_cast<int64_t>(blockIdx.y) * S::kOutputs + at.row + row;
    const int64_t pixel = static_cast<int64_t>(blockIdx.x) * S::kPixels + at.column + column;
    const int64_t o = blockIdx.z * static_cast<int64_t>(g.group_outputs) + output;
    const int64_t n = pixel * a.channels + o;
    const bool live = output < g.group_outputs && pixel < g.pixels;
    uint32_t gate = 0;
    if (live) {
      gate = integrate<S>(a, n, o, p, tile_sums + column * S::kSumRow + row,
                          states[(at.tile * kTurns + turn) * 32 + at.lane]);
    }
    if (a.mask != nullptr && p == g.P - 1) {
      const uint32_t gates = __ballot_sync(0xffffffffu, static_cast<int>(gate)) >> at.lane;
      if (live && at.lane % 8 == 0) a.mask[n / 8] = static_cast<uint8_t>(gates);
    }
  }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    product_if_kernel(const __grid_constant__ DeviceGeometry g, const __grid_constant__ Neuron<float> a) {
  extern __shared__ __align__(16) unsigned char memory[];
  const typename S::Place at;
  const int stages = (g.depth + kTileDepth - 1) / kTileDepth;
  auto* tile_sums = reinterpret_cast<typename S::Sum*>(memory) + at.tile * S::kSumWarp;
  auto* states = reinterpret_cast<State*>(memory + S::kSharedBytes);
#pragma unroll 1
  for (int first = 0; first < a.T; first += S::kSteps) {
    Window windows[S::kSpikeTurns];
    find_windows<S>(g, first / kPlaneSteps, windows);
    const auto request = [&](int stage) {
      if (stage < stages) {
        fill_stage<S>(memory + stage % S::kStages * S::kStageBytes, g, windows, stage * kTileDepth);
      }
      cp_async_commit();
    };
    for (int stage = 0; stage < S::kStages - 1; ++stage) request(stage);
    Sums<S> sums = {};
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage) {
      cp_async_wait<S::kStages - 2>();
      __syncthreads();  // this stage has come, and the one that is requested next has been read
      request(stage + S::kStages - 1);
      multiply_stage<S>(memory + stage % S::kStages * S::kStageBytes, at, sums);
    }
#pragma unroll
    for (int plane = 0; plane < S::kPlanes; ++plane) {
      const int p = first / kPlaneSteps + plane;
      if (p >= g.P) continue;
      __syncthreads();
      store_sums<S>(tile_sums + at.depth * S::kSumTiles, at, sums, plane);
      __syncthreads();
      integrate_tile<S>(a, g, p, at, tile_sums, states);
    }
    __syncthreads();
  }
}

template <class S>
int launch(DeviceGeometry g, int64_t groups, const Neuron<float>& a, cudaStream_t stream) {
  const int shared_bytes = S::kSharedBytes + (g.P > 1 ? S::kStateBytes : 0);
  const cudaError_t status =
      cudaFuncSetAttribute(&product_if_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (status != cudaSuccess) return cudaGetLastError();  // and nobody else finds it
  g.weight_aligned = g.depth * sizeof(typename S::Weight) % 16 == 0 && is_aligned(g.weight, 16);
  g.spikes_aligned = g.group_channels % 16 == 0 && is_aligned(g.planes, 16);
  // Blocks that share weights run side by side.
  const dim3 grid(static_cast<unsigned>((g.pixels + S::kPixels - 1) / S::kPixels),
                  static_cast<unsigned>((g.group_outputs + S::kOutputs - 1) / S::kOutputs),
                  static_cast<unsigned>(groups));
  product_if_kernel<S><<<grid, S::kThreads, shared_bytes, stream>>>(g, a);
  return cudaGetLastError();
}

// Few pixels: the warps of a block share the depth, so that there are blocks enough. Else four times eight pixels share
// what is read of the weights.
template <class Operands, int kSteps>
int launch_for(const DeviceGeometry& g, int64_t groups, const Neuron<float>& a, cudaStream_t stream) {
  if (g.pixels <= kWarpPixels) return launch<Shape<Operands, kSteps, 1, 1, 4>>(g, groups, a, stream);
  return launch<Shape<Operands, kSteps, kSteps == 4 ? 1 : 2, 4, 1>>(g, groups, a, stream);
}

template <class Operands>
int launch_for(const DeviceGeometry& g, int64_t groups, const Neuron<float>& a, cudaStream_t stream) {
  if (a.T <= 4) return launch_for<Operands, 4>(g, groups, a, stream);
  if (a.T <= 8) return launch_for<Operands, 8>(g, groups, a, stream);
  return launch_for<Operands, 16>(g, groups, a, stream);
}

DeviceGeometry geometry_of(const Layer& layer) {
  const Geometry& geometry = layer.geometry;
  const auto narrow = [](int64_t x) { return static_cast<int>(x); };
  DeviceGeometry g{};
  g.planes = layer.planes;
  g.weight = layer.weights.data;
  g.batch = geometry.batch;
  g.pixels = geometry.rows();
  g.P = layer.plane_count();
  g.height = narrow(geometry.height);
  g.width = narrow(geometry.width);
  g.channels = narrow(geometry.channels);
  g.out_width = narrow(geometry.out_width());
  g.out_size = narrow(geometry.out_height() * geometry.out_width());
  g.group_channels = narrow(geometry.group_channels());
  g.group_outputs = narrow(geometry.group_outputs());
  g.taps = narrow(geometry.taps());
  g.kernel_width = narrow(geometry.kernel[1]);
  g.depth = narrow(geometry.inputs());
  for (int axis = 0; axis < 2; ++axis) {
    g.stride[axis] = narrow(geometry.stride[axis]);
    g.padding[axis] = narrow(geometry.padding[axis]);
    g.dilation[axis] = narrow(geometry.dilation[axis]);
  }
  return g;
}

}  // namespace

bool can_run(const Layer& layer, Operand operand) {
  const Geometry& geometry = layer.geometry;
  const bool rows = layer.weights.channels_last || geometry.taps() == 1 || geometry.group_channels() == 1;
  const bool bytes = layer.neuron.mask == nullptr || geometry.group_outputs() % 8 == 0;
  const int64_t deepest = operand == Operand::kInt8 ? 1 << 17 : 1 << 24;
  constexpr int64_t kInt = std::numeric_limits<int32_t>::max();
  constexpr int64_t kGrid = 65535;  // blocks in a launch's y and z; in y each has sixteen outputs or more
  const bool narrow = geometry.channels <= kInt && geometry.height * geometry.width <= kInt &&
                      geometry.height + 2 * geometry.padding[0] <= kInt &&
                      geometry.width + 2 * geometry.padding[1] <= kInt && geometry.outputs <= kInt &&
                      geometry.out_height() * geometry.out_width() <= kInt;
  const bool launchable = geometry.group_outputs() <= 16 * kGrid && geometry.groups <= kGrid;
  return rows && bytes && narrow && launchable && geometry.inputs() > 0 && geometry.inputs() < deepest;
}

bool prefers_run(const Layer& layer, Operand operand) {
  const Geometry& geometry = layer.geometry;
  // A tile has at least thirty-two outputs: narrow groups leave it empty.
  if (geometry.groups > 1 && geometry.group_outputs() < 16) return false;
  // Only TensorFloat-32, of the products that do not round their result to sixteen bits, is as fast as tensor cores can
  // be; that pays where they are the limit, and the sums are long enough to make up for currents in memory.
  const bool compute_bound = layer.neuron.T * geometry.rows() > 256;
  return !(operand == Operand::kFloat32High && compute_bound && geometry.inputs() > 768);
}

int run(const Layer& layer, Operand operand, void* stream) {
  const Neuron<float>& neuron = layer.neuron;
  if (neuron.neurons == 0) return cudaSuccess;
  if (!can_run(layer, operand)) return cudaErrorInvalidValue;
  const DeviceGeometry g = geometry_of(layer);
  const int64_t groups = layer.geometry.groups;
  const auto on = static_cast<cudaStream_t>(stream);
  switch (operand) {
    case Operand::kFloat16:
      return launch_for<Float16Weights>(g, groups, neuron, on);
    case Operand::kBFloat16:
      return launch_for<BFloat16Weights>(g, groups, neuron, on);
    case Operand::kFloat32:
      return launch_for<Float32Weights<3>>(g, groups, neuron, on);
    case Operand::kFloat32High:
      return launch_for<Float32Weights<2>>(g, groups, neuron, on);
    case Operand::kFloat32Medium:
      return launch_for<Float32Weights<1>>(g, groups, neuron, on);
    case Operand::kInt8:
      return launch_for<Int8Weights>(g, groups, neuron, on);
  }
  return cudaErrorInvalidValue;
}

}  // namespace tandem::cuda
