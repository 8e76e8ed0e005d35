// The integrate-and-fire neuron, as the rule says it. The CPU's kernels step their lanes by it; bursts in lanes, the
// CUDA kernels and the currents of the executor are written for their processors, and tests find them equal bit for
// bit.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TANDEM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TANDEM_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace tandem {

// Rounding after every operation is part of the definition, so no product may fuse with a sum: hosts compile with
// -ffp-contract=off, the device uses intrinsics.
template <class V>
TANDEM_HOST_DEVICE V rounded_add(V a, V b) {
  return a + b;
}
template <class V>
TANDEM_HOST_DEVICE V rounded_mul(V a, V b) {
  return a * b;
}
#if defined(__CUDA_ARCH__)
template <>
TANDEM_HOST_DEVICE float rounded_add(float a, float b) {
  return __fadd_rn(a, b);
}
template <>
TANDEM_HOST_DEVICE float rounded_mul(float a, float b) {
  return __fmul_rn(a, b);
}
template <>
TANDEM_HOST_DEVICE double rounded_add(double a, double b) {
  return __dadd_rn(a, b);
}
template <>
TANDEM_HOST_DEVICE double rounded_mul(double a, double b) {
  return __dmul_rn(a, b);
}
#endif

// The current I = scale y + k of a step, where k is the step's share of the shift; or z = scale u + k of a window,
// where k is the window's.
template <class V>
TANDEM_HOST_DEVICE V input_current(V y, V scale, V k) {
  return rounded_add(rounded_mul(scale, y), k);
}

// One step: integrate, fire at v >= threshold, leak, reset by subtraction. Returns the spike: a bool, or for a GCC
// vector V a lane mask. NaN never fires; v is never clamped.
template <class V>
TANDEM_HOST_DEVICE auto step(V& v, V current, float threshold, float leak) {
  v = rounded_add(v, current);
  const auto spike = v >= threshold;
  v = rounded_add(rounded_mul(V{} + leak, v), spike ? V{} - threshold : V{});
  return spike;
}

// A potential that is infinite or NaN stays so, whatever the currents: one test after the last step suffices.
template <class V>
TANDEM_HOST_DEVICE auto is_finite(V v) {
  return v - v == V{};
}

// When a layer fires.
enum class Timing : int32_t {
  kStep = 0,    // at every step of its input
  kWindow = 1,  // after its input's window, which it integrates first, in a window of its own, while v >= threshold
};

// z = scale u + share shift, the ANN's pre-activation; to it the sum r of the residual is added, times its scale. u is
// the window's product: a layer's exact sum of integers, rounded once, or the sum of given currents in the order of the
// steps. The currents of the steps are not added: each was rounded, so that their sum may miss an exact zero. The share
// is all, unless the shift is spread over another number of steps than T.
TANDEM_HOST_DEVICE float share_of_shift(int32_t T, int32_t steps) {
  return T == steps ? 1.f : static_cast<float>(T) / static_cast<float>(steps);  // a division takes as long as a step
}

// The largest T: counts have 8 bits with window timing, else 16.
constexpr int32_t most_steps(Timing timing) { return timing == Timing::kWindow ? 255 : 65535; }

// The sheets of what a train stores, a byte of each for every neuron: bit planes of eight steps or, with window timing,
// one of counts.
constexpr int64_t sheets(int64_t T, Timing timing) { return timing == Timing::kWindow ? 1 : (T + 7) / 8; }

// Which neurons let the gradient through, given z.
enum class Gate : int32_t {
  kRelu = 0,  // z > 0
  kClip = 1,  // 0 < z < Neuron::ceiling()
};

// Of a number or a vector. Where a gate changes, product/filter.cpp looks for doubts: keep the bounds there.
template <class V>
TANDEM_HOST_DEVICE auto gate_open(V z, Gate gate, float ceiling) {
  const auto positive = z > 0.f;
  return gate == Gate::kClip ? positive & (z < ceiling) : positive;
}

// float64 is a type of frozen files alone: torch computes in it.
enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3, kInt8 = 4 };

TANDEM_HOST_DEVICE int64_t size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : dtype == DType::kInt8 ? 1 : 2;
}

// The state of neurons between two pieces of a window: arrays [neurons].
struct Carried {
  float* v;
  float* r;   // the sum of the residual
  double* u;  // the sum of y[t]; for integer weights of the integers
  uint16_t* counts;
};

// A layer of `neurons` IF neurons, whose input has T steps. Neurons are numbered in memory order with the channel
// innermost, so neuron n has channel n % channels. A null pointer stands for the neutral value (scale 1, shift 0, no
// residual, v_init 0) or for an output that is not wanted.
//
// P = sheets(T, timing). With window timing there is one array of residual currents, their sum over the window.
//
// A run may cover a piece() of a window. T and all arrays with steps are then those of the piece.
struct Neuron {
  int64_t neurons;
  int64_t channels;
  int32_t T;      // 1..most_steps(timing)
  int32_t steps;  // of the neurons' window: step timing spreads its shift over them, window timing fires in them
  float threshold;
  float leak;
  Gate gate;
  Timing timing;
  const float* scale;              // [channels]
  const float* shift;              // [channels]
  const uint8_t* residual_stored;  // [P, neurons]
  const float* residual_currents;  // [T, neurons]; at most one of the two residuals is given
  const float* residual_scale;     // [channels]
  const float* v_init;             // [v_init_size]: neuron n starts at v_init[n % v_init_size]
  int64_t v_init_size;
  uint8_t* stored;  // out [P, neurons]
  void* counts;     // out [neurons] of counts_dtype
  DType counts_dtype;
  uint8_t* mask;   // out [ceil(neurons / 8)]: bit n % 8 of byte n / 8 tells whether the gate is open
  uint8_t* open;   // null, or scratch [neurons] for a byte of each gate where threads would share bytes of the mask
  float* v;        // out [neurons], the membrane potential after the last step
  float* bad;      // out [neurons / sample]: NaN if a potential of the sample is not finite; other values stay
  int64_t sample;  // neurons per sample

  int32_t before, after;  // steps of the window in earlier and in later pieces
  Carried carried;        // read if there are earlier pieces, written if there are later ones

  TANDEM_HOST_DEVICE int32_t window() const { return before + T + after; }
  // What the largest count stands for: a clipping gate closes there.
  TANDEM_HOST_DEVICE float ceiling() const {
    return rounded_mul(threshold, static_cast<float>(timing == Timing::kWindow ? steps : window()));
  }
  TANDEM_HOST_DEVICE bool is_gated() const { return mask != nullptr; }  // whether the layer needs z
  TANDEM_HOST_DEVICE bool has_residual() const { return residual_stored != nullptr || residual_currents != nullptr; }
};

// Steps [first, first + steps) of a run, first a multiple of eight, as a separate run.
inline Neuron piece(Neuron a, int32_t first, int32_t steps, const Carried& carried) {
  a.before += first;
  a.after += a.T - first - steps;
  a.T = steps;
  a.carried = carried;
  if (a.stored != nullptr) a.stored += first / 8 * a.neurons;
  if (a.residual_stored != nullptr) a.residual_stored += first / 8 * a.neurons;
  if (a.residual_currents != nullptr) a.residual_currents += first * a.neurons;
  return a;
}

}  // namespace tandem
