#include "batch_norm.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "../cpu/vectors.h"
#include "../neuron/floats.h"

namespace tandem::cpu {

namespace {

// Rows are gated eight at a time: eight rows begin at a whole byte of the mask.
constexpr int64_t kRows = 8;

// An element, or H of them, as double.
template <int H, class X>
TANDEM_INLINE auto widen(const X& x) {
  if constexpr (std::is_arithmetic_v<X>) return static_cast<double>(x);
  if constexpr (!std::is_arithmetic_v<X>) return convert<double, float, H>(x);
}

// Sums two terms of every row per channel, for sixteen channels at a time, in registers of H doubles. add(x, y, sum,
// other) adds the terms of an element x of a and y of b, arrays [rows, channels].
template <int H, class Add>
TANDEM_INLINE void add_rows(const float* a, const float* b, int64_t rows, int64_t channels, double* sum, double* other,
                            const Add& add) {
  constexpr int S = kLanes / H;
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    Vec<double, H> total[S], others[S];
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      total[s] = load<Vec<double, H>>(sum + c + s * H);
      others[s] = load<Vec<double, H>>(other + c + s * H);
    }
    for (int64_t r = 0; r < rows; ++r) {
      __builtin_prefetch(b + (r + kRows) * channels + c);  // the hardware does not follow these strides
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        const int64_t n = r * channels + c + s * H;
        add(load<Vec<float, H>>(a + n), load<Vec<float, H>>(b + n), total[s], others[s]);
      }
    }
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      store(sum + c + s * H, total[s]);
      store(other + c + s * H, others[s]);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = c; i < channels; ++i) {
      const int64_t n = r * channels + i;
      add(a[n], b[n], sum[i], other[i]);
    }
  }
}

template <int H>
TANDEM_INLINE void sum_rows(const float* u, float factor, int64_t rows, int64_t channels, double* sum,
                            double* squares) {
  add_rows<H>(u, u, rows, channels, sum, squares,
              [factor](const auto& x, const auto&, auto& total, auto& of_squares) TANDEM_INLINE_LAMBDA {
                const auto scaled = widen<H>(x * factor);
                total += scaled;
                of_squares += scaled * scaled;
              });
}

// The gradients of rows [first, first + rows), first a multiple of kRows; zero where the gate is closed.
TANDEM_INLINE void gate_rows(const BatchNormGrad& a, int64_t first, int64_t rows, float* gated) {
  const int64_t offset = first * a.channels, size = rows * a.channels;
  of_type(a.grad_dtype, [&](auto zero) TANDEM_INLINE_LAMBDA {
    gate_elements(static_cast<const decltype(zero)*>(a.grad) + offset, a.mask + offset / 8, gated, 0, size,
                  [](const auto& g) TANDEM_INLINE_LAMBDA { return g; });
  });
}

// The sums of g = threshold gz and of g u. `scratch` is for kRows rows, twice.
template <int H>
TANDEM_INLINE void sum_grads(const BatchNormGrad& a, int64_t begin, int64_t end, double* sum, double* sum_u,
                             float* scratch) {
  float *gated = scratch, *wide = scratch + kRows * a.channels;
  for (int64_t first = begin; first < end; first += kRows) {
    const int64_t rows = std::min(kRows, end - first);
    gate_rows(a, first, rows, gated);
    const float* u = floats(a.product, a.product_dtype, first * a.channels, rows * a.channels, wide);
    add_rows<H>(gated, u, rows, a.channels, sum, sum_u,
                [](const auto& g, const auto& u, auto& total, auto& total_u) TANDEM_INLINE_LAMBDA {
                  const auto wide = widen<H>(g);
                  total += wide;
                  total_u += wide * widen<H>(u);
                });
  }
}

// The coefficients of a channel's gradient: slope g - shift - (u - mean) tilt.
struct Channels {
  std::vector<float> slope, shift, tilt;
};

TANDEM_INLINE void write_grads(const BatchNormGrad& a, const Channels& n, int64_t begin, int64_t end, float* scratch) {
  const float *mean = a.mean, *slope = n.slope.data(), *shift = n.shift.data(), *tilt = n.tilt.data();
  const int64_t channels = a.channels;
  float *gated = scratch, *wide = scratch + kRows * channels;
  for (int64_t first = begin; first < end; first += kRows) {
    const int64_t rows = std::min(kRows, end - first), offset = first * channels, size = rows * channels;
    gate_rows(a, first, rows, gated);
    const float* product = floats(a.product, a.product_dtype, offset, size, wide);
    of_type(a.grad_dtype, [&](auto zero) TANDEM_INLINE_LAMBDA {
      using E = decltype(zero);
      for (int64_t r = 0; r < rows; ++r) {
        const float *g = gated + r * channels, *u = product + r * channels;
        E* __restrict__ out = static_cast<E*>(a.grad_product) + offset + r * channels;
        for (int64_t c = 0; c < channels; ++c) {
          out[c] = from_float<E>(slope[c] * g[c] - shift[c] - (u[c] - mean[c]) * tilt[c]);
        }
      }
    });
  }
}

