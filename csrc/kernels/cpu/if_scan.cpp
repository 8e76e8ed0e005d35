#include "../if_scan.h"

#include <type_traits>

#include "lanes.h"

namespace tandem::cpu {

namespace {

struct BFloat16 {
  uint16_t bits;
};
using Float16 = _Float16;

template <class C, class In>
TANDEM_INLINE Vec<C> load_currents(const In* p, int lanes) {
  if constexpr (std::is_same_v<In, C>) {
    return load<Vec<C>>(p, lanes);
  } else if constexpr (std::is_same_v<In, BFloat16>) {
    typedef uint16_t Half __attribute__((vector_size(32)));
    typedef uint32_t Word __attribute__((vector_size(64)));
    return reinterpret_cast<Vec<float>>(__builtin_convertvector(load<Half>(p, lanes), Word) << 16);
  } else {
    Vec<C> out{};
    for (int i = 0; i < lanes; ++i) out[i] = static_cast<C>(p[i]);
    return out;
  }
}

// Groups of sixteen that run side by side, so that each step streams whole pages and hides latencies.
constexpr int kGroups = 4;
constexpr int64_t kBlock = kGroups * kLanes;

template <class C, class In, Source source, int groups>
TANDEM_INLINE void scan_neurons(const In* currents, const NeuronArgs<C>& a, int64_t n, int lanes) {
  NeuronLanes<C> neurons[groups];
  Vec<C> held[groups];
  for (int g = 0; g < groups; ++g) {
    neurons[g].begin(a, n + g * kLanes);
    if (source != Source::kTrain) {
      held[g] = load_currents<C>(currents + n + g * kLanes, lanes);
      held[g] = input_current(held[g], neurons[g].scale, neurons[g].k);
    }
  }
  const bool has_residual = a.residual_planes != nullptr || a.residual_currents != nullptr;
  const auto run_plane = [&](int p, int first, int last) __attribute__((always_inline)) {
    Int<C> plane[groups];
    ByteLanes residual_plane[groups];
    for (int g = 0; g < groups; ++g) {
      plane[g] = Int<C>{};
      residual_plane[g] = a.residual_planes != nullptr
                              ? load<ByteLanes>(a.residual_planes + p * a.neurons + n + g * kLanes, lanes)
                              : ByteLanes{};
    }
#pragma GCC unroll 8
    for (int t = first; t < last; ++t) {
#pragma GCC unroll 4
      for (int g = 0; g < groups; ++g) {
        NeuronLanes<C>& neuron = neurons[g];
        const int64_t at = n + g * kLanes;
        Vec<C> current;
        if constexpr (source == Source::kTrain) {
          current = load_currents<C>(currents + t * a.neurons + at, lanes);
          current = input_current(current, neuron.scale, neuron.k);
        } else {
          current = source == Source::kImpulse && t > 0 ? neuron.k : held[g];
        }
        if (has_residual) current = rounded_add(current, neuron.residual(a, at, t, residual_plane[g], lanes));
        neuron.advance(a, current, t, plane[g]);
      }
    }
    for (int g = 0; g < groups; ++g) neurons[g].end_plane(a, n + g * kLanes, p, plane[g], lanes);
  };
  int p = 0;
  for (; (p + 1) * 8 <= a.T; ++p) run_plane(p, p * 8, p * 8 + 8);
  if (p * 8 < a.T) run_plane(p, p * 8, a.T);
  for (int g = 0; g < groups; ++g) neurons[g].end(a, n + g * kLanes, lanes);
}

template <class C, class In, Source source>
TANDEM_INLINE void scan_range_body(const In* currents, const NeuronArgs<C>& a, int64_t begin, int64_t end) {
  int64_t n = begin;
  for (; n + kBlock <= end; n += kBlock) scan_neurons<C, In, source, kGroups>(currents, a, n, kLanes);
  for (; n + kLanes <= end; n += kLanes) scan_neurons<C, In, source, 1>(currents, a, n, kLanes);
  if (n < end) scan_neurons<C, In, source, 1>(currents, a, n, static_cast<int>(end - n));
}

template <class C, class In>
TANDEM_INLINE void scan_typed_body(const In* currents, Source source, const NeuronArgs<C>& a, int64_t begin,
                                   int64_t end) {
  switch (source) {
    case Source::kTrain:
      return scan_range_body<C, In, Source::kTrain>(currents, a, begin, end);
    case Source::kConstant:
      return scan_range_body<C, In, Source::kConstant>(currents, a, begin, end);
    case Source::kImpulse:
      return scan_range_body<C, In, Source::kImpulse>(currents, a, begin, end);
  }
}

#define TANDEM_SCAN(name, C, In)                                                                              \
  TANDEM_INLINE void name##_body(const In* currents, Source source, const NeuronArgs<C>& a, int64_t begin,    \
                                 int64_t end) {                                                               \
    scan_typed_body<C, In>(currents, source, a, begin, end);                                                  \
  }                                                                                                           \
  TANDEM_CPU_KERNEL(name, (const In* currents, Source source, const NeuronArgs<C>& a, int64_t begin, int64_t end), \
                    (currents, source, a, begin, end))

TANDEM_SCAN(scan_float32, float, float)
TANDEM_SCAN(scan_bfloat16, float, BFloat16)
TANDEM_SCAN(scan_float16, float, Float16)
TANDEM_SCAN(scan_float64, double, double)

template <class C, class In>
void run(void (*kernel)(const In*, Source, const NeuronArgs<C>&, int64_t, int64_t), const void* currents,
         Source source, const NeuronArgs<C>& args, ParallelFor parallel) {
  const int64_t blocks = (args.neurons + kBlock - 1) / kBlock;
  parallel_ranges(parallel, blocks, 256, [&](int64_t begin, int64_t end) {
    const int64_t last = end * kBlock < args.neurons ? end * kBlock : args.neurons;
    kernel(static_cast<const In*>(currents), source, args, begin * kBlock, last);
  });
}

}  // namespace

void if_scan(const void* currents, DType dtype, Source source, const NeuronArgs<float>& args, ParallelFor parallel) {
  switch (dtype) {
    case DType::kBFloat16:
      return run(scan_bfloat16, currents, source, args, parallel);
    case DType::kFloat16:
      return run(scan_float16, currents, source, args, parallel);
    default:
      return run(scan_float32, currents, source, args, parallel);
  }
}

void if_scan(const void* currents, DType, Source source, const NeuronArgs<double>& args, ParallelFor parallel) {
  run(scan_float64, currents, source, args, parallel);
}

}  // namespace tandem::cpu
