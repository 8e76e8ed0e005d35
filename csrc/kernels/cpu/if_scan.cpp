#include "../if_scan.h"

#include <algorithm>
#include <vector>

#include "lanes.h"

namespace tandem::cpu {

namespace {

// Neurons that run side by side: each step then streams four cache lines, and four chains hide the latencies.
constexpr int kGroups = 4;
constexpr int64_t kBlock = kGroups * kLanes;
// T streams, each a few cache lines at a time, are more than the hardware prefetcher follows: blocks to fetch ahead.
constexpr int kAhead = 8;

template <class Half>
TANDEM_INLINE void widen(const Half* in, float* out) {
  for (int i = 0; i < kBlock; ++i) out[i] = to_float(in[i]);
}

// Where the product y[t] of a block of neurons lies.
template <class C>
struct Currents {
  const void* data;
  DType dtype;
  Source source;
  int64_t neurons;

  // y[t] of neurons [n, n + kBlock); `wide` is scratch for the types that are widened first.
  TANDEM_INLINE const C* row(int t, int64_t n, C* wide) const {
    const int64_t offset = (source == Source::kTrain ? t * neurons : 0) + n;
    if (source == Source::kImpulse && t > 0) {
      std::fill(wide, wide + kBlock, C(0));
      return wide;
    }
    if constexpr (sizeof(C) == 4) {
      if (dtype == DType::kBFloat16) widen(static_cast<const BFloat16*>(data) + offset, wide);
      if (dtype == DType::kFloat16) widen(static_cast<const Float16*>(data) + offset, wide);
      if (dtype != DType::kFloat32) return wide;
    }
    return static_cast<const C*>(data) + offset;
  }
};

template <class C, bool has_residual>
TANDEM_INLINE void scan_block(const Currents<C>& currents, const NeuronArgs<C>& a, int64_t n) {
  NeuronLanes<C> neurons[kGroups];
  for (int g = 0; g < kGroups; ++g) neurons[g].begin(a, n + g * kLanes);
  for (int p = 0; p * 8 < a.T; ++p) {
    const int first = p * 8, last = std::min(first + 8, a.T);
    Int<C> plane[kGroups];
    Int<C> residual[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      plane[g] = Int<C>{};
      residual[g] = has_residual ? neurons[g].residual_plane(a, n + g * kLanes, p) : Int<C>{};
    }
    for (int t = first; t < last; ++t) {
      C wide[kBlock];
      const C* y = currents.row(t, n, wide);
      for (int i = 0; i < kBlock; i += 64 / static_cast<int>(sizeof(C))) __builtin_prefetch(y + kAhead * kBlock + i);
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
        Vec<C> current = input_current(load<Vec<C>>(y + g * kLanes), neurons[g].scale, neurons[g].k);
        if constexpr (has_residual) {
          current = rounded_add(current, neurons[g].residual(a, n + g * kLanes, t, residual[g]));
        }
        neurons[g].advance(a, current, t, plane[g]);
      }
    }
    for (int g = 0; g < kGroups; ++g) neurons[g].end_plane(a, n + g * kLanes, p, plane[g]);
  }
  for (int g = 0; g < kGroups; ++g) neurons[g].end(a, n + g * kLanes);
}

template <class C>
TANDEM_INLINE void scan_blocks(const Currents<C>& currents, const NeuronArgs<C>& a, int64_t begin, int64_t end) {
  const bool has_residual = a.residual_planes != nullptr || a.residual_currents != nullptr;
  for (int64_t n = begin; n < end; n += kBlock) {
    if (has_residual) {
      scan_block<C, true>(currents, a, n);
    } else {
      scan_block<C, false>(currents, a, n);
    }
  }
}

TANDEM_INLINE void scan_float_body(const Currents<float>& y, const NeuronArgs<float>& a, int64_t begin, int64_t end) {
  scan_blocks(y, a, begin, end);
}
TANDEM_INLINE void scan_double_body(const Currents<double>& y, const NeuronArgs<double>& a, int64_t begin,
                                    int64_t end) {
  scan_blocks(y, a, begin, end);
}
TANDEM_CPU_KERNEL(scan_float, (const Currents<float>& y, const NeuronArgs<float>& a, int64_t begin, int64_t end),
                  (y, a, begin, end))
TANDEM_CPU_KERNEL(scan_double, (const Currents<double>& y, const NeuronArgs<double>& a, int64_t begin, int64_t end),
                  (y, a, begin, end))

void scan(const Currents<float>& y, const NeuronArgs<float>& a, int64_t begin, int64_t end) {
  scan_float(y, a, begin, end);
}
void scan(const Currents<double>& y, const NeuronArgs<double>& a, int64_t begin, int64_t end) {
  scan_double(y, a, begin, end);
}

// The last `lanes` < kBlock neurons, copied into a block of their own so that the kernel knows only whole blocks.
template <class C>
void scan_tail(const Currents<C>& currents, const NeuronArgs<C>& a, int64_t n, int lanes) {
  const int P = (a.T + 7) / 8;
  const auto rows = [&](const auto* source, int count) {
    std::vector<std::remove_const_t<std::remove_pointer_t<decltype(source)>>> block;
    if (source == nullptr) return block;
    block.resize(static_cast<size_t>(count) * kBlock);
    for (int r = 0; r < count; ++r) std::copy_n(source + r * a.neurons + n, lanes, block.data() + r * kBlock);
    return block;
  };
  const auto periodic = [&](const C* source, int64_t period) {
    std::vector<C> block;
    if (source == nullptr) return block;
    block.resize(kBlock);
    for (int i = 0; i < lanes; ++i) block[i] = source[(n + i) % period];
    return block;
  };
  const auto pointer = [](const auto& block) { return block.empty() ? nullptr : block.data(); };

  const int current_rows = currents.source == Source::kTrain ? a.T : 1;
  std::vector<C> wide;
  std::vector<uint16_t> narrow;
  Currents<C> y{nullptr, currents.dtype, currents.source, kBlock};
  if (currents.dtype == DType::kBFloat16 || currents.dtype == DType::kFloat16) {
    narrow = rows(static_cast<const uint16_t*>(currents.data), current_rows);
    y.data = narrow.data();
  } else {
    wide = rows(static_cast<const C*>(currents.data), current_rows);
    y.data = wide.data();
  }

  const auto scale = periodic(a.scale, a.channels), shift = periodic(a.shift, a.channels);
  const auto residual_scale = periodic(a.residual_scale, a.channels), v_init = periodic(a.v_init, a.v_init_size);
  const auto residual_planes = rows(a.residual_planes, P);
  const auto residual_currents = rows(a.residual_currents, a.T);
  std::vector<uint8_t> planes(static_cast<size_t>(P) * kBlock);
  std::vector<C> v(kBlock);
  alignas(64) uint8_t counts[kBlock * sizeof(double)], mask[kBlock / 8];

  NeuronArgs<C> block = a;
  block.neurons = block.channels = block.v_init_size = kBlock;
  block.scale = pointer(scale);
  block.shift = pointer(shift);
  block.residual_scale = pointer(residual_scale);
  block.v_init = pointer(v_init);
  block.residual_planes = pointer(residual_planes);
  block.residual_currents = pointer(residual_currents);
  block.planes = planes.data();
  block.counts = a.counts != nullptr ? counts : nullptr;
  block.mask = a.mask != nullptr ? mask : nullptr;
  block.v = a.v != nullptr ? v.data() : nullptr;
  scan(y, block, 0, kBlock);

  for (int p = 0; p < P; ++p) std::copy_n(planes.data() + p * kBlock, lanes, a.planes + p * a.neurons + n);
  if (a.counts != nullptr) {
    const size_t size = size_of(a.counts_dtype);
    std::memcpy(static_cast<char*>(a.counts) + n * size, counts, lanes * size);
  }
  if (a.mask != nullptr) {
    if (lanes % 8 != 0) mask[lanes / 8] &= static_cast<uint8_t>((1u << lanes % 8) - 1);
    std::copy_n(mask, (lanes + 7) / 8, a.mask + n / 8);
  }
  if (a.v != nullptr) std::copy_n(v.data(), lanes, a.v + n);
}

template <class C>
void scan_all(const Currents<C>& currents, const NeuronArgs<C>& a, ParallelFor parallel) {
  const int64_t blocks = a.neurons / kBlock;
  constexpr int64_t grain = 256;  // 16 K neurons are worth a thread
  parallel_ranges(parallel, blocks, grain,
                  [&](int64_t begin, int64_t end) { scan(currents, a, begin * kBlock, end * kBlock); });
  const int64_t done = blocks * kBlock;
  if (done < a.neurons) scan_tail(currents, a, done, static_cast<int>(a.neurons - done));
}

}  // namespace

void if_scan(const void* currents, DType dtype, Source source, const NeuronArgs<float>& args, ParallelFor parallel) {
  scan_all(Currents<float>{currents, dtype, source, args.neurons}, args, parallel);
}

void if_scan(const void* currents, DType dtype, Source source, const NeuronArgs<double>& args, ParallelFor parallel) {
  scan_all(Currents<double>{currents, dtype, source, args.neurons}, args, parallel);
}

}  // namespace tandem::cpu
