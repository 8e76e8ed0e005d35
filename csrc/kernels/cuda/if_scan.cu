// One thread owns kVec neighbouring neurons and walks through time. The loads of four or eight steps are issued
// together, before the first of them: at T = 8 a multiprocessor has 128 KiB in flight, by Little's law 16 KiB keep its
// memory busy. Each current is read once, each output written once.
#include <type_traits>

#include "../neuron/scan.h"
#include "neurons.cuh"

namespace tandem::cuda {

namespace {

// 128 threads of at most 64 registers: eight blocks to a multiprocessor.
constexpr int kThreads = 128;
constexpr int kBlocksPerMultiprocessor = 8;

template <class In>
using Compute = std::conditional_t<std::is_same_v<In, double>, double, float>;

// How many steps' loads are issued together: as many as 64 registers hold.
TANDEM_HOST_DEVICE constexpr int chunk_of(int T, bool residual) {
  if (T == 8) return 8;
  return residual ? 2 : 4;
}

// kT is T where it is known at compile time, else 0, and a.T may be a piece of the window. kHeld: one current for all
// steps, not a train of them.
template <class In, bool kHeld, bool kResidual, int kT, int kVec>
__device__ __forceinline__ uint32_t scan(const In* __restrict__ currents, Source source, const Neuron<Compute<In>>& a,
                                         int64_t n) {
  constexpr int kSteps = chunk_of(kT, kResidual);
  using Input = Vec<In, kVec>;
  Neurons<kVec, Compute<In>, kT == 0> neurons;
  neurons.begin(a, remainder(n, a.v_init_size));
  if constexpr (kT == 0) {
    if (a.before > 0) neurons.resume(a, n);
  }
  neurons.channel = static_cast<uint32_t>(remainder(n, a.channels));
  neurons.load_parameters(a);
  Input held;
  if constexpr (kHeld) held = load_once<Input>(currents + n);
  const int T = kT > 0 ? kT : a.T;
#pragma unroll 1
  for (int first = 0; first < T; first += kPlaneSteps) {
    const int steps = kT > 0 ? min(kT, kPlaneSteps) : min(T - first, kPlaneSteps);
    neurons.begin_plane(a, n, first / kPlaneSteps);
#pragma unroll 1
    for (int at = 0; at < steps; at += kSteps) {
      Input raw[kSteps];
#pragma unroll
      for (int t = 0; t < kSteps; ++t) {
        raw[t] = Input{};
        if constexpr (kHeld) {
          if (source == Source::kConstant || first + at + t == 0) raw[t] = held;
        } else {
          if (at + t < steps) raw[t] = load_once<Input>(currents + (first + at + t) * a.neurons + n);
        }
      }
      Vec<Compute<In>, kVec> current[kSteps];
#pragma unroll
      for (int t = 0; t < kSteps; ++t) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) current[t].at[i] = widen(raw[t].at[i]);
      }
      neurons.scale_products(current);
      if constexpr (kResidual) neurons.add_residual(a, n, first, at, steps, current);
      neurons.advance(a, at, steps, current);
    }
    if (first + kPlaneSteps < T) neurons.end_plane(a, n, first / kPlaneSteps);
  }
  if constexpr (kT == 0) {
    if (a.after > 0) {
      neurons.end_plane(a, n, (T - 1) / kPlaneSteps);
      neurons.pause(a, n);
      return 0;
    }
  }
  return neurons.end(a, n, (T - 1) / kPlaneSteps);
}

template <class In, bool kHeld, bool kResidual, int kT, int kVec>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    if_scan_kernel(const In* __restrict__ currents, Source source, const __grid_constant__ Neuron<Compute<In>> a) {
  const int64_t n = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVec;
  uint32_t gates = 0;
  if (n < a.neurons) gates = scan<In, kHeld, kResidual, kT, kVec>(currents, source, a, n);
  if (a.after == 0) put_gates<kVec>(a.mask, n, n < a.neurons, gates, 1);
}

