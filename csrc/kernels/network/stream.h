// What a network with window timing remembers from one step of a stream to the next. All values are spikes of one step,
// a byte each, 0 or 1.
//
//   input's window   0        1        2        3
//   first layer      adds up  adds up  adds up  ...       its counters, then one product
//                             fires    fires              min(count, t + 1) spikes by step t
//   second layer              adds up  adds up
//                                      fires              and so on: a window later for each layer that waits
#pragma once

#include <cstdint>
#include <cstring>

namespace tandem::network {

// counts of a window: at its first step they begin.
inline void add_spikes(const uint8_t* spikes, int64_t n, bool first, uint8_t* counts) {
  if (first) {
    std::memcpy(counts, spikes, n);
  } else {
    for (int64_t k = 0; k < n; ++k) counts[k] = static_cast<uint8_t>(counts[k] + spikes[k]);
  }
}

// The spikes at step t of neurons that fire so often from a window's first step on.
inline void fire_counts(const uint8_t* counts, int64_t n, int64_t t, uint8_t* spikes) {
  for (int64_t k = 0; k < n; ++k) spikes[k] = counts[k] > t ? 1 : 0;
}

// Spikes that went into the ring `steps` steps ago, for the same neurons' of now. ring is [ceil(steps / 8), n].
inline void delay_spikes(const uint8_t* now, int64_t n, int64_t steps, int64_t step, uint8_t* ring, uint8_t* then) {
  const int64_t at = step % steps, bit = at % 8;
  uint8_t* plane = ring + at / 8 * n;
  for (int64_t k = 0; k < n; ++k) {
    then[k] = static_cast<uint8_t>(plane[k] >> bit & 1);
    plane[k] = static_cast<uint8_t>((plane[k] & ~(1 << bit)) | (now[k] & 1) << bit);
  }
}

// Currents that went into the ring [slots, n] so many turns ago.
inline void delay_currents(const float* now, int64_t n, int64_t slots, int64_t turn, float* ring, float* then) {
  float* slot = ring + turn % slots * n;
  std::memcpy(then, slot, n * sizeof(float));
  std::memcpy(slot, now, n * sizeof(float));
}

}  // namespace tandem::network
