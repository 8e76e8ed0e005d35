// Batch normalisation: statistics and gradients from per-channel sums over all rows, in double. A block sums a slice of
// the rows for a tile of channels; each thread takes kVec neighbouring channels in every n-th row, and adds up eight
// rows in the compute type first, since double takes up to 64 times as long as float. The sums of a block go to the
// workspace. A second kernel adds them in the order of the slices, so that the result does not depend on the
// schedule, and computes the outputs.
#include "../norm/batch_norm.h"
#include "vec.cuh"

namespace tandem::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 4;  // per multiprocessor: 64 registers for a thread
constexpr int64_t kMostSlices = 256;
constexpr int kGroups = 8;    // groups of slices that are summed in parallel
constexpr int kFoldRows = 8;  // rows that are summed before they are added in double

int64_t slices_of(int64_t rows, int64_t channels) {
  const int64_t tiles = (channels + 127) / 128;
  const int64_t wanted = std::min<int64_t>(kMostSlices, (1024 + tiles - 1) / tiles);
  return std::max<int64_t>(1, std::min(wanted, rows / 32));
}

// A block has a slice of the rows. `lanes` of its threads (a power of two, at most 32) are side by side along the
// channels, kVec of them each, the others along the rows.
template <int kVec>
struct RowSlice {
  int64_t rows, channels, slices, slice;
  int lanes = 1;

  RowSlice(int64_t rows, int64_t channels)
      : rows(rows), channels(channels), slices(slices_of(rows, channels)), slice((rows + slices - 1) / slices) {
    while (lanes < 32 && lanes * kVec < channels) lanes *= 2;
  }
  dim3 grid() const { return dim3(blocks_for(channels, int64_t{lanes} * kVec), static_cast<unsigned>(slices)); }

  __device__ __forceinline__ int64_t channel() const {
    return (static_cast<int64_t>(blockIdx.x) * lanes + threadIdx.x % lanes) * kVec;
  }
  __device__ __forceinline__ int row() const { return static_cast<int>(threadIdx.x) / lanes; }
  __device__ __forceinline__ int rows_at_once() const { return kThreads / lanes; }

  // Calls visit(n) for the thread's elements n ... n + kVec - 1 of each row, and fold() after every eight rows and
  // after the last.
  template <class Visit, class Fold>
  __device__ __forceinline__ void each_row(const Visit& visit, const Fold& fold) const {
    const int64_t begin = blockIdx.y * slice, end = min(rows, begin + slice);
    for (int64_t r = begin + row(); r < end; fold()) {
#pragma unroll 2
      for (int i = 0; i < kFoldRows && r < end; ++i, r += rows_at_once()) visit(r * channels + channel());
    }
  }
};

// A part of the significand so short that products of two such parts are exact.
__device__ __forceinline__ float upper(float x) { return __uint_as_float(__float_as_uint(x) & 0xfffff000u); }

// A short sum, and beside it what its roundings lose (Dekker 1971), so that both together are nearly as exact as
// double.
struct Sum {
  float high = 0, low = 0;

  // Adds x + error.
  __device__ __forceinline__ void add(float x, float error = 0) {
    const float sum = high + x, part = sum - high;
    low += (high - (sum - part)) + (x - part) + error;
    high = sum;
  }
  __device__ __forceinline__ void add_product(float a, float b) {
    const float product = a * b, a1 = upper(a), a2 = a - a1, b1 = upper(b), b2 = b - b1;
    add(product, a1 * b1 - product + a1 * b2 + a2 * b1 + a2 * b2);
  }
  // Returns the sum and begins anew. What overflows has no remainder.
  __device__ __forceinline__ double take() {
    const double sum = is_finite(low) ? static_cast<double>(high) + static_cast<double>(low) : high;
    high = low = 0;
    return sum;
  }
};

// Of u the sum and the sum of squares, and what follows from them.
struct MomentSums {
  BatchNormStatistics a;

