// The gate of the backward pass, on ranges that start at a whole byte of the mask.
#pragma once

#include <cstring>

#include "../cpu/vectors.h"

namespace tandem::cpu {

// out = open ? change(grad) : 0 for neurons [begin, end), begin a multiple of 8. Sixteen neurons at a time: their bits
// of the mask become masks of whole elements.
template <class C, class Change>
TANDEM_INLINE void gate_elements(const C* grad, const uint8_t* mask, C* out, int64_t begin, int64_t end,
                                 const Change& change) {
  Int<C> lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  int64_t n = begin;
  for (; n + kLanes <= end; n += kLanes) {
    uint16_t open;
    std::memcpy(&open, mask + n / 8, sizeof(open));
    const Int<C> shut = ((Int<C>{} + open) >> lane & 1) - 1;
    store(out + n, reinterpret_cast<Int<C>>(change(load<Vec<C>>(grad + n))) & ~shut);
  }
  for (; n < end; ++n) out[n] = (mask[n / 8] >> (n % 8)) & 1 ? change(grad[n]) : C(0);
}

}  // namespace tandem::cpu
