// Memory of a thread, taken in the order of a stack and kept from call to call: aligned, uninitialised.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "../parallel.h"
#if __has_include(<sanitizer/asan_interface.h>)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, size)
#define ASAN_UNPOISON_MEMORY_REGION(begin, size)
#endif

namespace tandem::cpu {

// A scope, at whose end its memory is free again. Only the innermost scope of a thread may take memory.
class Workspace {
 public:
  Workspace() : Workspace(of_thread()) {}
  explicit Workspace(Workspace& outer) : Workspace(outer.stack_) {}
  Workspace(const Workspace&) = delete;
  ~Workspace() {
    stack_.block = block_;
    stack_.used = used_;
  }

  // Takes `size` elements. AddressSanitizer sees what reads or writes beyond the last.
  template <class E>
  E* take(int64_t size) {
    const int64_t bytes = size * static_cast<int64_t>(sizeof(E)), lines = bytes / kLine + 1;
    if (stack_.used + lines > stack_.blocks[stack_.block].size) stack_.grow(lines);
    char* const taken = stack_.blocks[stack_.block].lines[stack_.used].bytes;
    stack_.used += lines;
    ASAN_UNPOISON_MEMORY_REGION(taken, bytes);
    ASAN_POISON_MEMORY_REGION(taken + bytes, lines * kLine - bytes);
    return reinterpret_cast<E*>(taken);
  }

  // `size` zeros for one user at a time, who leaves them zero.
  int32_t* zeros(int64_t size) {
    if (stack_.zeros.size() < static_cast<size_t>(size)) stack_.zeros.resize(size);
    return stack_.zeros.data();
  }

 private:
  static constexpr int64_t kLine = 64, kLeastLines = 1024;
  struct alignas(kLine) Line {
    char bytes[kLine];
  };
  struct Block {
    std::unique_ptr<Line[]> lines;
    int64_t size = 0;
  };
  struct Stack {
    std::vector<Block> blocks = std::vector<Block>(1);
    size_t block = 0;
    int64_t used = 0;  // lines of the block
    std::vector<int32_t> zeros;

    // Goes on to a block with room for so many lines.
    void grow(int64_t lines) {
      if (block + 1 == blocks.size()) blocks.emplace_back();
      Block& to = blocks[++block];
      used = 0;
      if (to.size >= lines) return;
      to = {};
      const int64_t size = std::max(lines, kLeastLines);
      to.lines.reset(new Line[size]);
      to.size = size;
    }
  };

  explicit Workspace(Stack& stack) : stack_(stack), block_(stack.block), used_(stack.used) {}
  static Stack& of_thread() {
    thread_local Stack stack;
    return stack;
  }

  Stack& stack_;
  size_t block_;
  int64_t used_;
};

// parallel_ranges() for f(begin, end, workspace), with the workspace of the thread that runs it.
template <class F>
void for_workers(ParallelFor parallel, int64_t n, int64_t grain, const F& f) {
  parallel_ranges(parallel, n, grain, [&](int64_t begin, int64_t end) {
    Workspace workspace;
    f(begin, end, workspace);
  });
}

}  // namespace tandem::cpu