  // Calls add(i, x, y) for the thread's elements: x and x y are added.
  template <int kVec, class Add>
  __device__ __forceinline__ void visit(int64_t n, const Add& add) const {
    const auto u = load<Vec<float, kVec>>(static_cast<const float*>(a.product) + n);
    unroll<kVec>([&](int i) { add(i, a.factor * u.at[i], a.factor * u.at[i]); });
  }
  __device__ __forceinline__ void finish(int64_t channel, double sum, double squares) const {
    float mean, var;
    moments(sum, squares, a.rows, mean, var);
    if (!is_finite(mean)) mean = static_cast<float>(__int_as_float(0x7fc00000));  // infinite weights always give NaN
    const auto n = normalise(a.norm, channel, mean, var);
    a.mean[channel] = mean;
    a.var[channel] = var;
    a.scale[channel] = n.scale;
    a.shift[channel] = n.shift;
  }
};

// Of the gradients the sums of threshold gz and of threshold gz u, from which that of gz xhat follows.
template <class Grad>
struct GradientSums {
  BatchNormGrad a;

  template <int kVec, class Add>
  __device__ __forceinline__ void visit(int64_t n, const Add& add) const {
    const auto g = gated<kVec>(static_cast<const Grad*>(a.grad), a.mask, n);
    const auto u = load<Vec<float, kVec>>(static_cast<const float*>(a.product) + n);
    unroll<kVec>([&](int i) { add(i, g.at[i], u.at[i]); });
  }
  __device__ __forceinline__ void finish(int64_t channel, double sum, double sum_u) const {
    const auto n = normalise(a.norm, channel, a.mean[channel], a.var[channel]);
    const double threshold = a.threshold;
    const double centred = (sum_u - static_cast<double>(a.mean[channel]) * sum) / threshold;
    a.grad_beta[channel] = static_cast<float>(sum / threshold);
    a.grad_gamma[channel] = static_cast<float>(centred * static_cast<double>(n.gain) * static_cast<double>(n.rstd));
  }
};

// partial: [slices, 2, channels] doubles.
template <class Reduction, int kVec>
__global__ void __launch_bounds__(kThreads, kBlocks)
    sum_kernel(const __grid_constant__ Reduction reduction, RowSlice<kVec> slice, double* __restrict__ partial) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto* shared = reinterpret_cast<double*>(memory) + threadIdx.x;  // [2 kVec, threads]
  const int64_t channel = slice.channel();
  unroll<2 * kVec>([&](int i) { shared[i * kThreads] = 0; });
  if (channel < slice.channels) {
    Sum few[2][kVec];
    const auto add = [&](int64_t n) {
      reduction.template visit<kVec>(n, [&](int i, auto x, auto y) {
        few[0][i].add(x);
        few[1][i].add_product(x, y);
      });
    };
    const auto fold = [&] { unroll<2 * kVec>([&](int i) { shared[i * kThreads] += few[i / kVec][i % kVec].take(); }); };
    slice.each_row(add, fold);
  }
  for (int half = slice.rows_at_once() / 2; half > 0; half /= 2) {
    __syncthreads();
    if (slice.row() < half) {
      unroll<2 * kVec>([&](int i) { shared[i * kThreads] += shared[i * kThreads + half * slice.lanes]; });
    }
  }
  if (slice.row() > 0 || channel >= slice.channels) return;
  double* to = partial + 2 * blockIdx.y * slice.channels + channel;
  unroll<2 * kVec>([&](int i) { to[i / kVec * slice.channels + i % kVec] = shared[i * kThreads]; });
}

