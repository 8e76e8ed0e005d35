// Linear and convolutional layers in one kernel: the product of spikes and weights for all steps of a window on the
// tensor cores, then the neurons. Each step has its own mma, so that a warp ends with all steps of its neurons in
// registers. There a thread integrates four neighbouring outputs for each of two pixels. Weights and spike planes pass
// through a ring of stages in shared memory.
#include <limits>

#include "product_launch.cuh"

namespace tandem::cuda {

namespace {

template <class S>
using NeuronsOf = Neurons<S::kVec, float, S::kRounds>;

// The neurons of an item: kVec neighbouring outputs at one of the thread's two pixels.
template <class S>
__device__ __forceinline__ NeuronsOf<S> neurons_of(const Neuron<float>& a, const DeviceGeometry& g,
                                                   const typename S::Place& at, int item) {
  const int output = static_cast<int>(blockIdx.y) * S::kOutputs + at.row + (item / 2 * 8 + at.g) * S::kVec;
  NeuronsOf<S> neurons;
  neurons.whole = g.outputs_aligned;
  neurons.live = min(g.group_outputs - output, S::kVec);
  neurons.channel = blockIdx.z * static_cast<uint32_t>(g.group_outputs) + output;
  if (neurons.live > 0) neurons.load_parameters(a);
  return neurons;
}

// The sums of a plane's products. Those of steps behind the last one are 0.
template <class S, class Products>
__device__ __forceinline__ Vec<int64_t, S::kVec> add_steps(const Products& products) {
  auto total = fill<int64_t, S::kVec>(0);
#pragma unroll
  for (int t = 0; t < S::kPlaneSums; ++t) {
    const auto sums = products(t);
#pragma unroll
    for (int i = 0; i < S::kVec; ++i) total.at[i] += sums.at[i];
  }
  return total;
}

// Integrates an item's neurons over the steps of a round that begins at step `first`. products(t) gives their products
// at step first + t.
template <class S, class Products>
__device__ __forceinline__ void integrate(const Neuron<float>& a, const DeviceGeometry& g, const typename S::Place& at,
                                          NeuronsOf<S> neurons, int first, int item, int64_t* states,
                                          const Products& products) {
  constexpr int kVec = S::kVec;
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * S::kPixels + at.column + 2 * at.q + item % 2;
  const int64_t n = pixel * a.channels + neurons.channel;
  int64_t* state = states + item * S::kStateWords * S::kThreads + threadIdx.x;
  uint32_t gates = 0;
  const bool live = neurons.live > 0 && pixel < g.pixels;
  if (live) {
    if (!S::kRounds || first == 0) {
      neurons.begin(a, a.v_init_size > 1 ? remainder(n, a.v_init_size) : 0);
    } else if constexpr (S::kRounds) {
      neurons.v = bits_as<Vec<float, 2>>(state[0]);
      neurons.r = bits_as<Vec<float, 2>>(state[S::kThreads]);
      neurons.counts = bits_as<Counts<true>>(state[2 * S::kThreads]);
    }
    const auto units = neurons.load_channels(g.units, 1);
#pragma unroll
    for (int plane = 0; plane < S::kPlanes; ++plane) {
      const int begin = first + plane * kPlaneSteps;
      if (S::kRounds && begin >= a.T) continue;
      const int steps = S::kRounds ? min(a.T - begin, kPlaneSteps) : a.T;
      if (S::kSteps == 8) __builtin_assume(steps > 4);  // shorter windows have their own kernel
      const auto of_plane = [&](int t) { return products(plane * kPlaneSteps + t); };
      Vec<float, kVec> u{};  // the window's product, for gates
      if (is_gated(a)) {
        const auto total = add_steps<S>(of_plane);
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          if (S::kRounds) {
            int64_t& earlier = state[(3 + i) * S::kThreads];
            earlier = total.at[i] + (begin == 0 ? 0 : earlier);
          } else {
            u.at[i] = rounded_mul(static_cast<float>(total.at[i]), units.at[i]);
          }
        }
      }
      Vec<float, kVec> current[S::kPlaneSums];
#pragma unroll
      for (int t = 0; t < S::kPlaneSums; ++t) {
        const auto sums = of_plane(t);
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          current[t].at[i] = rounded_mul(static_cast<float>(sums.at[i]), units.at[i]);
        }
      }
      neurons.begin_plane(a, n, begin / kPlaneSteps);
      neurons.scale_products(current);
      neurons.add_residual(a, n, begin, 0, steps, current);
      neurons.advance(a, 0, steps, current);
      if (S::kRounds && begin + kPlaneSteps < a.T) {
        neurons.end_plane(a, n, begin / kPlaneSteps);
      } else {
        if (S::kRounds && is_gated(a)) {
#pragma unroll
          for (int i = 0; i < kVec; ++i) {
            u.at[i] = rounded_mul(static_cast<float>(state[(3 + i) * S::kThreads]), units.at[i]);
          }
        }
        gates = neurons.end(a, n, begin / kPlaneSteps, u);
      }
    }
    if constexpr (S::kRounds) {
      if (first + S::kSteps < a.T) {
        state[0] = bits_as<int64_t>(neurons.v);
        state[S::kThreads] = bits_as<int64_t>(neurons.r);
        state[2 * S::kThreads] = bits_as<int64_t>(neurons.counts);
      }
    }
  }
  if (S::kRounds && first + S::kSteps < a.T) return;
  // the next outputs belong to the lane four further on
  put_gates<kVec>(a.mask, n, live ? neurons.live : 0, gates, 4, g.gate_bytes);
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    product_if_kernel(const __grid_constant__ DeviceGeometry g, const __grid_constant__ Neuron<float> a) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int digits = count_digits<S>(g);
#pragma unroll 1
  for (int first = 0; first < (S::kRounds ? a.T : 1); first += S::kSteps) {
    const typename S::Place at;
    auto* states = reinterpret_cast<int64_t*>(memory + S::ring_bytes(g.stages));
    Sums<S> all[1] = {};
    multiply<S>(g, first / kPlaneSteps, a.T - first, digits, memory, at, all);
    auto& sums = all[0];
    if constexpr (S::kWarpsDepth == 1) {
#pragma unroll
      for (int item = 0; item < S::kItems; item += 2) {
        const auto neurons = neurons_of<S>(a, g, at, item);
#pragma unroll
        for (int i = item; i < item + 2; ++i) {
          integrate<S>(a, g, at, neurons, first, i, states, [&](int t) { return sums_of<S>(sums, i, t); });
        }
      }
    } else {
      static_assert(S::kItems <= S::kWarpsDepth, "a warp each");
      __syncthreads();
      auto* parts = reinterpret_cast<Vec<int32_t, S::kVec>*>(memory);
      add_up<S>(parts, at, sums);
      __syncthreads();
      const int item = at.depth;
      if (item < S::kItems) {
        integrate<S>(a, g, at, neurons_of<S>(a, g, at, item), first, item, states,
                     [&](int t) { return parts[at.part(item, t)]; });
      }
    }
    if (S::kRounds) __syncthreads();  // the ring has been read
  }
}

