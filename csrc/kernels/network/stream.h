// The state that a network with window timing keeps from one step of a stream to the next. Spikes are of one step: a
// byte per neuron, 0 or 1.
//
//   input's window   0        1        2        3
//   first layer      adds up  adds up  adds up  ...       its counters, then one product
//                             fires    fires              min(count, t + 1) spikes by step t
//   second layer              adds up  adds up
//                                      fires              and so on: one window later per layer of window timing
#pragma once

#include <cstdint>
#include <cstring>

namespace tandem::network {

// Adds the spikes of a step to the counts of the window, which start at its first step.
inline void add_spikes(const uint8_t* spikes, int64_t n, bool first, uint8_t* counts) {
  if (first) {
    std::memcpy(counts, spikes, n);
  } else {
    for (int64_t k = 0; k < n; ++k) counts[k] = static_cast<uint8_t>(counts[k] + spikes[k]);
  }
}

// The spikes at step t of neurons that fire counts[k] times, from the window's first step on.
inline void fire_counts(const uint8_t* counts, int64_t n, int64_t t, uint8_t* spikes) {
  for (int64_t k = 0; k < n; ++k) spikes[k] = counts[k] > t ? 1 : 0;
}

// Exchanges the spikes `now` for those of `steps` steps ago. ring: [ceil(steps / 8), n], a bit per step.
inline void delay_spikes(const uint8_t* now, int64_t n, int64_t steps, int64_t step, uint8_t* ring, uint8_t* then) {
  const int64_t at = step % steps, bit = at % 8;
  uint8_t* plane = ring + at / 8 * n;
  for (int64_t k = 0; k < n; ++k) {
    then[k] = static_cast<uint8_t>(plane[k] >> bit & 1);
    plane[k] = static_cast<uint8_t>((plane[k] & ~(1 << bit)) | (now[k] & 1) << bit);
  }
}

// Exchanges the currents `now` for those of `slots` turns ago. ring: [slots, n].
inline void delay_currents(const float* now, int64_t n, int64_t slots, int64_t turn, float* ring, float* then) {
  float* slot = ring + turn % slots * n;
  std::memcpy(then, slot, n * sizeof(float));
  std::memcpy(slot, now, n * sizeof(float));
}

}  // namespace tandem::network
