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
  if (size == kBlock) {
    for (int64_t i = 0; i < kBlock; ++i) out[i] = to_float(in[i]);
  } else {
    for (int64_t i = 0; i < size; ++i) out[i] = to_float(in[i]);
  }
}

// The products y[t] that drive the neurons.
struct Currents {
  const void* data;
  DType dtype;
  Source source;
  int64_t neurons;

  // y[t] of neurons [n, n + size), size <= kBlock. `wide` [kBlock] is scratch for what cannot be read in place.
  TANDEM_INLINE const float* row(int t, int64_t n, int64_t size, float* wide) const {
    const int64_t offset = (source == Source::kTrain ? t * neurons : 0) + n;
    if (source == Source::kImpulse && t > 0) {
      std::fill(wide, wide + kBlock, 0.f);
      return wide;
    }
    if (dtype == DType::kBFloat16) widen(static_cast<const BFloat16*>(data) + offset, size, wide);
    if (dtype == DType::kFloat16) widen(static_cast<const Float16*>(data) + offset, size, wide);
    if (dtype != DType::kFloat32) return wide;
    const float* row = static_cast<const float*>(data) + offset;
    if (__builtin_expect(size == kBlock, 1)) return row;
    return std::copy(row, row + size, wide) - size;
  }
};

// The window's product u [kBlock] of a block.
TANDEM_INLINE void sum_block(const Currents& currents, const Neuron& a, int64_t n, int64_t size, float* u) {
  float wide[kBlock];
  const float* first = currents.row(0, n, size, wide);
  std::copy(first, first + kBlock, u);
  if (currents.source == Source::kConstant) {
    for (int i = 0; i < kBlock; ++i) u[i] = first[i] * static_cast<float>(a.T);
  }
  for (int t = 1; currents.source == Source::kTrain && t < a.T; ++t) {
    const float* y = currents.row(t, n, size, wide);
    for (int i = 0; i < kBlock; ++i) u[i] += y[i];
  }
}

// Groups that are fired at once: as many as there are registers for.
template <int L>
constexpr int kAtOnce = L > 4 ? L / 4 : 1;

template <int L, bool whole>
TANDEM_INLINE void scan_steps(const Currents& currents, const Neuron& a, int64_t n, int64_t size,
                              NeuronLanes<L, whole>* neurons) {
  for (int p = 0; p * 8 < a.T; ++p) {
    float wide[8][kBlock];
    const float* y[8];
    for (int t = 0; t < 8 && p * 8 + t < a.T; ++t) {
      const bool same = t > 0 && currents.source == Source::kConstant;
      y[t] = same ? y[0] : currents.row(p * 8 + t, n, size, wide[t]);
    }
    for (int g = 0; g < kGroups; g += kAtOnce<L>) {
      fire_plane<kAtOnce<L>>(a, neurons + g, n + g * kLanes, p, [&](int t, int s) TANDEM_INLINE_LAMBDA {
        const float* product = y[t] + g * kLanes + s * L;
        if (s * L % 16 == 0) __builtin_prefetch(product + kAhead * kBlock);
        return load<Vec<float, L>>(product);
      });
    }
  }
  if (!a.is_gated()) return;
  float u[kBlock];
  sum_block(currents, a, n, size, u);
  for (int g = 0; g < kGroups; ++g) {
    for (int i = 0; i < kLanes / L; ++i) neurons[g].sum_up(a, i, load<Vec<float, L>>(u + g * kLanes + i * L));
  }
}

template <int L, bool whole>
TANDEM_INLINE void scan_window(const Currents& currents, const Neuron& a, int64_t n, int64_t size,
                               NeuronLanes<L, whole>* neurons) {
  float u[kBlock];
  sum_block(currents, a, n, size, u);
  for (int g = 0; g < kGroups; g += kAtOnce<L>) {
    fire_windows<kAtOnce<L>>(a, neurons + g, n + g * kLanes,
                             [&](int s) TANDEM_INLINE_LAMBDA { return load<Vec<float, L>>(u + g * kLanes + s * L); });
  }
}

// The blocks of [begin, end), `stride` apart: all with the channels of the first. A single test covers the potentials
// of a block; only if it fails are the samples marked.
template <int L, bool whole>
TANDEM_INLINE void scan_blocks(const Currents& currents, const Neuron& marked, int64_t begin, int64_t end,
                               int64_t stride) {
  Neuron a = marked;
  a.bad = nullptr;
  NeuronLanes<L, whole> neurons[kGroups];
  for (int64_t n = begin; n < end; n += stride) {
    const int64_t size = whole ? kBlock : end - n;
    for (int g = 0; g < kGroups; ++g) {
      const auto lanes = static_cast<int>(std::clamp<int64_t>(size - g * kLanes, 0, kLanes));
      n == begin ? neurons[g].begin(a, n + g * kLanes, lanes) : neurons[g].start(a, n + g * kLanes);
    }
    a.timing == Timing::kWindow ? scan_window(currents, a, n, size, neurons)
                                : scan_steps(currents, a, n, size, neurons);
    Vec<float, L> sum{};
    for (int g = 0; g < kGroups; ++g) {
      neurons[g].end(a, n + g * kLanes);
      sum += neurons[g].sum();
    }
    if (__builtin_expect(!any_lost<L>(sum), 1)) continue;
    for (int g = 0; g < kGroups; ++g) neurons[g].mark_bad(marked, n + g * kLanes);
  }
}

// With window timing to read the settings of channels takes longer than to fire: blocks with the same channels follow
// each other, of some rows at a time, which stay in the caches of data and addresses.
template <int L>
TANDEM_INLINE void scan(const Currents& currents, const Neuron& a, int64_t begin, int64_t end) {
  constexpr int64_t kRows = 32;
  const bool by_rows = a.timing == Timing::kWindow && a.channels % kBlock == 0;
  const int64_t stride = by_rows ? a.channels : kBlock, span = by_rows ? kRows * stride : kBlock;
  for (int64_t from = begin; from < end; from += span) {
    const int64_t until = std::min(from + span, end), first = std::min(from + stride, until);
    for (int64_t n = from; n < first; n += kBlock) {
      n + kBlock > until ? scan_blocks<L, false>(currents, a, n, until, stride)
                         : scan_blocks<L, true>(currents, a, n, until, stride);
    }
  }
}

}  // namespace

void if_scan(const void* currents, DType dtype, Source source, const Neuron& args, ParallelFor parallel) {
  const Currents from{currents, dtype, source, args.neurons};
  const int64_t blocks = (args.neurons + kBlock - 1) / kBlock;
  constexpr int64_t grain = 256;  // 16 K neurons are worth a thread
  parallel_ranges(parallel, blocks, grain, [&](int64_t begin, int64_t end) {
    at_level([&](auto lanes) TANDEM_INLINE_LAMBDA {
      scan<lanes>(from, args, begin * kBlock, std::min(end * kBlock, args.neurons));
    });
  });
}

}  // namespace tandem::cpu
