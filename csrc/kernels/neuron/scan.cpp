#include "scan.h"

#include <algorithm>

#include "burst.h"

namespace tandem::cpu {

namespace {

// Groups per block: each step then streams four cache lines, and four dependency chains hide the latencies.
constexpr int kGroups = 4;
constexpr int64_t kBlock = kGroups * kLanes;
// Blocks to prefetch ahead: T streams of a few cache lines each are more than the hardware prefetcher follows.
constexpr int kAhead = 8;

template <class Half>
TANDEM_INLINE void widen(const Half* in, int64_t size, float* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = to_float(in[i]);
}

// The products y[t] that drive the neurons.
template <class C>
struct Currents {
  const void* data;
  DType dtype;
  Source source;
  int64_t neurons;

  // y[t] of neurons [n, n + size), size <= kBlock. `wide` [kBlock] is scratch for what cannot be read in place.
  TANDEM_INLINE const C* row(int t, int64_t n, int64_t size, C* wide) const {
    const int64_t offset = (source == Source::kTrain ? t * neurons : 0) + n;
    if (source == Source::kImpulse && t > 0) {
      std::fill(wide, wide + kBlock, C(0));
      return wide;
    }
    if constexpr (sizeof(C) == 4) {
      if (dtype == DType::kBFloat16) widen(static_cast<const BFloat16*>(data) + offset, size, wide);
      if (dtype == DType::kFloat16) widen(static_cast<const Float16*>(data) + offset, size, wide);
      if (dtype != DType::kFloat32) return wide;
    }
    const C* row = static_cast<const C*>(data) + offset;
    if (__builtin_expect(size == kBlock, 1)) return row;
    return std::copy(row, row + size, wide) - size;
  }
};

// The window's product u [kBlock] of a block: the sum of y[t] in the order of the steps.
template <class C>
TANDEM_INLINE void sum_block(const Currents<C>& currents, int T, int64_t n, int64_t size, C* u) {
  C wide[kBlock];
  const C* first = currents.row(0, n, size, wide);
  std::copy(first, first + kBlock, u);
  if (currents.source == Source::kConstant) {
    for (int i = 0; i < kBlock; ++i) u[i] *= static_cast<C>(T);
  }
  for (int t = 1; currents.source == Source::kTrain && t < T; ++t) {
    const C* y = currents.row(t, n, size, wide);
    for (int i = 0; i < kBlock; ++i) u[i] += y[i];
  }
}

// The sums of y[t] between two pieces of a window.
template <class C, int L>
[[gnu::noinline]] void resume_sums(const Neuron<C>& a, int64_t n, const NeuronLanes<C, L>& neurons, Vec<C, L>* u) {
  C sums[kLanes];
  neurons.load_sums(a, n, sums);
  std::memcpy(u, sums, sizeof(sums));
}
template <class C, int L>
[[gnu::noinline]] void pause_sums(const Neuron<C>& a, int64_t n, const NeuronLanes<C, L>& neurons, const Vec<C, L>* u) {
  C sums[kLanes];
  std::memcpy(sums, u, sizeof(sums));
  neurons.save_sums(a, n, sums);
}

// `gated`: z is needed, and so is the sum of the currents.
template <class C, int L, bool residual_given, bool gated>
TANDEM_INLINE void scan_steps(const Currents<C>& currents, const Neuron<C>& a, int64_t n, int64_t size,
                              NeuronLanes<C, L>* neurons) {
  using Group = NeuronLanes<C, L>;
  Vec<C, L> u[kGroups][Group::kParts]{};
  for (int g = 0; gated && a.before > 0 && g < kGroups; ++g) resume_sums(a, n + g * kLanes, neurons[g], u[g]);
  for (int p = 0; p * 8 < a.T; ++p) {
    const int first = p * 8, last = std::min(first + 8, a.T);
    typename Group::Plane plane[kGroups] = {}, residual[kGroups];
    for (int g = 0; residual_given && g < kGroups; ++g) neurons[g].load_residual(a, n + g * kLanes, p, residual[g]);
    for (int t = first; t < last; ++t) {
      C wide[kBlock];
      const C* y = currents.row(t, n, size, wide);
      for (int i = 0; i < kBlock; i += 64 / static_cast<int>(sizeof(C))) __builtin_prefetch(y + kAhead * kBlock + i);
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 8
        for (int i = 0; i < Group::kParts; ++i) {
          const auto product = load<Vec<C, L>>(y + g * kLanes + i * L);
          if constexpr (gated) u[g][i] = rounded_add(u[g][i], product);
          Vec<C, L> current = input_current(product, neurons[g].scale[i], neurons[g].k[i]);
          if constexpr (residual_given) {
            current = rounded_add(current, neurons[g].residual(a, n + g * kLanes, i, t, residual[g]));
          }
          neurons[g].advance(a, i, current, t, plane[g]);
        }
      }
    }
    for (int g = 0; g < kGroups; ++g) neurons[g].end_plane(a, n + g * kLanes, p, plane[g]);
  }
  if constexpr (!gated) return;
  for (int g = 0; a.after > 0 && g < kGroups; ++g) pause_sums(a, n + g * kLanes, neurons[g], u[g]);
  C wide[kBlock];
  const bool held = currents.source == Source::kConstant;
  const C* y = held ? currents.row(0, n, size, wide) : nullptr;
  for (int g = 0; g < kGroups; ++g) {
    for (int i = 0; held && i < Group::kParts; ++i) {
      u[g][i] = load<Vec<C, L>>(y + g * kLanes + i * L) * static_cast<C>(a.window());
    }
    for (int i = 0; i < Group::kParts; ++i) neurons[g].sum_up(a, i, u[g][i]);
  }
}

// Fires as many groups at once as there are registers for.
template <class C, int L>
TANDEM_INLINE void scan_window(const Currents<C>& currents, const Neuron<C>& a, int64_t n, int64_t size,
                               NeuronLanes<C, L>* neurons) {
  constexpr int kParts = NeuronLanes<C, L>::kParts, kAtOnce = kParts > 4 ? 1 : 4 / kParts;
  C u[kBlock];
  sum_block(currents, a.T, n, size, u);
  for (int g = 0; g < kGroups; g += kAtOnce) {
    fire_windows<kAtOnce>(a, neurons + g, n + g * kLanes,
                          [&](int s) TANDEM_INLINE_LAMBDA { return load<Vec<C, L>>(u + g * kLanes + s * L); });
  }
}

// `a` has no `bad`: a single test covers the block, and then `marked`, the same layer with `bad`, marks the samples.
template <class C, int L, Timing timing, bool residual_given, bool gated>
TANDEM_INLINE void scan_block(const Currents<C>& currents, const Neuron<C>& a, const Neuron<C>& marked, int64_t n,
                              int64_t size) {
  using Group = NeuronLanes<C, L>;
  Group neurons[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    neurons[g].begin(a, n + g * kLanes, static_cast<int>(std::clamp<int64_t>(size - g * kLanes, 0, kLanes)));
  }
  if constexpr (timing == Timing::kWindow) {
    scan_window(currents, a, n, size, neurons);
  } else {
    scan_steps<C, L, residual_given, gated>(currents, a, n, size, neurons);
  }
  for (int g = 0; g < kGroups; ++g) neurons[g].end(a, n + g * kLanes);
  Vec<C, L> sum{};
  for (int g = 0; g < kGroups; ++g) sum += neurons[g].sum();
  if (__builtin_expect(!any_lost<C, L>(sum), 1)) return;
  for (int g = 0; g < kGroups; ++g) neurons[g].mark_bad(marked, n + g * kLanes);
}

template <class C, int L>
TANDEM_INLINE void scan_blocks(const Currents<C>& currents, const Neuron<C>& a, int64_t begin, int64_t end) {
  Neuron<C> unmarked = a;
  unmarked.bad = nullptr;
  for (int64_t n = begin; n < end; n += kBlock) {
    const int64_t size = std::min(kBlock, end - n);
    const auto scan = [&](auto timing, auto residual, auto gated) TANDEM_INLINE_LAMBDA {
      scan_block<C, L, decltype(timing)::value, decltype(residual)::value, decltype(gated)::value>(currents, unmarked,
                                                                                                   a, n, size);
    };
    using Step = std::integral_constant<Timing, Timing::kStep>;
    if (a.timing == Timing::kWindow) {
      scan(std::integral_constant<Timing, Timing::kWindow>(), std::true_type(), std::true_type());
    } else if (has_residual(a)) {
      scan(Step(), std::true_type(), std::true_type());
    } else {
      is_gated(a) ? scan(Step(), std::false_type(), std::true_type())
                  : scan(Step(), std::false_type(), std::false_type());
    }
  }
}

template <class C>
void scan_all(const Currents<C>& currents, const Neuron<C>& a, ParallelFor parallel) {
  const int64_t blocks = (a.neurons + kBlock - 1) / kBlock;
  constexpr int64_t grain = 256;  // 16 K neurons are worth a thread
  parallel_ranges(parallel, blocks, grain, [&](int64_t begin, int64_t end) {
    at_level([&](auto lanes) TANDEM_INLINE_LAMBDA {
      constexpr int L = lanes * int{sizeof(float)} / int{sizeof(C)};
      scan_blocks<C, L>(currents, a, begin * kBlock, std::min(end * kBlock, a.neurons));
    });
  });
}

}  // namespace

void if_scan(const void* currents, DType dtype, Source source, const Neuron<float>& args, ParallelFor parallel) {
  scan_all(Currents<float>{currents, dtype, source, args.neurons}, args, parallel);
}

void if_scan(const void* currents, DType dtype, Source source, const Neuron<double>& args, ParallelFor parallel) {
  scan_all(Currents<double>{currents, dtype, source, args.neurons}, args, parallel);
}

}  // namespace tandem::cpu
