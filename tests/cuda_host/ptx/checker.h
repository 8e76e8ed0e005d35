// Watches memory: who wrote and read every byte, and when.
#pragma once

#include "machine.h"

namespace ptx::checker {

// One access of a warp: its lanes, their addresses, and the bytes per lane.
struct Request {
  const Instruction& instruction;
  const Warp& warp;
  uint32_t mask;
  const uint64_t* addresses;
  int bytes;
  bool write;
};

// Count the access and report what is wrong. Throw a fault if the access must not be executed.
void global(const Request& request);
void shared(const Request& request, bool lands_later = false);
// A cp.async has landed: for other threads it is a write at this time.
void landed(const Warp& warp, int lane, uint32_t to, uint32_t size);

void forget_buffers();
void begin_launch(const Kernel& kernel, uint32_t dynamic_bytes);

}  // namespace ptx::checker