// Window timing: the sum of the currents in order, or T times one, is the product of the window.
template <class In, int kVec>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    if_window_kernel(const In* __restrict__ currents, Source source, const __grid_constant__ Neuron<Compute<In>> a) {
  using C = Compute<In>;
  const int64_t n = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVec;
  uint32_t gates = 0;
  if (n < a.neurons) {
    Vec<C, kVec> u;
    const auto first = load_once<Vec<In, kVec>>(currents + n);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      u.at[i] = widen(first.at[i]);
      if (source == Source::kConstant) u.at[i] = rounded_mul(u.at[i], static_cast<C>(a.T));
    }
    if (source == Source::kTrain) {
#pragma unroll 4
      for (int t = 1; t < a.T; ++t) {
        const auto y = load_once<Vec<In, kVec>>(currents + t * a.neurons + n);
#pragma unroll
        for (int i = 0; i < kVec; ++i) u.at[i] = rounded_add(u.at[i], widen(y.at[i]));
      }
    }
    Neurons<kVec, C, false> neurons;
    neurons.channel = static_cast<uint32_t>(remainder(n, a.channels));
    neurons.begin(a, remainder(n, a.v_init_size));
    gates = neurons.fire_window(a, n, u);
  }
  put_gates<kVec>(a.mask, n, n < a.neurons, gates, 1);
}

template <class In, int kVec>
unsigned blocks_of(const Neuron<Compute<In>>& a) {
  const int64_t per_block = int64_t{kThreads} * kVec;
  return static_cast<unsigned>((a.neurons + per_block - 1) / per_block);
}

template <class In, bool kHeld, bool kResidual, int kT, int kVec>
int launch(const In* currents, Source source, const Neuron<Compute<In>>& a, void* stream) {
  if_scan_kernel<In, kHeld, kResidual, kT, kVec>
      <<<blocks_of<In, kVec>(a), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(currents, source, a);
  return cudaGetLastError();
}

template <class In, int kVec>
int launch_for(const In* currents, Source source, const Neuron<Compute<In>>& a, void* stream) {
  if (a.timing == Timing::kWindow) {
    if_window_kernel<In, kVec>
        <<<blocks_of<In, kVec>(a), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(currents, source, a);
    return cudaGetLastError();
  }
  const bool residual = a.residual_planes != nullptr || a.residual_currents != nullptr;
  if (source != Source::kTrain) {
    return residual ? launch<In, true, true, 0, kVec>(currents, source, a, stream)
                    : launch<In, true, false, 0, kVec>(currents, source, a, stream);
  }
  if (residual) return launch<In, false, true, 0, kVec>(currents, source, a, stream);
  if constexpr (std::is_same_v<In, double>) return launch<In, false, false, 0, kVec>(currents, source, a, stream);
  switch (a.window() == a.T ? a.T : 0) {
    case 4:
      return launch<In, false, false, 4, kVec>(currents, source, a, stream);
    case 8:
      return launch<In, false, false, 8, kVec>(currents, source, a, stream);
    case 16:
      return launch<In, false, false, 16, kVec>(currents, source, a, stream);
    default:
      return launch<In, false, false, 0, kVec>(currents, source, a, stream);
  }
}

template <class In>
int launch_for(const void* currents, Source source, const Neuron<float>& a, void* stream) {
  const auto* typed = static_cast<const In*>(currents);
  if (is_aligned(currents, 4 * sizeof(In)) && fit_four(a)) return launch_for<In, 4>(typed, source, a, stream);
  return launch_for<In, 1>(typed, source, a, stream);
}

}  // namespace

int if_scan(const void* currents, DType dtype, Source source, const Neuron<float>& args, void* stream) {
  if (args.neurons == 0) return cudaSuccess;
  switch (dtype) {
    case DType::kFloat32:
      return launch_for<float>(currents, source, args, stream);
    case DType::kBFloat16:
      return launch_for<__nv_bfloat16>(currents, source, args, stream);
    case DType::kFloat16:
      return launch_for<__half>(currents, source, args, stream);
    case DType::kFloat64:
      return cudaErrorInvalidValue;
  }
  return cudaErrorInvalidValue;
}

int if_scan(const void* currents, DType dtype, Source source, const Neuron<double>& args, void* stream) {
  if (args.neurons == 0) return cudaSuccess;
  if (dtype != DType::kFloat64) return cudaErrorInvalidValue;
  return launch_for<double, 1>(static_cast<const double*>(currents), source, args, stream);
}

}  // namespace tandem::cuda
