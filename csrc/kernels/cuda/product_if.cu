// Linear and convolutional layers in one kernel: the product of spikes and weights for all steps of a window on the
// tensor cores, then the neurons. Each step has its own mma. Warps then exchange their sums in shared memory, so that a
// thread has all steps of four neighbouring outputs, and integrates them. Weights and spike planes pass through a ring
// of stages in shared memory, in which the sums lie later.
#include <limits>

#include "product_launch.cuh"

namespace tandem::cuda {

namespace {

using FourSums = Vec<int32_t, 4>;

// What follows the product: warps exchange their sums, then integrate neurons.
template <class S>
struct Ending {
  const Neuron& a;
  const DeviceGeometry& g;
  typename S::Position position;
  unsigned char* memory;

  // What a warp integrates: a pair's outputs, at a tile's pixels.
  struct Item {
    int number;
    Neurons<4, S::kRounds> neurons;
    Vec<float, 4> units;
  };
  __device__ __forceinline__ Item item(int i) const {
    const int number = position.warp + i * S::kWarps;
    const int output = static_cast<int>(blockIdx.y) * S::kOutputs + (number / S::kPixelItems * 8 + position.g) * 4;
    const int live = number < S::kItems ? min(g.group_outputs - output, 4) : 0;
    Item out{number, {a, blockIdx.z * static_cast<uint32_t>(g.group_outputs) + output, live, g.outputs_aligned}, {}};
    if (live > 0) out.units = out.neurons.take(g.weights.units + out.neurons.channel);
    return out;
  }

  // Where an item's sums are exchanged: the lane's at step 0 of a plane, by the warp `depth` of those that split it.
  __device__ __forceinline__ FourSums* exchange(int item, int depth) const {
    return reinterpret_cast<FourSums*>(memory) + (depth * S::kItems + item) * S::kPlaneSums * 32 + position.lane;
  }

  // Stores the warp's sums of every second pixel, from `side` on.
  __device__ __forceinline__ void put(const Sums<S>& sums, int side) const {
    unroll<S::kPairs * S::kColumns>([&](int i) {
      const int pair = i / S::kColumns, column = i % S::kColumns;
      const int group = column / S::kWarpSteps, step = position.step % kPlaneSteps + column % S::kWarpSteps;
      const int item = (position.row / 32 + pair) * S::kPixelItems + position.column / kMmaPixels + group;
      exchange(item, position.depth)[32 * step] = sums_of<S>(sums, pair, side, column);
    });
  }

