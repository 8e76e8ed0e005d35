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

// The threads of a block: `lanes` of them (a power of two, at most 32) side by side along the channels, the others
// along the rows. A block covers `slice` rows.
struct Tile {
  int lanes = 1;
  int64_t slice;

  Tile(int64_t rows, int64_t channels, int vec) {
    const int64_t slices = slices_of(rows, channels);
    slice = (rows + slices - 1) / slices;
    while (lanes < 32 && lanes * vec < channels) lanes *= 2;
  }
  dim3 grid(int64_t rows, int64_t channels, int vec) const {
    return dim3(blocks_for(channels, int64_t{lanes} * vec), static_cast<unsigned>(slices_of(rows, channels)));
  }

  __device__ __forceinline__ int lane() const { return static_cast<int>(threadIdx.x) % lanes; }
  __device__ __forceinline__ int row() const { return static_cast<int>(threadIdx.x) / lanes; }
  __device__ __forceinline__ int rows() const { return kThreads / lanes; }
};

// Calls visit(n) in each row of the block's slice; the thread's elements of that row are n, n + 1, ... n + kVec - 1.
// Calls fold() after every eight rows, and after the last.
template <class Visit, class Fold>
__device__ __forceinline__ void visit_rows(const Tile& tile, int64_t rows, int64_t channels, int64_t channel,
                                           const Visit& visit, const Fold& fold) {
  const int64_t begin = blockIdx.y * tile.slice;
  const int64_t end = min(rows, begin + tile.slice);
  for (int64_t r = begin + tile.row(); r < end; fold()) {
#pragma unroll 2
    for (int i = 0; i < kFoldRows && r < end; ++i, r += tile.rows()) visit(r * channels + channel);
  }
}

// A part of the significand so short that products of two such parts are exact.
__device__ __forceinline__ float upper(float x) { return __uint_as_float(__float_as_uint(x) & 0xfffff000u); }
__device__ __forceinline__ double upper(double x) { return static_cast<float>(x); }

// A short sum, and beside it what its roundings lose (Dekker 1971), so that both together are nearly as exact as
// double.
template <class C>
struct Sum {
  C high = 0, low = 0;

  // Adds x + error.
  __device__ __forceinline__ void add(C x, C error = 0) {
    const C sum = high + x, part = sum - high;
    low += (high - (sum - part)) + (x - part) + error;
    high = sum;
  }
  __device__ __forceinline__ void add_product(C a, C b) {
    const C product = a * b, a1 = upper(a), a2 = a - a1, b1 = upper(b), b2 = b - b1;
    add(product, a1 * b1 - product + a1 * b2 + a2 * b1 + a2 * b2);
  }
  // Returns the sum and begins anew. What overflows has no remainder.
  __device__ __forceinline__ double take() {
    const double sum = is_finite(low) ? static_cast<double>(high) + static_cast<double>(low) : high;
    high = low = 0;
    return sum;
  }
};

// What is summed for the statistics: u, and its square.
template <class C>
struct Moments {
  using Element = C;
  const C* product;
  C factor;

  // Calls each(i, x, y) for the thread's elements: x and x y are added.
  template <int kVec, class Each>
  __device__ __forceinline__ void visit(int64_t n, const Each& each) const {
    const auto given = load<Vec<C, kVec>>(product + n);
    unroll<kVec>([&](int i) { each(i, factor * given.at[i], factor * given.at[i]); });
  }
};

// The gradients of kVec neighbouring neurons, 0 where the gate is closed.
template <class C, class Grad, int kVec>
__device__ __forceinline__ Vec<C, kVec> gate(const Grad* grad, const uint8_t* mask, int64_t n) {
  const auto given = load_early<Vec<Grad, kVec>>(grad + n);
  const uint32_t open = mask[n / 8] >> (n % 8);
  return generate<kVec>([&](int i) -> C { return open >> i & 1u ? widen(given.at[i]) : C(0); });
}

// And for the gradients: threshold gz, and threshold gz u. The sum of gz xhat follows from both sums.
template <class C, class Grad>
struct Gradients {
  using Element = C;
  const Grad* grad;
  const uint8_t* mask;
  const C* product;

