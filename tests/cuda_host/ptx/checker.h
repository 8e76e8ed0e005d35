// What is known of every byte of memory: who wrote and read it when.
#pragma once

#include "machine.h"

namespace ptx::checker {

// One access of a warp: the lanes that take part, their addresses, the bytes of each.
struct Request {
  const Instruction& instruction;
  const Warp& warp;
  uint32_t mask;
  const uint64_t* addresses;
  int bytes;
  bool write;
};

// Reports what is wrong and counts. Lanes whose access must not be executed fault.
void global(const Request& request);
void shared(const Request& request, bool lands_later = false);
// To other threads, a cp.async is a write at this time.
void landed(const Warp& warp, int lane, uint32_t to, uint32_t size);

void begin_launch();
void begin_block(const Block& block, uint32_t dynamic_bytes);

}  // namespace ptx::checker