  // Integrates an item's neurons at every second pixel, from `side` on, over the steps of the plane that begins at step
  // `first`.
  __device__ __forceinline__ void integrate(const Item& item, int first, int side) const {
    auto neurons = item.neurons;
    const int64_t pixel = static_cast<int64_t>(blockIdx.x) * S::kPixels + item.number % S::kPixelItems * kMmaPixels +
                          2 * position.q + side;
    const int64_t n = pixel * a.channels + neurons.channel;
    const bool last = !S::kRounds || first + kPlaneSteps >= a.T;
    uint32_t gates = 0;
    if (pixel >= g.pixels) neurons.live = 0;
    if (neurons.live > 0) {
      Vec<int64_t, 2> total[2] = {};
      const int owner = 32 * (side * S::kItems + item.number) + position.lane;
      unsigned char* state = memory + S::ring_bytes(g.stages, 1);
      const auto each_state = [&](const auto& move) {  // between two planes
        move(neurons.v, state + 16 * owner);
        move(neurons.r, state + 16 * owner + S::kStateRow);
        move(total[0], state + 16 * owner + 2 * S::kStateRow);
        move(total[1], state + 16 * owner + 3 * S::kStateRow);
        move(neurons.counts, state + 8 * owner + 4 * S::kStateRow);
      };
      if (!S::kRounds || first == 0) {
        neurons.begin(a, n);
      } else {
        each_state([](auto& value, const unsigned char* p) { value = load<std::decay_t<decltype(value)>>(p); });
      }
      const auto product = [&](const auto& sum) {
        return rounded_mul(generate<4>([&](int i) { return static_cast<float>(sum(i)); }), item.units);
      };
      const FourSums* from = exchange(item.number, 0);
      const int steps = min(a.T - first, kPlaneSteps);
      __builtin_assume(steps >= S::kLeastSteps);
      neurons.begin_plane(a, n, first / kPlaneSteps, steps);
      constexpr int kSteps = kFewRegisters ? 1 : S::kRounds ? 2 : 4;  // at once: registers are scarce
      unroll<S::kPlaneSums / kSteps>([&](int group) {
        const int begin = group * kSteps;
        FourSums sums[kSteps];
        unroll<kSteps>([&](int t) {
          sums[t] = from[32 * (begin + t)];
          unroll<S::kDepthWarps - 1>([&](int depth) {
            const FourSums other = from[32 * ((depth + 1) * S::kItems * S::kPlaneSums + begin + t)];
            unroll<4>([&](int i) { sums[t].at[i] += other.at[i]; });
          });
        });
        if (a.is_gated()) {  // 0 behind the last step
          unroll<4 * kSteps>([&](int i) { add_wide(total[i / 2 % 2].at[i % 2], sums[i / 4].at[i % 4]); });
        }
        Vec<float, 4> current[kSteps];
        unroll<kSteps>([&](int t) { current[t] = product([&](int i) { return sums[t].at[i]; }); });
        neurons.integrate(a, n, begin, current);
      });
      if (last) {
        gates = neurons.end(a, n, product([&](int i) { return total[i / 2].at[i % 2]; }));
      } else {
        neurons.end_plane(a, n);
        each_state([](const auto& value, unsigned char* p) { store(p, value); });
      }
    }
    // the next outputs belong to the lane four further on
    if (last) put_gates<4>(a.mask, n, neurons.live, gates, 4, g.gate_bytes);
  }
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    product_if_kernel(const __grid_constant__ DeviceGeometry g, const __grid_constant__ Neuron a) {
  extern __shared__ __align__(128) unsigned char memory[];
  const int digits = count_digits<S>(g);
#pragma unroll 1
  for (int round = 0; round < (S::kRounds ? a.T : 1); round += S::kSteps) {
    const Ending<S> ending{a, g, {}, memory};
    const auto& position = ending.position;
    Sums<S> all[1] = {};
    multiply_depth<S>(g, round / kPlaneSteps, a.T - round, digits, memory, position, all);
    const typename Ending<S>::Item items[] = {ending.item(0), ending.item(S::kWarpItems - 1)};
    // With rounds, where a plane is one of two, this is a loop: unrolled it would be long.
#pragma unroll(S::kRounds ? 1 : 2)
    for (int side = 0; side < 2; ++side) {
#pragma unroll 1
      for (int plane = 0; plane < S::kPlanes; ++plane) {
        const int first = round + plane * kPlaneSteps;
        if (first >= a.T) break;
        __syncthreads();  // what lies in the shared memory has been read
        unroll<2>([&](int its_side) {
          if (its_side == side && position.step / kPlaneSteps == plane) ending.put(all[0], its_side);
        });
        __syncthreads();
        unroll<S::kWarpItems>([&](int i) {
          if (S::kItems % S::kWarps != 0 && items[i].number >= S::kItems) return;
          ending.integrate(items[i], first, side);
        });
      }
    }
    if (S::kRounds) __syncthreads();
  }
}

// Makes bits of the gates' bytes.
constexpr int kPackThreads = 256;
__global__ void __launch_bounds__(kPackThreads)
    pack_gates_kernel(const uint8_t* __restrict__ open, int64_t neurons, uint8_t* __restrict__ mask) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x;
  put_gates<1>(mask, n, n < neurons, n < neurons ? open[n] : 0, 1);
}

// u: of a window's product that is written; else null.
int run_chosen(const Layer& layer, float* u, const Card& card, void* stream) {
  const Choice choice = choose_kernel(layer, card);
  if (choice == Choice::kNone || layer.prepared == nullptr) return cudaErrorInvalidValue;
  if (choice == Choice::kPlain) return run_plain(layer, u, stream);
  if (layer.timing() == Timing::kWindow) return run_window(layer, choice, u, card, stream);
  return with_step_shape(layer, choice, [&](auto shape) {
    using S = decltype(shape);
    return launch_tiles<S>(layer, u, card, &product_if_kernel<S>, layer.neuron, stream);
  });
}

}  // namespace

Card current_card() {
  int device = 0;
  Card card{};
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&card.multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&card.shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device) != cudaSuccess) {
    cudaGetLastError();
  }
  return card;
}