  template <int kVec, class Each>
  __device__ __forceinline__ void visit(int64_t n, const Each& each) const {
    const auto g = gate<C, Grad, kVec>(grad, mask, n);
    const auto u = load<Vec<C, kVec>>(product + n);
    unroll<kVec>([&](int i) { each(i, g.at[i], u.at[i]); });
  }
};

// partial: [slices, 2, channels] doubles.
template <class Terms, int kVec>
__global__ void __launch_bounds__(kThreads, kBlocks)
    sum_kernel(Terms terms, Tile tile, int64_t rows, int64_t channels, double* __restrict__ partial) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto* shared = reinterpret_cast<double*>(memory) + threadIdx.x;  // [2 kVec, threads]
  const int64_t channel = (static_cast<int64_t>(blockIdx.x) * tile.lanes + tile.lane()) * kVec;
  unroll<2 * kVec>([&](int i) { shared[i * kThreads] = 0; });
  if (channel < channels) {
    Sum<typename Terms::Element> few[2][kVec];
    const auto add = [&](int64_t n) {
      terms.template visit<kVec>(n, [&](int i, auto x, auto y) {
        few[0][i].add(x);
        few[1][i].add_product(x, y);
      });
    };
    const auto fold = [&] { unroll<2 * kVec>([&](int i) { shared[i * kThreads] += few[i / kVec][i % kVec].take(); }); };
    visit_rows(tile, rows, channels, channel, add, fold);
  }
  for (int half = tile.rows() / 2; half > 0; half /= 2) {
    __syncthreads();
    if (tile.row() < half) {
      unroll<2 * kVec>([&](int i) { shared[i * kThreads] += shared[i * kThreads + half * tile.lanes]; });
    }
  }
  if (tile.row() > 0 || channel >= channels) return;
  unroll<2 * kVec>(
      [&](int i) { partial[(2 * blockIdx.y + i / kVec) * channels + channel + i % kVec] = shared[i * kThreads]; });
}

// Adds the slices of each channel in a fixed order: first within each group of slices, then over the groups. Calls
// finish(channel, first sum, second sum).
template <class Finish>
__global__ void __launch_bounds__(32 * kGroups)
    finish_kernel(Finish finish, int slices, int64_t channels, const double* __restrict__ partial) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto* shared = reinterpret_cast<double*>(memory);  // [2, groups, 32]
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int group = static_cast<int>(threadIdx.x) / 32;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * 32 + lane;
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
  finish(channel, sums[0], sums[1]);
}

template <class C>
struct FinishStatistics {
  BatchNormStatistics<C> a;

  __device__ __forceinline__ void operator()(int64_t channel, double sum, double squares) const {
    C mean;
    C var;
    moments(sum, squares, a.rows, mean, var);
    if (!is_finite(mean)) mean = static_cast<C>(__int_as_float(0x7fc00000));  // infinite weights always give NaN
    const auto n = normalise(a.norm, channel, mean, var);
    a.mean[channel] = mean;
    a.var[channel] = var;
    a.scale[channel] = n.scale;
    a.shift[channel] = n.shift;
  }
};

template <class C>
struct FinishGradients {
  BatchNormGrad<C> a;

  __device__ __forceinline__ void operator()(int64_t channel, double sum, double sum_u) const {
    const auto n = normalise(a.norm, channel, a.mean[channel], a.var[channel]);
    const double threshold = a.threshold;
    const double centred = (sum_u - static_cast<double>(a.mean[channel]) * sum) / threshold;
    a.grad_beta[channel] = static_cast<C>(sum / threshold);
    a.grad_gamma[channel] = static_cast<C>(centred * static_cast<double>(n.gain) * static_cast<double>(n.rstd));
  }
};

