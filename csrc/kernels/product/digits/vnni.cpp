// Products of bytes by AVX-512 VNNI.
#include <algorithm>
#include <cstring>

#include "loops.h"

#if TANDEM_MULTIVERSION
#include <immintrin.h>

namespace tandem::cpu {

namespace {

#define TANDEM_TARGET [[gnu::target("arch=x86-64-v4,avx512vnni" TANDEM_WIDE_VECTORS)]]

template <int N>
constexpr int kLines = 8;

using Words = Int<16>;
TANDEM_TARGET TANDEM_INLINE Words dot(const Words& sum, const Words& inputs, const Words& weights) {
  return reinterpret_cast<Words>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(inputs),
                                                     reinterpret_cast<__m512i>(weights)));
}

#include "words.inl"

template <int N>
TANDEM_TARGET TANDEM_INLINE void multiply_lines(const Pass& pass, const Lines& lines, int32_t* sums) {
  multiply_words<N>(pass, lines, sums);
}

#include "rows.inl"

}  // namespace

const Loops kVnniLoops{kVectorChunks, nothing, nothing, steps, counts<double>, counts<float>};

}  // namespace tandem::cpu
#endif
