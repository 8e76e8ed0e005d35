#include "dense.h"

#include <algorithm>
#include <cstring>

#include "../cpu/vectors.h"
#include "matrix_unit/layout.h"

#if TANDEM_MULTIVERSION
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace tandem::cpu {

#if TANDEM_MULTIVERSION

#define TANDEM_TARGET_VNNI [[gnu::target("arch=x86-64-v4,avx512vnni" TANDEM_WIDE_VECTORS)]]
#define TANDEM_TARGET_AVX_VNNI [[gnu::target("arch=x86-64-v3,avxvnni")]]

namespace {

constexpr int64_t kWords = kChunk / 4;  // words of four inputs per chunk
// Chunks per pass: their digits, 24 KB for three, stay in L1 while the counts of many rows stream by.
constexpr int64_t kPassChunks = 8;

TANDEM_INLINE int32_t word_at(const uint8_t* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

// The product of some rows with N digits of a column.
struct Product {
  const int64_t* offsets;  // of the chunks within the counts of a row
  int64_t chunks;
  const int8_t* digits;
  int64_t chunk_bytes;  // of a chunk with all digits
  int most;             // the largest count
};

// sums: [Rows, N, 16].
template <int N, int Rows>
TANDEM_TARGET_VNNI TANDEM_INLINE void multiply_vnni(const Product& product, const uint8_t* counts, int64_t row_bytes,
                                                    int32_t* sums) {
  __m512i sum[Rows][N];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
    for (int d = 0; d < N; ++d) sum[r][d] = _mm512_setzero_si512();
  }
  const int8_t* digits = product.digits;
  for (int64_t c = 0; c < product.chunks; ++c, digits += product.chunk_bytes) {
    const uint8_t* in = counts + product.offsets[c];
#pragma GCC unroll 1
    for (int64_t k = 0; k < kWords; ++k) {
      __m512i weights[N];
#pragma GCC unroll 3
      for (int d = 0; d < N; ++d) weights[d] = _mm512_loadu_si512(digits + d * kTileBytes + k * 64);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const __m512i four = _mm512_set1_epi32(word_at(in + r * row_bytes + 4 * k));
#pragma GCC unroll 3
        for (int d = 0; d < N; ++d) sum[r][d] = _mm512_dpbusd_epi32(sum[r][d], four, weights[d]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
    for (int d = 0; d < N; ++d) _mm512_storeu_si512(sums + (r * N + d) * 16, sum[r][d]);
  }
}

// The same in vectors of eight outputs.
template <int N, int Rows>
TANDEM_TARGET_AVX_VNNI TANDEM_INLINE void multiply_avx_vnni(const Product& product, const uint8_t* counts,
                                                            int64_t row_bytes, int32_t* sums) {
  __m256i sum[Rows][N][2];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
    for (int d = 0; d < N; ++d) sum[r][d][0] = sum[r][d][1] = _mm256_setzero_si256();
  }
  const int8_t* digits = product.digits;
  for (int64_t c = 0; c < product.chunks; ++c, digits += product.chunk_bytes) {
    const uint8_t* in = counts + product.offsets[c];
#pragma GCC unroll 1
    for (int64_t k = 0; k < kWords; ++k) {
      __m256i four[Rows];
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) four[r] = _mm256_set1_epi32(word_at(in + r * row_bytes + 4 * k));
#pragma GCC unroll 3
      for (int d = 0; d < N; ++d) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const __m256i weights =
              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(digits + d * kTileBytes + k * 64 + h * 32));
#pragma GCC unroll 4
          for (int r = 0; r < Rows; ++r) sum[r][d][h] = _mm256_dpbusd_avx_epi32(sum[r][d][h], four[r], weights);
        }
      }
    }
  }
  std::memcpy(sums, sum, sizeof(sum));
}

// Adds the int16 sums to the int32 sums in memory and clears them. A digit has two vectors of eight outputs each.
template <int N, int Rows>
TANDEM_TARGET_V3 TANDEM_INLINE void widen(__m256i (&sum)[Rows][N][2], int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 2
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
    for (int d = 0; d < N; ++d) {
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        auto* at = reinterpret_cast<__m256i*>(sums + (r * N + d) * 16 + h * 8);
        const __m256i wide = _mm256_madd_epi16(sum[r][d][h], ones);
        _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at), wide));
        sum[r][d][h] = _mm256_setzero_si256();
      }
    }
  }
}

