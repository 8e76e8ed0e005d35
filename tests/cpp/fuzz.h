// What the fuzz targets share: arguments from bytes, a parallel-for that cuts its range, an end with a message.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <initializer_list>

#include "kernels/cpu/capability.h"
#include "kernels/parallel.h"

#define REQUIRE(condition, ...)                                            \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                   \
      std::fprintf(stderr, "\n");                                          \
      std::abort();                                                        \
    }                                                                      \
  } while (false)

namespace tandem::test {

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}

  // A number in [low, high]; where the bytes have run out, low.
  int64_t range(int64_t low, int64_t high) {
    uint64_t value = 0;
    for (uint64_t span = high - low; span > 0 && data_ < end_; span >>= 8) value = value << 8 | *data_++;
    return low + static_cast<int64_t>(value % static_cast<uint64_t>(high - low + 1));
  }
  bool flag() { return range(0, 1) != 0; }

  template <class E>
  E pick(std::initializer_list<E> values) {
    return values.begin()[range(0, static_cast<int64_t>(values.size()) - 1)];
  }

  template <class E>
  E* maybe(E* pointer) {
    return flag() ? pointer : nullptr;
  }

 private:
  const uint8_t *data_, *end_;
};

// Ranges in so many parts, the last one first.
inline int64_t parts = 1;
inline void cut_for(int64_t n, int64_t grain, RangeBody body, void* context) {
  REQUIRE(grain > 0, "%ld pieces", long(n));
  const int64_t count = std::clamp<int64_t>(n / grain, 1, parts);
  for (int64_t i = count; i-- > 0;) body(n * i / count, n * (i + 1) / count, context);
}

}  // namespace tandem::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

// A level that the processor lacks exits with 77.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  try {
    std::printf("CPU path: %s\n", tandem::cpu::capability_name(tandem::cpu::capability()));
  } catch (const std::exception& error) {
    std::printf("skipped: %s\n", error.what());
    std::exit(77);
  }
  return 0;
}
