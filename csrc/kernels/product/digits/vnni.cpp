// Products of bytes by AVX-512 VNNI.
#include <algorithm>
#include <cstring>

#include "loops.h"

#if TANDEM_MULTIVERSION
#include <immintrin.h>

namespace tandem::cpu {

namespace {

#define TANDEM_TARGET [[gnu::target("arch=x86-64-v4,avx512vnni" TANDEM_WIDE_VECTORS)]]

constexpr int kDoubles = 8;
template <int N>
constexpr int kLines = 8;

// sums: [Rows, N, 16].
template <int N>
TANDEM_TARGET TANDEM_INLINE void multiply(const Pass& pass, const Lines& lines, int32_t* sums) {
  constexpr int Rows = kLines<N>;
  __m512i sum[Rows][N];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
    for (int d = 0; d < N; ++d) sum[r][d] = _mm512_setzero_si512();
  }
  const int8_t* digits = pass.digits;
  for (int64_t c = 0; c < pass.chunks; ++c, digits += pass.chunk_bytes) {
    const uint8_t* in = lines.bytes + lines.offsets[c];
#pragma GCC unroll 1
    for (int64_t k = 0; k < kWords; ++k) {
      __m512i weights[N];
#pragma GCC unroll 3
      for (int d = 0; d < N; ++d) weights[d] = _mm512_loadu_si512(digits + d * kTileBytes + k * 64);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const __m512i four = _mm512_set1_epi32(word_at(in + r * lines.pitch + 4 * k));
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

#include "rows.inl"

}  // namespace

const Loops kVnniLoops{kVectorChunks, nothing, nothing, steps, counts};

}  // namespace tandem::cpu
#endif
