// How kernels use threads: the caller provides a parallel-for, kernels only split their work into ranges.
#pragma once

#include <cstdint>

namespace tandem {

using RangeBody = void (*)(int64_t begin, int64_t end, void* context);

// Calls body on disjoint ranges that cover [0, n). None is shorter than `grain` >= 1 unless n is.
using ParallelFor = void (*)(int64_t n, int64_t grain, RangeBody body, void* context);

inline void serial_for(int64_t n, int64_t /*grain*/, RangeBody body, void* context) {
  if (n > 0) body(0, n, context);
}

template <class F>
void parallel_ranges(ParallelFor parallel, int64_t n, int64_t grain, const F& f) {
  if (n <= 0) return;
  parallel(
      n, grain, [](int64_t begin, int64_t end, void* context) { (*static_cast<const F*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace tandem
