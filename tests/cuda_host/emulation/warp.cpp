// What the lanes of a warp exchange.
#include "internal.h"

namespace emulation {

namespace {

void exchange_nothing(Lane* const*, unsigned) {}

// Only a __syncwarp orders memory; shuffles and votes do not.
void exchange_order(Lane* const*, unsigned) {
  Thread* warp = running - running->index % 32;
  for (int l = 0; l < 32; ++l) ++warp[l].warp_epoch;
}

void exchange_votes(Lane* const* lanes, unsigned mask) {
  uint64_t votes = 0;
  for (int l = 0; l < 32; ++l) {
    if (mask >> l & 1) votes |= lanes[l]->in[0] << l;
  }
  for (int l = 0; l < 32; ++l) {
    if (mask >> l & 1) lanes[l]->out[0] = votes;
  }
}

void exchange_values(Lane* const* lanes, unsigned mask) {
  for (int l = 0; l < 32; ++l) {
    if ((mask >> l & 1) == 0) continue;
    const auto source = lanes[l]->in[1];
    if (source > 31 || (mask >> source & 1) == 0) {
      fault("lane " + std::to_string(l) + " shuffles from lane " + std::to_string(source) + ", which takes no part");
    }
    lanes[l]->out[0] = lanes[source]->in[0];
  }
}

}  // namespace

uint64_t shuffle(const char* name, unsigned mask, uint64_t value, int source, Site at) {
  running->lane.in[0] = value;
  running->lane.in[1] = static_cast<uint64_t>(source);
  return meet(name, mask, exchange_values, at).out[0];
}

}  // namespace emulation

void __syncwarp(unsigned mask, const char* file, int line) {
  emulation::meet("__syncwarp", mask, mask == 0xffffffffu ? emulation::exchange_order : emulation::exchange_nothing,
                  {file, line});
}

unsigned __ballot_sync(unsigned mask, int predicate, const char* file, int line) {
  emulation::running->lane.in[0] = predicate != 0;
  return static_cast<unsigned>(emulation::meet("__ballot_sync", mask, emulation::exchange_votes, {file, line}).out[0]);
}