template <class C, class Grad, int kVec>
__global__ void __launch_bounds__(kThreads) grad_kernel(const __grid_constant__ BatchNormGrad<C> a, Tile tile) {
  const int64_t channel = (static_cast<int64_t>(blockIdx.x) * tile.lanes + tile.lane()) * kVec;
  if (channel >= a.channels) return;
  const C rows = static_cast<C>(a.rows);
  Normalised<C> norm[kVec];
  C centre[kVec], beta_share[kVec], gamma[kVec];
  unroll<kVec>([&](int i) {
    const C mean = a.mean[channel + i];
    norm[i] = normalise(a.norm, channel + i, mean, a.var[channel + i]);
    centre[i] = norm[i].gain * mean;
    beta_share[i] = a.grad_beta[channel + i] / rows;
    gamma[i] = a.grad_gamma[channel + i];
  });
  const auto write = [&](int64_t n) {
    const auto g = gate<C, Grad, kVec>(static_cast<const Grad*>(a.grad), a.mask, n);
    const auto u = load<Vec<C, kVec>>(a.product + n);
    const auto out = generate<kVec>([&](int i) {
      const C xhat = (norm[i].gain * u.at[i] - centre[i]) * norm[i].rstd;
      return narrow<Grad>(norm[i].scale * (g.at[i] / a.threshold - beta_share[i] - xhat * gamma[i] / rows));
    });
    store(static_cast<Grad*>(a.grad_product) + n, out);
  };
  visit_rows(tile, a.rows, a.channels, channel, write, [] {});
}

template <int kVec, class Terms, class Finish>
int launch_sums(const Terms& terms, const Finish& finish, double* workspace, cudaStream_t stream) {
  const int64_t rows = finish.a.rows, channels = finish.a.channels;
  const Tile tile(rows, channels, kVec);
  sum_kernel<Terms, kVec><<<tile.grid(rows, channels, kVec), kThreads, 2 * kVec * kThreads * sizeof(double), stream>>>(
      terms, tile, rows, channels, workspace);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) return status;
  finish_kernel<Finish><<<blocks_for(channels, 32), 32 * kGroups, 2 * 32 * kGroups * sizeof(double), stream>>>(
      finish, static_cast<int>(slices_of(rows, channels)), channels, workspace);
  return cudaGetLastError();
}

// Four float channels per thread if they are aligned, else one.
template <class C, class Launch>
int launch_by_four(bool four, const Launch& launch) {
  if constexpr (std::is_same_v<C, float>) {
    if (four) return launch(Constant<4>{});
  }
  return launch(Constant<1>{});
}

template <class C>
int launch_statistics(const BatchNormStatistics<C>& a, double* workspace, void* stream) {
  return launch_by_four<C>(a.channels % 4 == 0 && is_aligned(a.product, 16), [&](auto vec) {
    return launch_sums<vec.value>(Moments<C>{a.product, a.factor}, FinishStatistics<C>{a}, workspace,
                                  static_cast<cudaStream_t>(stream));
  });
}

template <class Grad, class C>
int launch_grad(const BatchNormGrad<C>& a, double* workspace, void* stream) {
  constexpr size_t kBytes = 4 * sizeof(Grad);
  const auto on = static_cast<cudaStream_t>(stream);
  const bool four = a.channels % 4 == 0 && is_aligned(a.grad, kBytes) && is_aligned(a.product, 16) &&
                    is_aligned(a.grad_product, kBytes);
  return launch_by_four<C>(four, [&](auto vec) -> int {
    const Gradients<C, Grad> terms{static_cast<const Grad*>(a.grad), a.mask, a.product};
    const int status = launch_sums<vec.value>(terms, FinishGradients<C>{a}, workspace, on);
    if (status != cudaSuccess) return status;
    const Tile tile(a.rows, a.channels, vec.value);
    grad_kernel<C, Grad, vec.value><<<tile.grid(a.rows, a.channels, vec.value), kThreads, 0, on>>>(a, tile);
    return cudaGetLastError();
  });
}

}  // namespace

int64_t batch_norm_workspace(int64_t rows, int64_t channels) { return 2 * slices_of(rows, channels) * channels; }

int batch_norm_statistics(const BatchNormStatistics<float>& a, double* workspace, void* stream) {
  return launch_statistics(a, workspace, stream);
}
int batch_norm_statistics(const BatchNormStatistics<double>& a, double* workspace, void* stream) {
  return launch_statistics(a, workspace, stream);
}

int batch_norm_grad(const BatchNormGrad<float>& a, double* workspace, void* stream) {
  return launch_for(a.grad_dtype, [&](auto element) { return launch_grad<decltype(element)>(a, workspace, stream); });
}
int batch_norm_grad(const BatchNormGrad<double>& a, double* workspace, void* stream) {
  return launch_grad<double>(a, workspace, stream);
}

}  // namespace tandem::cuda
