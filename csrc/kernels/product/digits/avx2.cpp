// Products of bytes by AVX2, in sums of 16 bits.
#include <algorithm>
#include <cstring>

#include "loops.h"

#if TANDEM_MULTIVERSION
#include <immintrin.h>

namespace tandem::cpu {

namespace {

#define TANDEM_TARGET TANDEM_TARGET_V3

constexpr int kDoubles = 4;
template <int N>
constexpr int kLines = 2;

// Adds the int16 sums to the int32 sums in memory and clears them. A digit has two vectors of eight outputs each.
template <int N, int Rows>
TANDEM_TARGET TANDEM_INLINE void widen(__m256i (&sum)[Rows][N][2], int32_t* sums) {
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
TANDEM_TARGET TANDEM_INLINE void multiply_large(const Pass& pass, const Lines& lines, int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(0x7f);
  const int8_t* digits = pass.digits;
  for (int64_t c = 0; c < pass.chunks; ++c, digits += pass.chunk_bytes) {
    for (int64_t k = 0; k < kWords; ++k) {
      for (int r = 0; r < Rows; ++r) {
        const __m256i four = _mm256_set1_epi32(word_at(lines.bytes + lines.offsets[c] + r * lines.pitch + 4 * k));
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

template <int N>
TANDEM_TARGET TANDEM_INLINE void multiply(const Pass& pass, const Lines& lines, int32_t* sums) {
  constexpr int Rows = kLines<N>;
  std::fill_n(sums, Rows * N * 16, 0);
  if (lines.most > 127) return multiply_large<N, Rows>(pass, lines, sums);
  // The number of words whose sums stay within int16.
  const int64_t at_once = INT16_MAX / (2 * 128 * std::max(lines.most, 1));
  __m256i sum[Rows][N][2];
#pragma GCC unroll 2
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
    for (int d = 0; d < N; ++d) sum[r][d][0] = sum[r][d][1] = _mm256_setzero_si256();
  }
  const int8_t* digits = pass.digits;
  int64_t until = at_once;  // words until the sums are full
  for (int64_t c = 0; c < pass.chunks; ++c, digits += pass.chunk_bytes) {
    const uint8_t* in = lines.bytes + lines.offsets[c];
    for (int64_t k = 0; k < kWords;) {
      const int64_t end = std::min(kWords, k + until);
      until -= end - k;
#pragma GCC unroll 1
      for (; k < end; ++k) {
        __m256i four[Rows];
#pragma GCC unroll 2
        for (int r = 0; r < Rows; ++r) four[r] = _mm256_set1_epi32(word_at(in + r * lines.pitch + 4 * k));
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

#include "rows.inl"

}  // namespace

const Loops kAvx2Loops{kVectorChunks, nothing, nothing, steps, counts};

}  // namespace tandem::cpu
#endif