// For counts above 127: two products of a count and a digit have to fit int16, so the highest bit of the count is
// multiplied separately.
template <int N, int Rows>
TANDEM_TARGET_V3 TANDEM_INLINE void multiply_large(const Product& product, const uint8_t* counts, int64_t row_bytes,
                                                   int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(0x7f);
  const int8_t* digits = product.digits;
  for (int64_t c = 0; c < product.chunks; ++c, digits += product.chunk_bytes) {
    for (int64_t k = 0; k < kWords; ++k) {
      for (int r = 0; r < Rows; ++r) {
        const __m256i four = _mm256_set1_epi32(word_at(counts + product.offsets[c] + r * row_bytes + 4 * k));
        const __m256i lower = _mm256_and_si256(four, low);
        const __m256i highest = _mm256_and_si256(_mm256_srli_epi16(four, 7), _mm256_set1_epi8(1));
        for (int d = 0; d < N; ++d) {
          for (int h = 0; h < 2; ++h) {
            const __m256i weights =
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(digits + d * kTileBytes + k * 64 + h * 32));
            const __m256i a = _mm256_madd_epi16(_mm256_maddubs_epi16(lower, weights), ones);
            const __m256i b = _mm256_madd_epi16(_mm256_maddubs_epi16(highest, weights), ones);
            auto* at = reinterpret_cast<__m256i*>(sums + (r * N + d) * 16 + h * 8);
            const __m256i sum = _mm256_add_epi32(a, _mm256_slli_epi32(b, 7));
            _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at), sum));
          }
        }
      }
    }
  }
}

template <int N, int Rows>
TANDEM_TARGET_V3 TANDEM_INLINE void multiply_avx2(const Product& product, const uint8_t* counts, int64_t row_bytes,
                                                  int32_t* sums) {
  std::fill_n(sums, Rows * N * 16, 0);
  if (product.most > 127) return multiply_large<N, Rows>(product, counts, row_bytes, sums);
  // The number of words whose sums stay within int16.
  const int64_t at_once = INT16_MAX / (2 * 128 * std::max(product.most, 1));
  __m256i sum[Rows][N][2];
#pragma GCC unroll 2
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
    for (int d = 0; d < N; ++d) sum[r][d][0] = sum[r][d][1] = _mm256_setzero_si256();
  }
  const int8_t* digits = product.digits;
  int64_t until = at_once;  // words until the sums are full
  for (int64_t c = 0; c < product.chunks; ++c, digits += product.chunk_bytes) {
    const uint8_t* in = counts + product.offsets[c];
    for (int64_t k = 0; k < kWords;) {
      const int64_t end = std::min(kWords, k + until);
      until -= end - k;
#pragma GCC unroll 1
      for (; k < end; ++k) {
        __m256i four[Rows];
#pragma GCC unroll 2
        for (int r = 0; r < Rows; ++r) four[r] = _mm256_set1_epi32(word_at(in + r * row_bytes + 4 * k));
#pragma GCC unroll 3
        for (int d = 0; d < N; ++d) {
#pragma GCC unroll 2
          for (int h = 0; h < 2; ++h) {
            const __m256i weights =
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(digits + d * kTileBytes + k * 64 + h * 32));
#pragma GCC unroll 2
            for (int r = 0; r < Rows; ++r) {
              sum[r][d][h] = _mm256_add_epi16(sum[r][d][h], _mm256_maddubs_epi16(four[r], weights));
            }
          }
        }
      }
      if (until == 0) {
        widen<N, Rows>(sum, sums);
        until = at_once;
      }
    }
  }
  widen<N, Rows>(sum, sums);
}

// Combines the sums of digits, [rows, N, 16], to sums of weights in `unit`. Adds them to `out` unless `first`.
template <int N, int H>
TANDEM_INLINE void combine(const int32_t* sums, int64_t rows, double unit, bool first, double* out, int64_t stride) {
  typedef Vec<double, H> Wide;
  for (int64_t r = 0; r < rows; ++r, sums += N * 16) {
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += H) {
      Wide sum{};
#pragma GCC unroll 4
      for (int d = N - 1; d >= 0; --d) {
        sum = 256 * sum + __builtin_convertvector(load<Int<float, H>>(sums + d * 16 + i), Wide);
      }
      double* target = out + r * stride + i;
      store(target, first ? sum * unit : sum * unit + load<Wide>(target));
    }
  }
}

