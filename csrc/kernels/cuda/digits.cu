// Prepares weights for exact products: the unit and the integer weights of each output, equal to those of the CPU
// kernels, with the integers as signed digits to the base 256. A block takes one output and reads its weights four
// times: once from memory, then from the cache.
#include <limits>

#include "digits.h"
#include "vec.cuh"

namespace tandem::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kBlocks = 8;  // per multiprocessor: 64 registers for a thread

template <class E>
struct WeightRows {
  const E* weight;
  int inputs, taps, channels;
  bool moved;  // in memory the taps are innermost; the digits have the channels innermost
  bool whole;  // every load of four neighbouring weights is aligned
  Digits to;
};

// Weights k ... k + 3 of an output in memory order or, `staged`, in the order of a stage (tap, channel); zeros beyond
// the last.
template <class E>
__device__ __forceinline__ Vec<float, 4> load_four(const WeightRows<E>& rows, const E* weight, int k,
                                                   bool staged = false) {
  const bool moved = staged && rows.moved;
  if (rows.whole && !moved && k < rows.inputs) return convert<float>(load<Vec<E, 4>>(weight + k));
  return generate<4>([&](int i) {
    const int tap = (k + i) / rows.channels, channel = k + i - tap * rows.channels;
    return k + i < rows.inputs ? static_cast<float>(weight[moved ? channel * rows.taps + tap : k + i]) : 0.0f;
  });
}

// Reduces `mine` over the threads of a block. Call it only once per type of `join`: each instantiation has one array of
// shared memory.
template <class E, class Join>
__device__ __forceinline__ E over_block(E mine, const Join& join) {
  __shared__ E parts[kThreads / 32];
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) mine = join(mine, __shfl_xor_sync(0xffffffffu, mine, lanes));
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = mine;
  __syncthreads();
  E all = parts[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; ++i) all = join(all, parts[i]);
  return all;
}

// The exponent of the unit, the same in all threads; false if a weight is not finite. visit_weights() visits those
// of the thread.
template <class VisitWeights>
__device__ __forceinline__ bool find_unit(const VisitWeights& visit_weights, int inputs, bool half, int& exponent) {
  uint32_t largest = 0;
  visit_weights([&](float w) { largest = max(largest, __float_as_uint(w) & kMagnitude); });
  largest = over_block(largest, [](uint32_t a, uint32_t b) { return max(a, b); });
  if (largest >= kInfinity) return false;
  const int scale = scale_of(largest);
  const float measure = measure_of(scale);
  unsigned long long sum = 0;
  visit_weights([&](float w) { sum += __float2uint_rz(rounded_mul(fabsf(w), measure)); });
  sum = over_block(sum, [](unsigned long long a, unsigned long long b) { return a + b; });
  exponent = unit_exponent(__uint_as_float(largest), scale, static_cast<int64_t>(sum), inputs, half);
  return true;
}

template <class E>
__global__ void __launch_bounds__(kThreads, kBlocks) digits_kernel(const __grid_constant__ WeightRows<E> rows) {
  const int64_t output = blockIdx.x;
  const E* weight = rows.weight + output * rows.inputs;
  const int first = 4 * static_cast<int>(threadIdx.x);
  const auto visit_weights = [&](const auto& visit) {
#pragma unroll 4
    for (int k = first; k < rows.inputs; k += 4 * kThreads) {
      const auto four = load_four(rows, weight, k);
      unroll<4>([&](int i) { visit(four.at[i]); });
    }
  };

  const auto describe = [&](float unit, int count) {
    if (threadIdx.x > 0) return;
    rows.to.units[output] = unit;
    rows.to.counts[output] = count;
  };
  int exponent = 0;  // int8 weights are integers
  if (sizeof(E) > 1 && !find_unit(visit_weights, rows.inputs, sizeof(E) == 2, exponent)) {
    return describe(__uint_as_float(0x7fc00000u), 0);
  }
  const float factor = power_of_two(-exponent);

  uint32_t any = 0;
  int most = 0;
  visit_weights([&](float w) {
    const int integer = to_fixed(rounded_mul(w, factor));
    any |= static_cast<uint32_t>(integer);
    most = max(most, integer ^ integer >> 31);  // -128 fits a digit, 128 does not
  });
  any = over_block(any, [](uint32_t a, uint32_t b) { return a | b; });
  most = over_block(most, [](int a, int b) { return max(a, b); });
  const int shift = any == 0 ? 0 : 31 - __clz(static_cast<int>(any & -any));  // trailing zero bits go into the unit
  most >>= shift;
  const int count = any == 0 ? 0 : digits_of(most);
  describe(power_of_two(exponent + shift), count);

  int8_t* to = rows.to.digits + output * rows.to.output;
#pragma unroll 4
  for (int64_t k = first; k < rows.to.row; k += 4 * kThreads) {
    const auto four = load_four(rows, weight, static_cast<int>(k), true);
    uint32_t words[4];
    constexpr uint32_t kBias = 0x80808080u;  // added to a word, it makes each byte the digit plus 128
    unroll<4>(
        [&](int i) { words[i] = static_cast<uint32_t>(to_fixed(rounded_mul(four.at[i], factor)) >> shift) + kBias; });
    unroll<kMostDigits>([&](int d) {
      const unsigned pick = d | (d + 4) << 4;  // byte d of two words
      const uint32_t low = __byte_perm(words[0], words[1], pick), high = __byte_perm(words[2], words[3], pick);
      if (d < count) store(to + d * rows.to.row + k, __byte_perm(low, high, 0x5410) ^ kBias);
    });
  }
}

template <class E>
int launch_digits(const Geometry& geometry, const Weights& weights, void* memory, void* stream) {
  WeightRows<E> rows{};
  rows.weight = static_cast<const E*>(weights.data);
  rows.inputs = static_cast<int>(geometry.inputs());
  rows.taps = static_cast<int>(geometry.taps());
  rows.channels = static_cast<int>(geometry.group_channels());
  rows.moved = !weights.channels_last && rows.taps > 1 && rows.channels > 1;
  rows.whole = fit_four(rows.inputs, rows.weight);
  rows.to = digits_at(memory, geometry, weights.dtype);
  return launch(digits_kernel<E>, static_cast<unsigned>(geometry.outputs), kThreads, 0, stream, rows);
}

}  // namespace

int64_t prepared_size(const Geometry& geometry, DType dtype) {
  return geometry.outputs * (most_digits(dtype) * digit_bytes(geometry) + int64_t{sizeof(float) + sizeof(int32_t)});
}

int prepare(const Geometry& geometry, const Weights& weights, void* memory, void* stream) {
  constexpr int64_t kInt = std::numeric_limits<int32_t>::max() - 4 * kThreads;
  if (geometry.inputs() > kInt || geometry.outputs > kInt) return cudaErrorInvalidValue;
  if (weights.dtype == DType::kInt8) return launch_digits<int8_t>(geometry, weights, memory, stream);
  return with_type(weights.dtype,
                   [&](auto element) { return launch_digits<decltype(element)>(geometry, weights, memory, stream); });
}

}  // namespace tandem::cuda
