// Between the parts of the emulation: the scheduler runs threads, the checker watches their accesses.
#pragma once

#include <csetjmp>
#include <string>
#include <vector>

#include "emulator.h"

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace emulation {

enum class State { kReady, kAtBarrier, kAtCollective, kDone };

// What a lane brings to a collective and takes from it.
struct Lane {
  uint64_t in[10];
  uint64_t out[4];
};
using Exchange = void (*)(Lane* const* lanes, unsigned mask);

// A cp.async that has not landed.
struct Copy {
  char* shared;
  const char* global;
  bool valid;  // else zeros are written
};

struct Thread {
  int index;  // in its block
  uint3 position;
  State state;
  Site at;               // where it waits
  const char* waits_in;  // and for what
  unsigned mask;
  Exchange exchange;
  int arrived;  // lanes of the collective of which this is the first lane
  Lane lane;
  uint32_t block_epoch;                   // barriers passed
  uint32_t warp_epoch;                    // __syncwarps passed
  std::vector<std::vector<Copy>> copies;  // groups, oldest first; the last is not committed yet
  bool started;
  jmp_buf context;
};

extern Thread* running;  // null outside of kernels
extern uint3 running_block;
extern int running_block_number;  // counts all blocks ever run

// Meets the other lanes of `mask`; the last to arrive runs `exchange` for all.
Lane& meet(const char* name, unsigned mask, Exchange exchange, Site at);

void report(const std::string& what);
// Reports and ends the launch, as a fault does on the GPU. Does not return.
[[noreturn]] void fault(const std::string& what);
std::string where(const Thread& thread);
bool in_thread_stack(const void* p);

// The checker; empty functions where it is not built in.
void check_begin_launch();
void check_begin_block();
void check_end_block(int threads);
void check_shared_array(const char* name, char* p, size_t bytes);
void check_read(const void* p, size_t bytes, const void* instruction);
void check_copy_issued(const Copy& copy, const void* instruction);
void check_copy_landed(const Copy& copy);

}  // namespace emulation
