// Products of bytes by AVX2, in sums of 16 bits.
#include <algorithm>
#include <cstring>

#include "loops.h"

#if TANDEM_MULTIVERSION
#include <immintrin.h>

namespace tandem::cpu {

namespace {

#define TANDEM_TARGET TANDEM_TARGET_V3

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
        auto* total = reinterpret_cast<__m256i*>(sums + (r * N + d) * 16 + h * 8);
        const __m256i wide = _mm256_madd_epi16(sum[r][d][h], ones);
        _mm256_storeu_si256(total, _mm256_add_epi32(_mm256_loadu_si256(total), wide));
        sum[r][d][h] = _mm256_setzero_si256();
      }
    }
  }
}

using Words = Int<8>;
// Two products of a count above 127 and a digit do not fit int16, so the highest bit of counts is multiplied
// separately.
TANDEM_TARGET TANDEM_INLINE Words dot(const Words& sum, const Words& inputs, const Words& weights) {
  const auto four = reinterpret_cast<__m256i>(inputs), digits = reinterpret_cast<__m256i>(weights);
  const __m256i lower = _mm256_and_si256(four, _mm256_set1_epi8(0x7f));
  const __m256i highest = _mm256_and_si256(_mm256_srli_epi16(four, 7), _mm256_set1_epi8(1));
  const __m256i ones = _mm256_set1_epi16(1);
  const auto a = reinterpret_cast<Words>(_mm256_madd_epi16(_mm256_maddubs_epi16(lower, digits), ones));
  const auto b = reinterpret_cast<Words>(_mm256_madd_epi16(_mm256_maddubs_epi16(highest, digits), ones));
  return sum + a + (b << 7);
}

#include "words.inl"

template <int N>
TANDEM_TARGET TANDEM_INLINE void multiply_lines(const Pass& pass, const Lines& lines, int32_t* sums) {
  constexpr int Rows = kLines<N>;
  if (lines.most > 127) return multiply_words<N>(pass, lines, sums);
  std::fill_n(sums, Rows * N * 16, 0);
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
    const int64_t words = lines.words[c];
    for (int64_t k = 0; k < words;) {
      const int64_t end = std::min(words, k + until);
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

const Loops kAvx2Loops{kVectorChunks, nothing, nothing, steps, counts<double>, counts<float>};

}  // namespace tandem::cpu
#endif