// Adds the sums of some steps, [steps, 16], times 1 << shift.
TANDEM_INLINE void add_shifted(const int32_t* sums, int steps, int shift, bool first, int32_t* out, int64_t stride) {
  for (int t = 0; t < steps; ++t, out += stride) {
    for (int i = 0; i < 16; ++i) {
      const auto bits = static_cast<uint32_t>(sums[16 * t + i]) << shift;  // of a negative int it is undefined
      out[i] = (first ? 0 : out[i]) + static_cast<int32_t>(bits);
    }
  }
}

// kRows: rows at a time, a divisor of the rows of a tile. There are as many sums as registers, to hide the latency of a
// product.
struct Vnni {
  template <int N>
  static constexpr int kRows = 8;
  static constexpr int kDoubles = 8;
  template <int N>
  TANDEM_TARGET_VNNI TANDEM_INLINE static void multiply(const Product& product, const uint8_t* counts,
                                                        int64_t row_bytes, int32_t* sums) {
    multiply_vnni<N, kRows<N>>(product, counts, row_bytes, sums);
  }
};

struct AvxVnni {
  template <int N>
  static constexpr int kRows = N == 1 ? 4 : 2;
  static constexpr int kDoubles = 4;
  template <int N>
  TANDEM_TARGET_AVX_VNNI TANDEM_INLINE static void multiply(const Product& product, const uint8_t* counts,
                                                            int64_t row_bytes, int32_t* sums) {
    multiply_avx_vnni<N, kRows<N>>(product, counts, row_bytes, sums);
  }
};

struct Avx2 {
  template <int N>
  static constexpr int kRows = 2;
  static constexpr int kDoubles = 4;
  template <int N>
  TANDEM_TARGET_V3 TANDEM_INLINE static void multiply(const Product& product, const uint8_t* counts, int64_t row_bytes,
                                                      int32_t* sums) {
    multiply_avx2<N, kRows<N>>(product, counts, row_bytes, sums);
  }
};

// Multiplies all rows by some chunks of N digits. A macro, because a template for one target is not inlined into
// functions for another: it compiles the loop for each target.
#define TANDEM_DENSE(target, name, Kernel)                                                                             \
  template <int N>                                                                                                     \
  target void name##_rows(const ExpandedInputs& inputs, Product product, int64_t begin, double unit, bool first,       \
                          double* out, int64_t stride) {                                                               \
    static_assert(kTileRows % Kernel::template kRows<N> == 0);                                                         \
    alignas(64) int32_t sums[Kernel::template kRows<N> * N * 16];                                                      \
    for (const ExpandedPiece& piece : inputs.pieces) {                                                                 \
      product.offsets = piece.offsets + begin;                                                                         \
      for (int64_t row = 0; row < piece.rows; row += Kernel::template kRows<N>) {                                      \
        const uint8_t* counts = inputs.bytes.data() + piece.start + row / kTileRows * piece.tile_bytes +               \
                                row % kTileRows * piece.row_bytes;                                                     \
        const int64_t rows = std::min<int64_t>(Kernel::template kRows<N>, piece.rows - row);                           \
        Kernel::template multiply<N>(product, counts, piece.row_bytes, sums);                                          \
        combine<N, Kernel::kDoubles>(sums, rows, unit, first, out, stride);                                            \
        out += rows * stride;                                                                                          \
      }                                                                                                                \
    }                                                                                                                  \
  }                                                                                                                    \
  void name(int digits, const ExpandedInputs& inputs, const Product& product, int64_t begin, double unit, bool first,  \
            double* out, int64_t stride) {                                                                             \
    if (digits == 1) name##_rows<1>(inputs, product, begin, unit, first, out, stride);                                 \
    if (digits == 2) name##_rows<2>(inputs, product, begin, unit, first, out, stride);                                 \
    if (digits == 3) name##_rows<3>(inputs, product, begin, unit, first, out, stride);                                 \
  }                                                                                                                    \
  target void name##_steps(const ExpandedInputs& inputs, int T, Product product, int64_t begin, int shift, bool first, \
                           int32_t* out, int64_t stride) {                                                             \
    constexpr int kSteps = Kernel::template kRows<1>;                                                                  \
    alignas(64) int32_t sums[kSteps * 16];                                                                             \
    for (const ExpandedPiece& piece : inputs.pieces) {                                                                 \
      product.offsets = piece.offsets + begin;                                                                         \
      for (int64_t row = 0; row < piece.rows; ++row) {                                                                 \
        const uint8_t* spikes = inputs.bytes.data() + piece.start + row / kTileRows * piece.tile_bytes +               \
                                row % kTileRows * piece.row_bytes;                                                     \
        for (int t = 0; t < (T + 7) / 8 * 8; t += kSteps, out += kSteps * stride) {                                    \
          if (t >= T) continue;                                                                                        \
          Kernel::template multiply<1>(product, spikes + t * piece.step_bytes, piece.step_bytes, sums);                \
          add_shifted(sums, kSteps, shift, first, out, stride);                                                        \
        }                                                                                                              \
      }                                                                                                                \
    }                                                                                                                  \
  }
