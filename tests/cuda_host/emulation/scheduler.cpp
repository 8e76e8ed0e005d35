// Runs the threads of one block at a time, each on a stack of its own, switching where they wait for one another.
// A seed decides the order of blocks and of threads that could run; seed 0 takes them in turn.
#include <sys/mman.h>
#include <ucontext.h>

#include <numeric>
#include <random>

#include "internal.h"

namespace emulation {

Thread* running = nullptr;
uint3 running_block;
int running_block_number = 0;

namespace {

constexpr int kMaxThreads = 1024;
constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kSharedBytes = 256 << 10;
constexpr size_t kSharedLimit = 99 << 10;  // of a block on any GPU since Ampere
constexpr char kDynamic[] = "dynamic shared memory";
constexpr size_t kSharedGap = 128;  // between shared arrays, so that an overrun hits nothing

struct SharedArray {
  const char* name;
  int line;
  char* p;
};

// The parameters of the launch and the stacks, in one mapping.
char* stacks() {
  static char* memory = static_cast<char*>(mmap(nullptr, kStackBytes * (kMaxThreads + 1), PROT_READ | PROT_WRITE,
                                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  return memory;
}

Thread threads[kMaxThreads];
int thread_count;
dim3 launch_grid, launch_block;
size_t launch_shared_bytes;
void (*launch_body)(void*);
void* launch_parameters;
const char* launch_name = "";
std::vector<int> ready;
jmp_buf scheduler_context;
bool faulted;

alignas(128) char shared_memory[kSharedBytes];
std::vector<SharedArray> shared_arrays;
size_t shared_top;

uint64_t seed = 0;
std::mt19937_64 dice;
std::vector<std::string> reports;

void suspend() {
  if (_setjmp(running->context) == 0) _longjmp(scheduler_context, 1);
}

void thread_main() {
  for (;;) {  // once per block
    launch_body(launch_parameters);
    running->state = State::kDone;
    suspend();
  }
}

void resume(Thread& thread) {
  running = &thread;
  if (_setjmp(scheduler_context) == 0) {
    if (thread.started) _longjmp(thread.context, 1);
    thread.started = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stacks() + kStackBytes * (thread.index + 1);
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, thread_main, 0);
    setcontext(&context);
  }
  running = nullptr;
}

int take_ready() {
  const size_t i = seed == 0 ? 0 : dice() % ready.size();
  const int thread = ready[i];
  ready.erase(ready.begin() + static_cast<ptrdiff_t>(i));
  return thread;
}

void wake(Thread& thread) {
  thread.state = State::kReady;
  ready.push_back(thread.index);
}

int count(State state) {
  return static_cast<int>(
      std::count_if(threads, threads + thread_count, [&](const Thread& t) { return t.state == state; }));
}

void begin_block(size_t number) {
  running_block = {static_cast<unsigned>(number % launch_grid.x),
                   static_cast<unsigned>(number / launch_grid.x % launch_grid.y),
                   static_cast<unsigned>(number / launch_grid.x / launch_grid.y)};
  ++running_block_number;
  shared_arrays.clear();
  shared_top = 0;
  ready.clear();
  for (int i = 0; i < thread_count; ++i) {
    Thread& t = threads[i];
    const unsigned u = static_cast<unsigned>(i);
    t.index = i;
    t.position = {u % launch_block.x, u / launch_block.x % launch_block.y, u / launch_block.x / launch_block.y};
    t.block_epoch = t.warp_epoch = 0;
    t.arrived = 0;
    t.waits_in = nullptr;
    t.copies.assign(1, {});
    wake(t);
  }
  check_begin_block();
  if (launch_shared_bytes > 0) shared_array(kDynamic, 0, launch_shared_bytes);
}

// Nobody may wait for a thread that has exited.
void check_exit(const Thread& thread) {
  const Thread* warp = threads + thread.index / 32 * 32;
  for (int i = 0; i < thread_count; ++i) {
    const Thread& t = threads[i];
    const bool same_warp = &t >= warp && &t < warp + 32;
    if (t.state == State::kAtBarrier) {
      report(where(thread) + " exits while others wait at a barrier");
    } else if (t.state == State::kAtCollective && same_warp && (t.mask >> thread.index % 32 & 1) != 0) {
      report(std::string(t.waits_in) + ": the mask names a lane that has exited, " + where(thread));
    } else {
      continue;
    }
    faulted = true;
    return;
  }
}

void run_block(size_t number) {
  begin_block(number);
  while (!ready.empty() && !faulted) {
    Thread& thread = threads[take_ready()];
    resume(thread);
    if (thread.state == State::kDone) check_exit(thread);
  }
  if (!faulted && count(State::kDone) != thread_count) {
    const Thread* stuck =
        std::find_if(threads, threads + thread_count, [](const Thread& t) { return t.state != State::kDone; });
    report("deadlock: " + where(*stuck));
    faulted = true;
  }
  check_end_block(thread_count);
}

}  // namespace

void* parameter_space(size_t bytes) {
  if (bytes > 4096) report("more than 4096 bytes of kernel parameters");
  return stacks();
}

cudaError_t run(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* parameters) {
  launch_name = kernel;
  const size_t size = size_t{block.x} * block.y * block.z;
  if (size == 0 || size > kMaxThreads || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 ||
      grid.z > 65535 || shared_bytes > kSharedLimit) {
    report("invalid launch configuration");
    return cudaErrorInvalidConfiguration;
  }
  launch_grid = grid;
  launch_block = block;
  launch_shared_bytes = shared_bytes;
  launch_body = body;
  launch_parameters = parameters;
  thread_count = static_cast<int>(size);
  dice.seed(seed);
  faulted = false;
  check_begin_launch();
  std::vector<size_t> order(size_t{grid.x} * grid.y * grid.z);
  std::iota(order.begin(), order.end(), size_t{0});
  if (seed != 0) std::shuffle(order.begin(), order.end(), dice);
  for (const size_t number : order) {
    run_block(number);
    if (faulted) {  // stacks hold unfinished calls
      for (Thread& t : threads) t.started = false;
      return cudaErrorLaunchFailure;
    }
  }
  return cudaSuccess;
}

uint3 thread_index() { return running->position; }
uint3 block_index() { return running_block; }
dim3 block_size() { return launch_block; }
dim3 grid_size() { return launch_grid; }
unsigned lane_index() { return static_cast<unsigned>(running->index) % 32; }

void* shared_array(const char* name, int line, size_t bytes) {
  for (const SharedArray& array : shared_arrays) {
    if (array.name == name && array.line == line) return array.p;
  }
  char* p = shared_memory + shared_top;
  shared_top += (bytes + 127) / 128 * 128 + kSharedGap;
  if (shared_top > kSharedBytes) fault("out of shared memory");
  shared_arrays.push_back({name, line, p});
  std::memset(p, 0xff, bytes);  // NaN
  check_shared_array(name, p, bytes);
  return p;
}

// All the threads of the block take part. A block in which one has exited already is at fault.
void barrier(Site at) {
  Thread& me = *running;
  me.state = State::kAtBarrier;
  me.at = at;
  me.waits_in = "__syncthreads";
  bool complete = true;
  for (int i = 0; i < thread_count; ++i) {
    const Thread& other = threads[i];
    if (other.state == State::kDone) fault("__syncthreads after " + where(other) + " exited");
    if (other.state != State::kAtBarrier) {
      complete = false;
    } else if (other.at.line != at.line) {
      fault("threads at different barriers: " + where(other));
    }
  }
  if (complete) {
    for (int i = 0; i < thread_count; ++i) {
      ++threads[i].block_epoch;
      wake(threads[i]);
    }
  }
  suspend();
}

Lane& meet(const char* name, unsigned mask, Exchange exchange, Site at) {
  Thread& me = *running;
  Thread* warp = threads + me.index / 32 * 32;
  me.state = State::kAtCollective;
  me.at = at;
  me.waits_in = name;
  me.mask = mask;
  me.exchange = exchange;
  if ((mask >> me.index % 32 & 1) == 0) fault(std::string(name) + ": the calling lane is not in its mask");
  Thread& first = warp[__builtin_ctz(mask)];  // keeps the tally of the group
  if (first.arrived++ == 0) {
    for (int l = 0; l < 32; ++l) {
      if ((mask >> l & 1) == 0) continue;
      if (warp + l >= threads + thread_count)
        fault(std::string(name) + ": the mask names lanes the block does not have");
      if (warp[l].state == State::kDone) fault(std::string(name) + ": the mask names a lane that has exited");
    }
  }
  if (first.arrived == __builtin_popcount(mask)) {
    Lane* lanes[32] = {};
    for (int l = 0; l < 32; ++l) {
      if ((mask >> l & 1) == 0) continue;
      const Thread& other = warp[l];
      if (other.exchange != exchange || other.mask != mask || other.at.line != at.line) {
        fault(std::string(name) + ": lanes at different collectives, " + where(other));
      }
      lanes[l] = &warp[l].lane;
    }
    exchange(lanes, mask);
    first.arrived = 0;
    for (int l = 0; l < 32; ++l) {
      if (mask >> l & 1) wake(warp[l]);
    }
  }
  suspend();
  return me.lane;
}

void* dynamic_shared() { return shared_array(kDynamic, 0, 0); }

std::string where(const Thread& t) {
  std::string text = "block " + std::to_string(running_block.x) + "," + std::to_string(running_block.y) + " thread " +
                     std::to_string(t.index);
  if (t.state == State::kAtBarrier || t.state == State::kAtCollective) {
    text += std::string(" (waits in ") + t.waits_in + ", line " + std::to_string(t.at.line) + ")";
  }
  return text;
}

void report(const std::string& what) {
  if (reports.size() < 50) reports.push_back(std::string(launch_name) + ": " + what);
}

void fault(const std::string& what) {
  report(what + " [" + where(*running) + "]");
  faulted = true;
  _longjmp(scheduler_context, 1);
}

bool in_thread_stack(const void* p) {
  const char* c = static_cast<const char*>(p);
  return c >= stacks() && c < stacks() + kStackBytes * (kMaxThreads + 1);
}

extern "C" {

// Forgets all reports; launches from now on are scheduled by `new_seed`.
void emulation_begin(uint64_t new_seed) {
  seed = new_seed;
  reports.clear();
}

size_t emulation_report_count() { return reports.size(); }
const char* emulation_report(size_t i) { return reports[i].c_str(); }

}  // extern "C"

}  // namespace emulation

void __syncthreads(const char* file, int line) { emulation::barrier({file, line}); }
