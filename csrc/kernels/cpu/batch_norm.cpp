#include "../batch_norm.h"

#include <algorithm>
#include <vector>

#include "capability.h"
#include "gate.h"

namespace tandem::cpu {

namespace {

// Sums are taken over a fixed number of slices of the rows and the slices combined in order, whatever the threads.
constexpr int64_t kSlices = 16;

struct Slice {
  int64_t begin, end;
};

// Rows are gated eight at a time, so that each time begins at a whole byte of the mask.
constexpr int64_t kRows = 8;

Slice slice_of(int64_t rows, int64_t i) {
  const auto cut = [&](int64_t k) { return k == kSlices ? rows : rows * k / kSlices / kRows * kRows; };
  return {cut(i), cut(i + 1)};
}

template <class C>
TANDEM_INLINE void sum_rows(const C* product, C factor, int64_t channels, int64_t begin, int64_t end, double* sum,
                            double* sum_of_squares) {
  for (int64_t r = begin; r < end; ++r) {
    const C* row = product + r * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const double x = factor * row[c];
      sum[c] += x;
      sum_of_squares[c] += x * x;
    }
  }
}

// Calls row(r, gz) for rows [begin, end), begin a multiple of kRows; gates is scratch for kRows rows.
template <class C, class Row>
TANDEM_INLINE void gated_rows(const BatchNormGrad<C>& a, int64_t begin, int64_t end, C* gates, const Row& row) {
  for (int64_t first = begin; first < end; first += kRows) {
    const int64_t rows = std::min(kRows, end - first), at = first * a.channels;
    gate_elements(a.grad + at, a.mask + at / 8, a.threshold, gates, 0, rows * a.channels);
    for (int64_t r = 0; r < rows; ++r) row(first + r, gates + r * a.channels);
  }
}

// What normalise() says of every channel.
template <class C>
struct Channels {
  std::vector<C> gain, rstd, scale;

  explicit Channels(const BatchNormGrad<C>& a) : gain(a.channels), rstd(a.channels), scale(a.channels) {
    for (int64_t c = 0; c < a.channels; ++c) {
      const Normalised<C> n = normalise(a.norm, c, a.mean[c], a.var[c]);
      gain[c] = n.gain;
      rstd[c] = n.rstd;
      scale[c] = n.scale;
    }
  }
};

template <class C>
TANDEM_INLINE void sum_grads(const BatchNormGrad<C>& a, const Channels<C>& n, int64_t begin, int64_t end,
                             double* grad_beta, double* grad_gamma, C* gates) {
  const C *gain = n.gain.data(), *rstd = n.rstd.data();
  gated_rows(a, begin, end, gates, [&](int64_t r, const C* gz) TANDEM_INLINE_LAMBDA {
    const C* u = a.product + r * a.channels;
    for (int64_t c = 0; c < a.channels; ++c) {
      const C xhat = (gain[c] * u[c] - gain[c] * a.mean[c]) * rstd[c];
      grad_beta[c] += gz[c];
      grad_gamma[c] += static_cast<double>(gz[c]) * xhat;
    }
  });
}

template <class C>
TANDEM_INLINE void write_grads(const BatchNormGrad<C>& a, const Channels<C>& n, int64_t begin, int64_t end, C* gates) {
  const C rows = static_cast<C>(a.rows);
  const C *gain = n.gain.data(), *rstd = n.rstd.data(), *scale = n.scale.data();
  gated_rows(a, begin, end, gates, [&](int64_t r, const C* gz) TANDEM_INLINE_LAMBDA {
    const C* u = a.product + r * a.channels;
    C* out = a.grad_product + r * a.channels;
    for (int64_t c = 0; c < a.channels; ++c) {
      const C xhat = (gain[c] * u[c] - gain[c] * a.mean[c]) * rstd[c];
      out[c] = scale[c] * (gz[c] - a.grad_beta[c] / rows - xhat * a.grad_gamma[c] / rows);
    }
  });
}

#define TANDEM_BATCH_NORM(suffix, C)                                                                             \
  TANDEM_INLINE void sum_rows_##suffix##_body(const C* product, C factor, int64_t channels, int64_t begin,       \
                                              int64_t end, double* sum, double* squares) {                       \
    sum_rows(product, factor, channels, begin, end, sum, squares);                                               \
  }                                                                                                              \
  TANDEM_CPU_KERNEL(                                                                                             \
      sum_rows_##suffix,                                                                                         \
      (const C* product, C factor, int64_t channels, int64_t begin, int64_t end, double* sum, double* squares),  \
      (product, factor, channels, begin, end, sum, squares))                                                     \
  TANDEM_INLINE void sum_grads_##suffix##_body(const BatchNormGrad<C>& a, const Channels<C>& n, int64_t begin,   \
                                               int64_t end, double* beta, double* gamma, C* gates) {             \
    sum_grads(a, n, begin, end, beta, gamma, gates);                                                             \
  }                                                                                                              \
  TANDEM_CPU_KERNEL(sum_grads_##suffix,                                                                          \
                    (const BatchNormGrad<C>& a, const Channels<C>& n, int64_t begin, int64_t end, double* beta,  \
                     double* gamma, C* gates),                                                                   \
                    (a, n, begin, end, beta, gamma, gates))                                                      \
  TANDEM_INLINE void write_grads_##suffix##_body(const BatchNormGrad<C>& a, const Channels<C>& n, int64_t begin, \
                                                 int64_t end, C* gates) {                                        \
    write_grads(a, n, begin, end, gates);                                                                        \
  }                                                                                                              \
  TANDEM_CPU_KERNEL(write_grads_##suffix,                                                                        \
                    (const BatchNormGrad<C>& a, const Channels<C>& n, int64_t begin, int64_t end, C* gates),     \
                    (a, n, begin, end, gates))