TANDEM_DENSE(TANDEM_TARGET_VNNI, by_vnni, Vnni)
TANDEM_DENSE(TANDEM_TARGET_AVX_VNNI, by_avx_vnni, AvxVnni)
TANDEM_DENSE(TANDEM_TARGET_V3, by_avx2, Avx2)

}  // namespace

bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

ByteProducts byte_products() {
  static const ByteProducts best = [] {
    if (capability() == Capability::kV4 && __builtin_cpu_supports("avx512vnni")) return ByteProducts::kAvx512Vnni;
    if (capability() == Capability::kDefault) return ByteProducts::kNone;
    return has_avx_vnni() ? ByteProducts::kAvxVnni : ByteProducts::kAvx2;
  }();
  return best;
}

void multiply_counts_dense(const ExpandedInputs& inputs, const DigitColumn* columns, int registers, double* sums,
                           ByteProducts by) {
  const auto multiply = by == ByteProducts::kAvx512Vnni ? by_vnni
                        : by == ByteProducts::kAvxVnni  ? by_avx_vnni
                                                        : by_avx2;
  const int64_t passes = (inputs.chunks + kPassChunks - 1) / kPassChunks;
  for (int r = 0; r < registers; ++r) {
    const DigitColumn& column = columns[r];
    const int groups = column.count == kMostDigits ? 2 : 1, digits = column.count / groups;
    for (int64_t i = 0; i < passes * groups; ++i) {
      const int64_t begin = inputs.chunks * (i / groups) / passes, end = inputs.chunks * (i / groups + 1) / passes;
      const int digit = static_cast<int>(i % groups) * digits;
      const Product product{nullptr, end - begin, column.digits + (begin * column.count + digit) * kTileBytes,
                            column.count * kTileBytes, inputs.most};
      const auto unit = static_cast<double>(int64_t{1} << (column.shift + 8 * digit));
      multiply(digits, inputs, product, begin, unit, i == 0, sums + r * 16, 16 * registers);
    }
  }
}

void multiply_steps_dense(const ExpandedInputs& inputs, int T, const DigitColumn* columns, int registers, int32_t* sums,
                          ByteProducts by) {
  const auto multiply = by == ByteProducts::kAvx512Vnni ? by_vnni_steps
                        : by == ByteProducts::kAvxVnni  ? by_avx_vnni_steps
                                                        : by_avx2_steps;
  const int64_t passes = (inputs.chunks + kPassChunks - 1) / kPassChunks;
  for (int r = 0; r < registers; ++r) {
    for (int64_t i = 0; i < passes; ++i) {
      const int64_t begin = inputs.chunks * i / passes, end = inputs.chunks * (i + 1) / passes;
      const Product product{nullptr, end - begin, columns[r].digits + begin * kTileBytes, kTileBytes, 1};
      multiply(inputs, T, product, begin, columns[r].shift, i == 0, sums + r * 16, 16 * registers);
    }
  }
}

#else

void multiply_steps_dense(const ExpandedInputs&, int, const DigitColumn*, int, int32_t*, ByteProducts) {}
bool has_avx_vnni() { return false; }
ByteProducts byte_products() { return ByteProducts::kNone; }
void multiply_counts_dense(const ExpandedInputs&, const DigitColumn*, int, double*, ByteProducts) {}

#endif

}  // namespace tandem::cpu
