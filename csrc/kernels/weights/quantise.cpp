#include "quantise.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "units.h"

namespace tandem::cpu {

namespace {

constexpr int64_t kAtOnce = 64;
constexpr float kWhole = 12582912.f;  // 3 * 2^22: adding it rounds to an integer
constexpr int kParts = 5376;          // of the largest magnitude; every share of a step is a whole number of them
constexpr float kShares[] = {1.f, 0.75f, 0.5f, 0.375f, 0.25f};

// Adds to errors[c] the squared errors of `size` weights, a multiple of L, with share c of the step.
template <int L>
TANDEM_INLINE void add_errors(const float* weights, int64_t size, float step, int largest, int64_t* errors) {
  const auto whole = static_cast<float>(kParts / largest);
  const auto most = Vec<float, L>{} + static_cast<float>(largest);
  for (int64_t k = 0; k < size;) {
    Int<L> sums[std::size(kShares)]{};
    for (const int64_t end = std::min(size, k + kAtOnce * L); k < end; k += L) {  // kAtOnce * kParts^2 < 2^31
      const auto magnitude = reinterpret_cast<Int<L>>(load_floats<L>(weights + k)) & 0x7fffffff;
      const auto parts = reinterpret_cast<Vec<float, L>>(magnitude) / step * whole + kWhole - kWhole;
      for (size_t c = 0; c < std::size(kShares); ++c) {
        const float own = whole * kShares[c];
        const auto near = parts * (1.f / own);
        const auto q = (near < most ? near : most) + kWhole - kWhole;
        const auto left = __builtin_convertvector(parts - own * q, Int<L>);
        sums[c] += left * left;
      }
    }
    for (size_t c = 0; c < std::size(kShares); ++c) {
      for (int i = 0; i < L; ++i) errors[c] += sums[c][i];
    }
  }
}

// The share of the step with the least squared error. Errors are integers, so that the order of a sum does not matter.
template <int L>
TANDEM_INLINE float best_share(const float* weights, int64_t size, float step, int largest) {
  int64_t errors[std::size(kShares)]{};
  const int64_t even = size / L * L;
  add_errors<L>(weights, even, step, largest, errors);
  add_errors<1>(weights + even, size - even, step, largest, errors);
  return kShares[std::min_element(std::begin(errors), std::end(errors)) - errors];
}

// Rounds `size` quotients. Returns whether the results would be the same if the quotients were off by a few units in
// the last place. Without branches, so that the loops are vectorised.
template <class Quotient>
TANDEM_INLINE bool round_quotients(int64_t size, float largest, int8_t* q, const Quotient& quotient) {
  int32_t farthest = 0;  // largest distance to the rounded value, by its bits; NaN exceeds all others
  for (int64_t k = 0; k < size; ++k) {
    const float x = quotient(k);
    const float above = x > -largest ? x : -largest;
    const float within = above < largest ? above : largest;
    const float whole = (within + kWhole) - kWhole;
    const auto distance = static_cast<int32_t>(bits_of_float(x - whole) & 0x7fffffff);
    farthest = distance > farthest ? distance : farthest;
    q[k] = static_cast<int8_t>(static_cast<int32_t>(whole));
  }
  return farthest <= static_cast<int32_t>(bits_of_float(0.4999f));
}

TANDEM_CPU_KERNEL(quantise_rows,
                  (const float* weights, int64_t size, int largest, int8_t* q, float* steps, int64_t begin,
                   int64_t end),
                  (weights, size, largest, q, steps, begin, end)) {
  for (int64_t row = begin; row < end; ++row) {
    const float* w = weights + row * size;
    const float peak = measure_magnitudes<L>(w, size, 0.f).largest, most = static_cast<float>(largest);
    float step = peak / most == 0 ? 1.f : peak / most;
    if (largest <= 3 && step < std::numeric_limits<float>::infinity()) step *= best_share<L>(w, size, step, largest);
    const float inverse = 1.f / step;  // a division takes ten times as long as a product
    steps[row] = step;
    for (int64_t k = 0; k < size; k += kAtOnce) {
      const int64_t block = std::min(kAtOnce, size - k);
      int8_t* to = q + row * size + k;
      const auto by_product = [&](int64_t i) TANDEM_INLINE_LAMBDA { return w[k + i] * inverse; };
      const auto by_division = [&](int64_t i) TANDEM_INLINE_LAMBDA { return w[k + i] / step; };
      const bool sure = block == kAtOnce ? round_quotients(kAtOnce, most, to, by_product)  // a constant trip count
                                         : round_quotients(block, most, to, by_product);
      if (!sure) round_quotients(block, most, to, by_division);
    }
  }
}

}  // namespace

void quantise(const float* weights, int64_t rows, int64_t size, int largest, int8_t* q, float* step,
              ParallelFor parallel) {
  constexpr int64_t kGrain = 1 << 16;  // weights worth a thread
  parallel_ranges(parallel, rows, 1 + kGrain / (size + 1),
                  [&](int64_t begin, int64_t end) { quantise_rows(weights, size, largest, q, step, begin, end); });
}

}  // namespace tandem::cpu
