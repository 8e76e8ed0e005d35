#include "bits.h"

#include <algorithm>

#include "../neuron/floats.h"
#include "../neuron/lanes.h"

namespace tandem::cpu {

namespace {

constexpr int64_t kGrain = 16384;

// nonzero: the bits that make an element a spike; all but the sign of a float.
template <class E>
TANDEM_INLINE void pack_elements(const E* spikes, E nonzero, int32_t T, int64_t neurons, uint8_t* planes, int64_t begin,
                                 int64_t end) {
  constexpr int64_t block = 256;
  for (int64_t n = begin; n < end; n += block) {
    const int64_t lanes = std::min(block, end - n);
    for (int p = 0; p * 8 < T; ++p) {
      uint8_t bytes[block] = {};
      for (int t = p * 8; t < std::min(p * 8 + 8, T); ++t) {
        const E* row = spikes + t * neurons + n;
        for (int64_t i = 0; i < lanes; ++i) bytes[i] |= static_cast<uint8_t>(((row[i] & nonzero) != 0) << (t & 7));
      }
      std::copy_n(bytes, lanes, planes + p * neurons + n);
    }
  }
}

template <class E>
TANDEM_INLINE void unpack_elements(const uint8_t* planes, int32_t T, int64_t neurons, E* spikes, E one, int64_t begin,
                                   int64_t end) {
  for (int t = 0; t < T; ++t) {
    const uint8_t* plane = planes + (t / 8) * neurons;
    E* row = spikes + t * neurons;
    const uint8_t bit = static_cast<uint8_t>(1u << (t & 7));
    for (int64_t n = begin; n < end; ++n) row[n] = (plane[n] & bit) != 0 ? one : E{0};
  }
}

// Calls f(E{}) for the unsigned type E of `size` bytes.
template <class F>
TANDEM_INLINE void of_size(int32_t size, const F& f) {
  if (size == 1) return f(uint8_t{});
  if (size == 2) return f(uint16_t{});
  if (size == 4) return f(uint32_t{});
  f(uint64_t{});
}

// Ranges start at multiples of 64 neurons, so that no two threads share a byte of the mask or a cache line of bytes.
// f(begin, end, lanes) gets the lanes of at_level(), too.
template <class F>
void over_neurons(ParallelFor parallel, int64_t neurons, const F& f) {
  constexpr int64_t block = 64;
  parallel_ranges(parallel, (neurons + block - 1) / block, kGrain / block, [&](int64_t first, int64_t last) {
    const int64_t begin = first * block, end = std::min(last * block, neurons);
    at_level([=](auto level) TANDEM_INLINE_LAMBDA { f(begin, end, level); });
  });
}

}  // namespace

void pack(const void* spikes, int32_t element_size, bool is_float, int32_t T, int64_t neurons, uint8_t* planes,
          ParallelFor parallel) {
  const uint64_t all = ~0ull >> (64 - 8 * element_size);
  const uint64_t nonzero = is_float ? all >> 1 : all;
  over_neurons(parallel, neurons, [=](int64_t begin, int64_t end, auto) TANDEM_INLINE_LAMBDA {
    of_size(element_size, [=](auto zero) TANDEM_INLINE_LAMBDA {
      using E = decltype(zero);
      pack_elements(static_cast<const E*>(spikes), static_cast<E>(nonzero), T, neurons, planes, begin, end);
    });
  });
}

void unpack(const uint8_t* planes, int32_t T, int64_t neurons, void* spikes, int32_t element_size, uint64_t one,
            ParallelFor parallel) {
  over_neurons(parallel, neurons, [=](int64_t begin, int64_t end, auto) TANDEM_INLINE_LAMBDA {
    of_size(element_size, [=](auto zero) TANDEM_INLINE_LAMBDA {
      using E = decltype(zero);
      unpack_elements(planes, T, neurons, static_cast<E*>(spikes), static_cast<E>(one), begin, end);
    });
  });
}

void counts(const uint8_t* planes, int32_t P, int64_t neurons, void* counts, DType dtype, ParallelFor parallel) {
  over_neurons(parallel, neurons, [=](int64_t begin, int64_t end, auto level) TANDEM_INLINE_LAMBDA {
    for (int64_t n = begin; n < end; n += kLanes) {
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, end - n));
      CountLanes count{};
      for (int p = 0; p < P; ++p) {
        count += convert<uint16_t, uint8_t, kLanes>(popcount(load_first<ByteLanes>(planes + p * neurons + n, lanes)));
      }
      store_counts<level>(counts, dtype, n, count, lanes);
    }
  });
}

void count_bytes(const uint8_t* planes, int32_t P, int64_t neurons, uint8_t* counts, ParallelFor parallel) {
  over_neurons(parallel, neurons, [=](int64_t begin, int64_t end, auto) TANDEM_INLINE_LAMBDA {
    for (int64_t n = begin; n < end; n += kLanes) {
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, end - n));
      ByteLanes count{};
      for (int p = 0; p < P; ++p) count += popcount(load_first<ByteLanes>(planes + p * neurons + n, lanes));
      store_first(counts + n, count, lanes);
    }
  });
}

uint8_t largest_byte(const uint8_t* bytes, int64_t n) {
  uint8_t most = 0;
  at_level([=, &most](auto) TANDEM_INLINE_LAMBDA {
    constexpr int kAtOnce = 64;
    Bytes<kAtOnce> largest{};
    for (int64_t i = 0; i < n; i += kAtOnce) {
      const auto x = load_first<Bytes<kAtOnce>>(bytes + i, static_cast<int>(std::min<int64_t>(kAtOnce, n - i)));
      largest = x > largest ? x : largest;
    }
    for (int i = 0; i < kAtOnce; ++i) most = std::max(most, largest[i]);
  });
  return most;
}

void burst_planes(const uint8_t* counts, int32_t T, int64_t neurons, uint8_t* planes, ParallelFor parallel) {
  over_neurons(parallel, neurons, [=](int64_t begin, int64_t end, auto) TANDEM_INLINE_LAMBDA {
    for (int p = 0; p * 8 < T; ++p) {
      const int most = std::min(T - 8 * p, 8), before = 8 * p;
      uint8_t* plane = planes + p * neurons;
      for (int64_t n = begin; n < end; ++n) {
        plane[n] = static_cast<uint8_t>((1 << std::clamp(counts[n] - before, 0, most)) - 1);
      }
    }
  });
}

void gate_grad(const void* grad, DType dtype, const uint8_t* mask, double threshold, int64_t neurons, void* grad_z,
               ParallelFor parallel) {
  constexpr int64_t kBlock = 512;
  const float theta = static_cast<float>(threshold);
  over_neurons(parallel, neurons, [=](int64_t begin, int64_t end, auto) TANDEM_INLINE_LAMBDA {
    of_type(dtype, [=](auto zero) TANDEM_INLINE_LAMBDA {
      using E = decltype(zero);
      float gated[kBlock];
      for (int64_t n = begin; n < end; n += kBlock) {
        const int64_t size = std::min(kBlock, end - n);
        gate_elements(static_cast<const E*>(grad) + n, mask + n / 8, gated, 0, size,
                      [theta](const auto& g) TANDEM_INLINE_LAMBDA { return g / theta; });
        for (int64_t i = 0; i < size; ++i) static_cast<E*>(grad_z)[n + i] = from_float<E>(gated[i]);
      }
    });
  });
}

}  // namespace tandem::cpu