// Adds the slices of each channel in a fixed order: first within each group of slices, then over the groups. Calls
// finish(channel, first sum, second sum).
template <class Reduction>
__global__ void __launch_bounds__(32 * kGroups)
    finish_kernel(const __grid_constant__ Reduction reduction, int slices, const double* __restrict__ partial) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto* shared = reinterpret_cast<double*>(memory);  // [2, groups, 32]
  const int lane = static_cast<int>(threadIdx.x % 32), group = static_cast<int>(threadIdx.x / 32);
  const int64_t channels = reduction.a.channels, channel = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  double sums[2] = {};
  if (channel < channels) {
#pragma unroll 4
    for (int slice = group; slice < slices; slice += kGroups) {
      unroll<2>([&](int i) { sums[i] += partial[(2 * slice + i) * channels + channel]; });
    }
  }
  unroll<2>([&](int i) { shared[(i * kGroups + group) * 32 + lane] = sums[i]; });
  __syncthreads();
  if (group > 0 || channel >= channels) return;
  for (int other = 1; other < kGroups; ++other) {
    unroll<2>([&](int i) { sums[i] += shared[(i * kGroups + other) * 32 + lane]; });
  }
  reduction.finish(channel, sums[0], sums[1]);
}

template <class Grad, int kVec>
__global__ void __launch_bounds__(kThreads) grad_kernel(const __grid_constant__ BatchNormGrad a, RowSlice<kVec> slice) {
  const int64_t channel = slice.channel();
  if (channel >= a.channels) return;
  const float rows = static_cast<float>(a.rows);
  Normalised norm[kVec];
  float centre[kVec], beta_share[kVec], gamma[kVec];
  unroll<kVec>([&](int i) {
    const float mean = a.mean[channel + i];
    norm[i] = normalise(a.norm, channel + i, mean, a.var[channel + i]);
    centre[i] = norm[i].gain * mean;
    beta_share[i] = a.grad_beta[channel + i] / rows;
    gamma[i] = a.grad_gamma[channel + i];
  });
  const auto write = [&](int64_t n) {
    const auto g = gated<kVec>(static_cast<const Grad*>(a.grad), a.mask, n);
    const auto u = load<Vec<float, kVec>>(static_cast<const float*>(a.product) + n);
    const auto out = generate<kVec>([&](int i) {
      const float xhat = (norm[i].gain * u.at[i] - centre[i]) * norm[i].rstd;
      return static_cast<Grad>(norm[i].scale * (g.at[i] / a.threshold - beta_share[i] - xhat * gamma[i] / rows));
    });
    store(static_cast<Grad*>(a.grad_product) + n, out);
  };
  slice.each_row(write, [] {});
}

template <int kVec, class Reduction>
int launch_sums(const Reduction& reduction, void* stream) {
  const RowSlice<kVec> slice(reduction.a.rows, reduction.a.channels);
  const int status = launch(sum_kernel<Reduction, kVec>, slice.grid(), kThreads, 2 * kVec * kThreads * sizeof(double),
                            stream, reduction, slice, reduction.a.workspace);
  if (status != cudaSuccess) return status;
  return launch(finish_kernel<Reduction>, blocks_for(slice.channels, 32), 32 * kGroups,
                2 * 32 * kGroups * sizeof(double), stream, reduction, static_cast<int>(slice.slices),
                reduction.a.workspace);
}

template <class Grad>
int launch_grad(const BatchNormGrad& a, void* stream) {
  const auto* grad = static_cast<const Grad*>(a.grad);
  const auto* grad_product = static_cast<const Grad*>(a.grad_product);
  return by_four(fit_four(a.channels, grad, static_cast<const float*>(a.product), grad_product), [&](auto vec) {
    const int status = launch_sums<vec.value>(GradientSums<Grad>{a}, stream);
    if (status != cudaSuccess) return status;
    const RowSlice<vec.value> slice(a.rows, a.channels);
    return launch(grad_kernel<Grad, vec.value>, slice.grid(), kThreads, 0, stream, a, slice);
  });
}

}  // namespace

int64_t batch_norm_workspace(int64_t rows, int64_t channels) { return 2 * slices_of(rows, channels) * channels; }

int batch_norm_statistics(const BatchNormStatistics& a, void* stream) {
  return by_four(fit_four(a.channels, static_cast<const float*>(a.product)),
                 [&](auto vec) { return launch_sums<vec.value>(MomentSums{a}, stream); });
}

int batch_norm_grad(const BatchNormGrad& a, void* stream) {
  return with_type(a.grad_dtype, [&](auto element) { return launch_grad<decltype(element)>(a, stream); });
}

}  // namespace tandem::cuda