TANDEM_BATCH_NORM(float, float)
TANDEM_BATCH_NORM(double, double)

// Runs body(slice, first accumulator, second accumulator) on every slice, then adds the slices up in order.
template <class F>
void two_sums(int64_t rows, int64_t channels, double* first, double* second, ParallelFor parallel, const F& body) {
  std::vector<double> partial(static_cast<size_t>(2 * kSlices * channels));
  parallel_ranges(parallel, kSlices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double* at = partial.data() + 2 * i * channels;
      body(slice_of(rows, i), at, at + channels);
    }
  });
  std::fill(first, first + channels, 0.0);
  std::fill(second, second + channels, 0.0);
  for (int64_t i = 0; i < kSlices; ++i) {
    const double* at = partial.data() + 2 * i * channels;
    for (int64_t c = 0; c < channels; ++c) {
      first[c] += at[c];
      second[c] += at[channels + c];
    }
  }
}

template <class C, class Sum>
void batch_norm_statistics(const BatchNormStatistics<C>& a, ParallelFor parallel, Sum kernel) {
  std::vector<double> sum(a.channels), squares(a.channels);
  two_sums(a.rows, a.channels, sum.data(), squares.data(), parallel, [&](Slice rows, double* first, double* second) {
    kernel(a.product, a.factor, a.channels, rows.begin, rows.end, first, second);
  });
  for (int64_t c = 0; c < a.channels; ++c) {
    moments(sum[c], squares[c], a.rows, a.mean[c], a.var[c]);
    const Normalised<C> n = normalise(a.norm, c, a.mean[c], a.var[c]);
    a.scale[c] = n.scale;
    a.shift[c] = n.shift;
  }
}

template <class C, class Sum, class Write>
void batch_norm_grad(const BatchNormGrad<C>& a, ParallelFor parallel, Sum sum, Write write) {
  const Channels<C> n(a);
  std::vector<double> beta(a.channels), gamma(a.channels);
  two_sums(a.rows, a.channels, beta.data(), gamma.data(), parallel, [&](Slice rows, double* first, double* second) {
    std::vector<C> gates(kRows * a.channels);
    sum(a, n, rows.begin, rows.end, first, second, gates.data());
  });
  std::copy(beta.begin(), beta.end(), a.grad_beta);
  std::copy(gamma.begin(), gamma.end(), a.grad_gamma);
  parallel_ranges(parallel, (a.rows + kRows - 1) / kRows, 8, [&](int64_t begin, int64_t end) {
    std::vector<C> gates(kRows * a.channels);
    write(a, n, begin * kRows, std::min(end * kRows, a.rows), gates.data());
  });
}

}  // namespace

void batch_norm_statistics(const BatchNormStatistics<float>& args, ParallelFor parallel) {
  batch_norm_statistics(args, parallel, sum_rows_float);
}
void batch_norm_statistics(const BatchNormStatistics<double>& args, ParallelFor parallel) {
  batch_norm_statistics(args, parallel, sum_rows_double);
}
void batch_norm_grad(const BatchNormGrad<float>& args, ParallelFor parallel) {
  batch_norm_grad(args, parallel, sum_grads_float, write_grads_float);
}
void batch_norm_grad(const BatchNormGrad<double>& args, ParallelFor parallel) {
  batch_norm_grad(args, parallel, sum_grads_double, write_grads_double);
}

}  // namespace tandem::cpu
