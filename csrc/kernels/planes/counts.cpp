#include "counts.h"

#include <algorithm>

#include "../cpu/vectors.h"

namespace tandem::cpu {

void advance(const uint8_t* now, int64_t n, uint8_t* plane, uint8_t* counts, int64_t bit) {
  for (int64_t k = 0; k < n; ++k) {
    const int then = plane[k] >> bit & 1, enters = now[k] & 1;
    counts[k] = static_cast<uint8_t>(counts[k] + enters - then);
    plane[k] = static_cast<uint8_t>((plane[k] & ~(1 << bit)) | enters << bit);
  }
}

bool follow(const uint8_t* target, int64_t n, int64_t end, uint8_t* counts, Moves& moves) {
  ByteLanes late{};
  for (; n < end; n += kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, end - n));
    const auto wanted = load_first<ByteLanes>(target + n, lanes);
    const auto now = load_first<ByteLanes>(counts + n, lanes);
    const auto rises = reinterpret_cast<ByteLanes>(wanted > now);
    const auto falls = reinterpret_cast<ByteLanes>(wanted < now);
    uint32_t moving = bits_of(rises | falls);
    if (moving == 0) continue;
    const ByteLanes then = now - rises + falls;  // lanes are 0 or -1
    store_first(counts + n, then, lanes);
    late |= then ^ wanted;
    for (const uint32_t falling = bits_of(falls); moving != 0; moving &= moving - 1) {
      const int k = __builtin_ctz(moving);
      moves.add(n + k, (falling >> k & 1) != 0);
    }
  }
  return any(late);
}

void jump(const uint8_t* target, int64_t size, uint8_t* counts, Moves& moves) {
  for (int64_t n = 0; n < size; ++n) {
    if (counts[n] != target[n]) moves.add(n, target[n] < counts[n]), counts[n] = target[n];
  }
}

}  // namespace tandem::cpu
