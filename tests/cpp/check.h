// A small test framework: TEST registers a test, CHECK reports a failure and continues, the exit status tells the
// result. A file may also have a FUZZ, which draws its arguments from bytes: random bytes, or with TANDEM_FUZZ those of
// libFuzzer, which is guided by coverage.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cpu/capability.h"
#include "kernels/parallel.h"

namespace tandem::test {

// Draws arguments from bytes.
class Input {
 public:
  explicit Input(std::mt19937& random) : random_bytes_(random() % 128) {
    for (uint8_t& byte : random_bytes_) byte = static_cast<uint8_t>(random());
    data_ = random_bytes_.data();
    end_ = data_ + random_bytes_.size();
  }
  Input(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}

  // A number in [low, high]; low when no bytes are left.
  int64_t range(int64_t low, int64_t high) {
    uint64_t value = 0;
    for (uint64_t span = high - low; span > 0 && data_ < end_; span >>= 8) value = value << 8 | *data_++;
    return low + static_cast<int64_t>(value % static_cast<uint64_t>(high - low + 1));
  }
  bool flag() { return range(0, 1) != 0; }

  template <class E, size_t n>
  E pick(const E (&values)[n]) {
    return values[range(0, n - 1)];
  }

  template <class E>
  E* maybe(E* pointer) {
    return flag() ? pointer : nullptr;
  }

 private:
  std::vector<uint8_t> random_bytes_;
  const uint8_t *data_, *end_;
};

inline std::vector<std::pair<const char*, void (*)()>> tests;
inline void (*fuzz_test)(Input&) = nullptr;
inline int failures = 0;

// Four threads on every machine, so that the sanitizers see concurrent execution.
inline void threads_for(int64_t n, int64_t grain, RangeBody body, void* context) {
  const int64_t parts = std::min<int64_t>(4, std::max<int64_t>(1, n / grain));
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < parts; ++i) threads.emplace_back(body, n * i / parts, n * (i + 1) / parts, context);
  for (std::thread& thread : threads) thread.join();
}

// Whether the processor supports the requested level; if not, the program exits with 77.
inline bool can_run() {
  try {
    std::printf("CPU path: %s\n", cpu::capability_name(cpu::capability()));
    return true;
  } catch (const std::exception& error) {
    std::printf("skipped: %s\n", error.what());
    return false;
  }
}

}  // namespace tandem::test

#define TEST(name)                                                                        \
  static void name();                                                                     \
  static const bool name##_added = (tandem::test::tests.emplace_back(#name, name), true); \
  static void name()

#define FUZZ(in)                                                         \
  static void fuzz(tandem::test::Input&);                                \
  static const bool fuzz_added = (tandem::test::fuzz_test = fuzz, true); \
  static void fuzz(tandem::test::Input& in)

// CHECK(condition, "format", ...): the format describes the failing case.
#define CHECK(condition, ...)                                     \
  do {                                                            \
    if (!(condition) && ++tandem::test::failures <= 20) {         \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
    }                                                             \
  } while (false)

namespace tandem::test {

// Runs a range in `parts` pieces, the last one first; four at once, each by a thread.
inline int64_t parts = 1;
inline void cut_for(int64_t n, int64_t grain, RangeBody body, void* context) {
  CHECK(grain > 0, "%ld pieces", long(n));
  if (parts == 4) return threads_for(n, grain, body, context);
  const int64_t count = std::clamp<int64_t>(n / grain, 1, parts);
  for (int64_t i = count; i-- > 0;) body(n * i / count, n * (i + 1) / count, context);
}

}  // namespace tandem::test

#ifdef TANDEM_FUZZ

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  if (!tandem::test::can_run()) std::exit(77);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  tandem::test::Input in(data, size);
  tandem::test::fuzz_test(in);
  if (tandem::test::failures > 0) std::abort();
  return 0;
}

#else

int main() {
  using namespace tandem::test;
  if (!can_run()) return 77;
  for (const auto& [name, body] : tests) {
    const int before = failures;
    body();
    std::printf("%s %s\n", failures == before ? "ok  " : "FAIL", name);
  }
  std::mt19937 random(1);
  for (int run = 0; fuzz_test != nullptr && failures == 0 && run < 2000; ++run) {
    Input in(random);
    fuzz_test(in);
  }
  return failures == 0 ? 0 : 1;
}

#endif