// Makes bits of the gates' bytes: a thread has eight neurons.
constexpr int kPackThreads = 256;
__global__ void __launch_bounds__(kPackThreads)
    pack_gates_kernel(const uint8_t* __restrict__ open, int64_t neurons, uint8_t* __restrict__ mask) {
  const int64_t byte = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x;
  if (8 * byte >= neurons) return;
  uint32_t gates = 0;
  for (int i = 0; i < 8 && 8 * byte + i < neurons; ++i) gates |= static_cast<uint32_t>(open[8 * byte + i]) << i;
  mask[byte] = static_cast<uint8_t>(gates);
}

int run_steps(const Layer& layer, Choice choice, const Card& card, void* stream) {
  return with_shape(layer, choice, [&](auto shape) {
    using S = decltype(shape);
    return launch_tiles<S>(layer, card, &product_if_kernel<S>, layer.neuron, stream);
  });
}

int run_chosen(const Layer& layer, const WindowEnd& end, const Card& card, void* stream) {
  const Choice choice = choose(layer, card);
  if (choice == Choice::kNone || layer.prepared == nullptr) return cudaErrorInvalidValue;
  if (choice != Choice::kPlain) {
    return layer.counted() ? run_window(layer, card, end, stream) : run_steps(layer, choice, card, stream);
  }
  return layer.counted() ? run_plain(layer, end, stream) : run_plain(layer, stream);
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

Choice choose(const Layer& layer, const Card& card) {
  const Geometry& geometry = layer.geometry;
  constexpr int64_t kInt = std::numeric_limits<int32_t>::max();
  const bool narrow = geometry.channels <= kInt && geometry.height * geometry.width <= kInt &&
                      geometry.height + 2 * geometry.padding[0] <= kInt &&
                      geometry.width + 2 * geometry.padding[1] <= kInt && geometry.outputs <= kInt &&
                      geometry.out_height() * geometry.out_width() <= kInt && geometry.inputs() < 1 << 24;
  if (!narrow) return Choice::kNone;
  constexpr int64_t kGrid = 65535;  // blocks in a launch's y and z; in y each has sixteen outputs or more
  const bool launchable = geometry.group_outputs() <= 16 * kGrid && geometry.groups <= kGrid;
  const bool filled = geometry.inputs() > 0 && (geometry.groups == 1 || geometry.group_outputs() >= 16);
  const bool fits = !layer.counted() || geometry.inputs() < (int64_t{1} << 31) / 128 / 255;  // sums of a digit
  if (!launchable || !filled || !fits) return Choice::kPlain;
  if (layer.counted()) return Choice::kWide;
  if (geometry.rows() <= kMmaPixels) return Choice::kNarrow;
  const bool few = with_shape(layer, Choice::kWide, [&](auto wide) {
    const dim3 grid = grid_of<decltype(wide)>(geometry);
    return 4 * int64_t{grid.x} * grid.y * grid.z < 3 * card.multiprocessors;
  });
  const bool deep =
      few && with_shape(layer, Choice::kDeep, [&](auto shape) { return decltype(shape)::stages(card.shared) > 0; });
  return deep ? Choice::kDeep : Choice::kWide;
}

bool can_run(const Layer& layer) { return choose(layer, Card{}) != Choice::kNone; }

int run(const Layer& layer, void* stream) {
  if (layer.geometry.neurons() == 0) return cudaSuccess;
  Layer used = layer;
  if (layer.gate_bytes()) used.neuron.mask = layer.open;
  const bool four = fit_four(used.neuron) && layer.geometry.group_outputs() % 4 == 0;
  const int status = run_chosen(used, {used.neuron, nullptr, four, layer.gate_bytes(), 4}, current_card(), stream);
  if (status != cudaSuccess || !layer.gate_bytes()) return status;
  return launch_by_four<kPackThreads>(
      false, (layer.neuron.neurons + 7) / 8, stream, [](auto) { return &pack_gates_kernel; }, layer.open,
      layer.neuron.neurons, layer.neuron.mask);
}

int window_product(const Layer& layer, float* u, void* stream) {
  if (layer.geometry.neurons() == 0) return cudaSuccess;
  if (!layer.counted()) return cudaErrorInvalidValue;
  Layer used = layer;
  used.neuron.mask = nullptr;
  const bool four = is_aligned(u, 16) && layer.geometry.group_outputs() % 4 == 0;
  return run_chosen(used, {used.neuron, u, four, false, 4}, current_card(), stream);
}

}  // namespace tandem::cuda