Choice choose_kernel(const Layer& layer, const Card& card) {
  const Geometry& geometry = layer.geometry;
  constexpr int64_t kInt = std::numeric_limits<int32_t>::max();
  const int64_t height = geometry.height + 2 * geometry.padding[0] + geometry.after[0];
  const int64_t width = geometry.width + 2 * geometry.padding[1] + geometry.after[1];
  const bool narrow = geometry.channels <= kInt && geometry.outputs <= kInt && geometry.inputs() < 1 << 24 &&
                      height <= kInt && width <= kInt && height * width <= kInt &&
                      geometry.kernel[0] * geometry.dilation[0] <= kInt / 2 &&
                      geometry.kernel[1] * geometry.dilation[1] <= kInt / 2;
  if (!narrow) return Choice::kNone;
  constexpr int64_t kGrid = 65535;  // blocks in a launch's y and z; in y each has sixteen outputs or more
  const bool launchable = geometry.group_outputs() <= 16 * kGrid && geometry.groups <= kGrid;
  const bool filled = geometry.inputs() > 0 && (geometry.groups == 1 || geometry.group_outputs() >= 16);
  const bool fits =
      layer.timing() == Timing::kStep || geometry.inputs() < (int64_t{1} << 31) / 128 / 255;  // sums of a digit
  if (!launchable || !filled || !fits) return Choice::kPlain;
  const auto occupies = [&](auto shape) {  // three quarters of the multiprocessors
    using S = decltype(shape);
    const dim3 grid = grid_of<S>(geometry);
    return 4 * int64_t{grid.x} * grid.y * grid.z >= 3 * card.multiprocessors;
  };
  if (layer.timing() == Timing::kStep) {
    if (geometry.rows() <= kMmaPixels) return Choice::kNarrow;
    return with_step_shape(layer, Choice::kWide, occupies) ? Choice::kWide : Choice::kDeep;
  }
  const auto suits = [&](auto shape) {
    using S = decltype(shape);
    const bool half = 2 * geometry.rows() > S::kPixels && 2 * geometry.group_outputs() > S::kOutputs;
    return half && S::stages(card.shared, stage_digits<S>(layer)) > 0 && occupies(shape);
  };
  // Two digits, of up to 32,639 in all, times counts up to T: their sum fits.
  const bool one_sum = most_digits(layer.weights.dtype) <= 2 && geometry.inputs() * layer.neuron.T <= 65'793;
  if (one_sum && suits(TileShape<LargeCounts>{})) return Choice::kLarge;
  return suits(TileShape<WideCounts>{}) ? Choice::kWide : Choice::kNarrow;
}

bool can_run(const Layer& layer) { return choose_kernel(layer, Card{}) != Choice::kNone; }

int run(const Layer& layer, void* stream) { return tandem_run_on(layer, current_card(), stream); }

int tandem_run_on(const Layer& layer, const Card& card, void* stream) {
  if (layer.geometry.neurons() == 0) return cudaSuccess;
  Layer used = layer;
  if (layer.gate_bytes()) {
    if (layer.neuron.open == nullptr) return cudaErrorInvalidValue;
    used.neuron.mask = layer.neuron.open;
  }
  const int status = run_chosen(used, nullptr, card, stream);
  if (status != cudaSuccess || !layer.gate_bytes()) return status;
  return launch(pack_gates_kernel, blocks_for(layer.neuron.neurons, kPackThreads), kPackThreads, 0, stream,
                layer.neuron.open, layer.neuron.neurons, layer.neuron.mask);
}

int window_product(const Layer& layer, float* u, void* stream) {
  if (layer.geometry.neurons() == 0) return cudaSuccess;
  if (layer.timing() == Timing::kStep) return cudaErrorInvalidValue;
  Layer used = layer;
  used.neuron = {};
  used.neuron.timing = Timing::kWindow;
  used.neuron.T = layer.neuron.T;
  return run_chosen(used, u, current_card(), stream);
}

}  // namespace tandem::cuda
