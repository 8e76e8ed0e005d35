// The scan: integrates currents step by step and fires. A thread owns kVec neighbouring neurons. It issues the loads of
// several steps before the first of these steps, to hide the memory latency (docs/cuda.md). Each current is read once,
// each output written once.
#include "../neuron/scan.h"
#include "neurons.cuh"

namespace tandem::cuda {

namespace {

// 128 threads of at most 64 registers each, so that eight blocks share a multiprocessor.
constexpr int kThreads = 128;
constexpr int kBlocksPerMultiprocessor = 8;

// kT is T if it is known at compile time, else 0. kHeld: one current for all
// steps (constant or impulse) instead of a train of currents.
template <class In, bool kHeld, bool kResidual, int kT, int kVec>
__device__ __forceinline__ uint32_t scan(const In* __restrict__ currents, Source source, const Neuron& a, int64_t n) {
  constexpr int kSteps = kT == 8 ? 8 : kResidual ? 2 : 4;  // loaded together: as many as fit into 64 registers
  using Input = Vec<In, kVec>;
  Neurons<kVec, kT == 0, kResidual> neurons(a, static_cast<uint32_t>(n % a.channels));
  neurons.begin(a, n);
  auto u = fill<float, kVec>(0);
  Input held;
  if constexpr (kHeld) held = load_once<Input>(currents + n);
  const int T = kT > 0 ? kT : a.T;
#pragma unroll 1
  for (int first = 0; first < T; first += kPlaneSteps) {
    const int steps = kT > 0 ? min(kT, kPlaneSteps) : min(T - first, kPlaneSteps);
    neurons.begin_plane(a, n, first / kPlaneSteps, steps);
#pragma unroll 1
    for (int first_step = 0; first_step < steps; first_step += kSteps) {
      Input raw[kSteps];
      unroll<kSteps>([&](int t) {
        raw[t] = Input{};
        if constexpr (kHeld) {
          if (source == Source::kConstant || first + first_step + t == 0) raw[t] = held;
        } else {
          if (first_step + t < steps) raw[t] = load_once<Input>(currents + (first + first_step + t) * a.neurons + n);
        }
      });
      Vec<float, kVec> current[kSteps];
      unroll<kSteps>([&](int t) {
        current[t] = convert<float>(raw[t]);
        if constexpr (!kHeld) u = rounded_add(u, current[t]);  // 0 behind the last step
      });
      neurons.template integrate<true>(a, n, first_step, current);
    }
    if (first + kPlaneSteps < T) neurons.end_plane(a, n);
  }
  if constexpr (kHeld) {
    const float steps = static_cast<float>(source == Source::kConstant ? a.T : 1);
    u = rounded_mul(convert<float>(held), fill<float, kVec>(steps));
  }
  return neurons.end(a, n, u);
}

template <class In, bool kHeld, bool kResidual, int kT, int kVec>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    if_scan_kernel(const In* __restrict__ currents, Source source, const __grid_constant__ Neuron a) {
  const int64_t n = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVec;
  uint32_t gates = 0;
  if (n < a.neurons) gates = scan<In, kHeld, kResidual, kT, kVec>(currents, source, a, n);
  put_gates<kVec>(a.mask, n, n < a.neurons, gates, 1);
}

// Window timing: the window's product is the sum of the currents in the order of the steps, or T times a constant
// current.
template <class In, int kVec>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    if_window_kernel(const In* __restrict__ currents, Source source, const __grid_constant__ Neuron a) {
  const int64_t n = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVec;
  uint32_t gates = 0;
  if (n < a.neurons) {
    auto u = convert<float>(load_once<Vec<In, kVec>>(currents + n));
    if (source == Source::kConstant) u = rounded_mul(u, fill<float, kVec>(static_cast<float>(a.T)));
    if (source == Source::kTrain) {
#pragma unroll 4
      for (int t = 1; t < a.T; ++t) {
        u = rounded_add(u, convert<float>(load_once<Vec<In, kVec>>(currents + t * a.neurons + n)));
      }
    }
    gates = Neurons<kVec, false>(a, static_cast<uint32_t>(n % a.channels)).fire_window(a, n, u);
  }
  put_gates<kVec>(a.mask, n, n < a.neurons, gates, 1);
}

// The kernel for these neurons, with kVec of them per thread.
template <class In, int kVec>
auto kernel_for(Source source, const Neuron& a) {
  if (a.timing == Timing::kWindow) return &if_window_kernel<In, kVec>;
  const bool residual = a.has_residual();
  if (source != Source::kTrain) {
    return residual ? &if_scan_kernel<In, true, true, 0, kVec> : &if_scan_kernel<In, true, false, 0, kVec>;
  }
  if (residual) return &if_scan_kernel<In, false, true, 0, kVec>;
  if (a.T == 4) return &if_scan_kernel<In, false, false, 4, kVec>;
  if (a.T == 8) return &if_scan_kernel<In, false, false, 8, kVec>;
  if (a.T == 16) return &if_scan_kernel<In, false, false, 16, kVec>;
  return &if_scan_kernel<In, false, false, 0, kVec>;
}

}  // namespace

int if_scan(const void* currents, DType dtype, Source source, const Neuron& args, void* stream) {
  return with_type(dtype, [&](auto element) {
    using In = decltype(element);
    const auto* from = static_cast<const In*>(currents);
    return by_four(fit_four(args.neurons, from) && fit_four(args), [&](auto vec) {
      return launch(kernel_for<In, vec.value>(source, args), blocks_for(args.neurons, kThreads * vec.value), kThreads,
                    0, stream, from, source, args);
    });
  });
}

}  // namespace tandem::cuda
