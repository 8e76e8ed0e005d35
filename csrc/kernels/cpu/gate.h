// The gate of the backward pass, on ranges that start at a whole byte of the mask.
#pragma once

#include <cstring>
#include <type_traits>

#include "lanes.h"

namespace tandem::cpu {

// grad_z = open ? grad / threshold : 0 of neurons [begin, end), begin a multiple of 8. Sixteen neurons at a time: their
// bits of the mask become masks of whole elements.
template <class C>
TANDEM_INLINE void gate_elements(const C* grad, const uint8_t* mask, C threshold, C* grad_z, int64_t begin,
                                 int64_t end) {
  using Word = std::conditional_t<sizeof(C) == 4, uint32_t, uint64_t>;
  int64_t n = begin;
  for (; n + kLanes <= end; n += kLanes) {
    uint16_t open;
    std::memcpy(&open, mask + n / 8, sizeof(open));
    C quotient[kLanes];
    Word bits[kLanes];
    for (int i = 0; i < kLanes; ++i) quotient[i] = grad[n + i] / threshold;
    std::memcpy(bits, quotient, sizeof(bits));
    for (int i = 0; i < kLanes; ++i) bits[i] &= Word{0} - (Word{open} >> i & 1);
    std::memcpy(grad_z + n, bits, sizeof(bits));
  }
  for (; n < end; ++n) grad_z[n] = (mask[n / 8] >> (n % 8)) & 1 ? grad[n] / threshold : C(0);
}

}  // namespace tandem::cpu
