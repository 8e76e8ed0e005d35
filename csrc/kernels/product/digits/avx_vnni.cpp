// Products of bytes by AVX-VNNI, in vectors of eight outputs.
#include <algorithm>
#include <cstring>

#include "loops.h"

#if TANDEM_MULTIVERSION
#include <immintrin.h>

namespace tandem::cpu {

namespace {

#define TANDEM_TARGET [[gnu::target("arch=x86-64-v3,avxvnni")]]

constexpr int kDoubles = 4;
template <int N>
constexpr int kLines = N == 1 ? 4 : 2;

template <int N>
TANDEM_TARGET TANDEM_INLINE void multiply(const Pass& pass, const Lines& lines, int32_t* sums) {
  constexpr int Rows = kLines<N>;
  __m256i sum[Rows][N][2];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
    for (int d = 0; d < N; ++d) sum[r][d][0] = sum[r][d][1] = _mm256_setzero_si256();
  }
  const int8_t* digits = pass.digits;
  for (int64_t c = 0; c < pass.chunks; ++c, digits += pass.chunk_bytes) {
    const uint8_t* in = lines.bytes + lines.offsets[c];
#pragma GCC unroll 1
    for (int64_t k = 0; k < kWords; ++k) {
      __m256i four[Rows];
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) four[r] = _mm256_set1_epi32(word_at(in + r * lines.pitch + 4 * k));
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

#include "rows.inl"

}  // namespace

const Loops kAvxVnniLoops{kVectorChunks, nothing, nothing, steps, counts};

}  // namespace tandem::cpu
#endif
