// Products of bytes by AVX-VNNI, in vectors of eight outputs.
#include <algorithm>
#include <cstring>

#include "loops.h"

#if TANDEM_MULTIVERSION
#include <immintrin.h>

namespace tandem::cpu {

namespace {

#define TANDEM_TARGET [[gnu::target("arch=x86-64-v3,avxvnni")]]

template <int N>
constexpr int kLines = N == 1 ? 4 : 2;

using Words = Int<8>;
TANDEM_TARGET TANDEM_INLINE Words dot(const Words& sum, const Words& inputs, const Words& weights) {
  return reinterpret_cast<Words>(_mm256_dpbusd_avx_epi32(
      reinterpret_cast<__m256i>(sum), reinterpret_cast<__m256i>(inputs), reinterpret_cast<__m256i>(weights)));
}

#include "words.inl"

template <int N>
TANDEM_TARGET TANDEM_INLINE void multiply_lines(const Pass& pass, const Lines& lines, int32_t* sums) {
  multiply_words<N>(pass, lines, sums);
}

#include "rows.inl"

}  // namespace

const Loops kAvxVnniLoops{kVectorChunks, nothing, nothing, steps, counts<double>, counts<float>};

}  // namespace tandem::cpu
#endif
