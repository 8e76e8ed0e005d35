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

// kT is T if it is known at compile time. 0 stands for any T, also for a piece of a window. kHeld: one current for all
// steps (constant or impulse) instead of a train of currents.
template <class In, bool kHeld, bool kResidual, int kT, int kVec>
__device__ __forceinline__ uint32_t scan(const In* __restrict__ currents, Source source, const Neuron<Compute<In>>& a,
                                         int64_t n) {
  constexpr int kSteps = kT == 8 ? 8 : kResidual ? 2 : 4;  // loaded together: as many as fit into 64 registers
  using C = Compute<In>;
  using Input = Vec<In, kVec>;
  Neurons<kVec, C, kT == 0, kResidual> neurons(a, static_cast<uint32_t>(n % a.channels));
  neurons.begin(a, n);
  auto u = fill<C, kVec>(0);
  if (kT == 0 && a.before > 0) neurons.resume(a, n, u);
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
      Vec<C, kVec> current[kSteps];
      unroll<kSteps>([&](int t) {
        current[t] = convert<C>(raw[t]);
        if constexpr (!kHeld) u = rounded_add(u, current[t]);  // 0 behind the last step
      });
      neurons.template integrate<true>(a, n, first_step, current);
    }
    if (first + kPlaneSteps < T) neurons.end_plane(a, n);
  }
  if (kT == 0 && a.after > 0) {
    neurons.end_plane(a, n);
    neurons.pause(a, n, u);
    return 0;
  }
  if constexpr (kHeld) {
    const C steps = static_cast<C>(source == Source::kConstant ? a.window() : 1);
    u = rounded_mul(convert<C>(held), fill<C, kVec>(steps));
  }
  return neurons.end(a, n, u);
}

template <class In, bool kHeld, bool kResidual, int kT, int kVec>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    if_scan_kernel(const In* __restrict__ currents, Source source, const __grid_constant__ Neuron<Compute<In>> a) {
  const int64_t n = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVec;
  uint32_t gates = 0;
  if (n < a.neurons) gates = scan<In, kHeld, kResidual, kT, kVec>(currents, source, a, n);
  if (a.after == 0) put_gates<kVec>(a.mask, n, n < a.neurons, gates, 1);
}

// Window timing: the window's product is the sum of the currents in the order of the steps, or T times a constant
// current.
template <class In, int kVec>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    if_window_kernel(const In* __restrict__ currents, Source source, const __grid_constant__ Neuron<Compute<In>> a) {
  using C = Compute<In>;
  const int64_t n = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVec;
  uint32_t gates = 0;
  if (n < a.neurons) {
    auto u = convert<C>(load_once<Vec<In, kVec>>(currents + n));
    if (source == Source::kConstant) u = rounded_mul(u, fill<C, kVec>(static_cast<C>(a.T)));
    if (source == Source::kTrain) {
#pragma unroll 4
      for (int t = 1; t < a.T; ++t) {
        u = rounded_add(u, convert<C>(load_once<Vec<In, kVec>>(currents + t * a.neurons + n)));
      }
    }
    gates = Neurons<kVec, C, false>(a, static_cast<uint32_t>(n % a.channels)).fire_window(a, n, u);
  }
  put_gates<kVec>(a.mask, n, n < a.neurons, gates, 1);
}

// The kernel for these neurons, with kVec of them per thread.
template <class In, int kVec>
auto kernel_for(Source source, const Neuron<Compute<In>>& a) {
  if (a.timing == Timing::kWindow) return &if_window_kernel<In, kVec>;
  const bool residual = a.has_residual();
  if (source != Source::kTrain) {
    return residual ? &if_scan_kernel<In, true, true, 0, kVec> : &if_scan_kernel<In, true, false, 0, kVec>;
  }
  if (residual) return &if_scan_kernel<In, false, true, 0, kVec>;
  if constexpr (!std::is_same_v<In, double>) {
    const int T = a.window() == a.T ? a.T : 0;
    if (T == 4) return &if_scan_kernel<In, false, false, 4, kVec>;
    if (T == 8) return &if_scan_kernel<In, false, false, 8, kVec>;
    if (T == 16) return &if_scan_kernel<In, false, false, 16, kVec>;
  }
  return &if_scan_kernel<In, false, false, 0, kVec>;
}

}  // namespace

int if_scan(const void* currents, DType dtype, Source source, const Neuron<float>& args, void* stream) {
  return with_type<false>(dtype, [&](auto element) {
    using In = decltype(element);
    const auto* from = static_cast<const In*>(currents);
    return by_four(fit_four(args.neurons, from) && fit_four(args), [&](auto vec) {
      return launch(kernel_for<In, vec.value>(source, args), blocks_for(args.neurons, kThreads * vec.value), kThreads,
                    0, stream, from, source, args);
    });
  });
}

int if_scan(const void* currents, DType dtype, Source source, const Neuron<double>& args, void* stream) {
  if (dtype != DType::kFloat64) return cudaErrorInvalidValue;
  return launch(kernel_for<double, 1>(source, args), blocks_for(args.neurons, kThreads), kThreads, 0, stream,
                static_cast<const double*>(currents), source, args);
}

}  // namespace tandem::cuda