// Runs body(first row, last row, first accumulator, second accumulator) on every slice of the rows, then adds the
// slices in order, so that the result does not depend on the number of threads.
template <class F>
void two_sums(int64_t rows, int64_t channels, double* first, double* second, ParallelFor parallel, const F& body) {
  constexpr int64_t kSlices = 16;
  const auto cut = [&](int64_t i) { return i == kSlices ? rows : rows * i / kSlices / kRows * kRows; };
  std::vector<double> partial(static_cast<size_t>(2 * kSlices * channels));
  parallel_ranges(parallel, kSlices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double* sums = partial.data() + 2 * i * channels;
      body(cut(i), cut(i + 1), sums, sums + channels);
    }
  });
  for (int64_t i = 0; i < kSlices; ++i) {
    const double* sums = partial.data() + 2 * i * channels;
    for (int64_t c = 0; c < channels; ++c) {
      first[c] += sums[c];
      second[c] += sums[channels + c];
    }
  }
}

}  // namespace

void batch_norm_statistics(const BatchNormStatistics& a, ParallelFor parallel) {
  std::vector<double> sum(a.channels), squares(a.channels);
  two_sums(a.rows, a.channels, sum.data(), squares.data(), parallel,
           [&](int64_t begin, int64_t end, double* first, double* second) {
             std::vector<float> wide(kRows * a.channels);
             at_level([&](auto lanes) TANDEM_INLINE_LAMBDA {
               for (int64_t row = begin; row < end; row += kRows) {
                 const int64_t rows = std::min(kRows, end - row);
                 const float* u = floats(a.product, a.product_dtype, row * a.channels, rows * a.channels, wide.data());
                 sum_rows<lanes / 2>(u, a.factor, rows, a.channels, first, second);
               }
             });
           });
  for (int64_t c = 0; c < a.channels; ++c) {
    moments(sum[c], squares[c], a.rows, a.mean[c], a.var[c]);
    const Normalised n = normalise(a.norm, c, a.mean[c], a.var[c]);
    a.scale[c] = n.scale;
    a.shift[c] = n.shift;
  }
}

void batch_norm_grad(const BatchNormGrad& a, ParallelFor parallel) {
  std::vector<double> sums(a.channels), sums_u(a.channels);
  two_sums(a.rows, a.channels, sums.data(), sums_u.data(), parallel,
           [&](int64_t begin, int64_t end, double* first, double* second) {
             std::vector<float> scratch(2 * kRows * a.channels);
             at_level([&](auto lanes)
                          TANDEM_INLINE_LAMBDA { sum_grads<lanes / 2>(a, begin, end, first, second, scratch.data()); });
           });
  Channels n{std::vector<float>(a.channels), std::vector<float>(a.channels), std::vector<float>(a.channels)};
  const double threshold = a.threshold, rows = static_cast<double>(a.rows);
  for (int64_t c = 0; c < a.channels; ++c) {
    const Normalised norm = normalise(a.norm, c, a.mean[c], a.var[c]);
    const double scale = norm.scale, spread = static_cast<double>(norm.gain) * norm.rstd;
    const double beta = sums[c] / threshold, gamma = (sums_u[c] - a.mean[c] * sums[c]) / threshold * spread;
    a.grad_beta[c] = static_cast<float>(beta);
    a.grad_gamma[c] = static_cast<float>(gamma);
    n.slope[c] = static_cast<float>(scale / threshold);
    n.shift[c] = static_cast<float>(scale * beta / rows);
    n.tilt[c] = static_cast<float>(scale * gamma / rows * spread);
  }
  parallel_ranges(parallel, (a.rows + kRows - 1) / kRows, 8, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(2 * kRows * a.channels);
    at_level([&](auto) TANDEM_INLINE_LAMBDA {
      write_grads(a, n, begin * kRows, std::min(end * kRows, a.rows), scratch.data());
    });
  });
}

}  // namespace tandem::cpu
