// A test framework in forty lines: TEST registers, CHECK reports and goes on, the program's exit status tells.
#pragma once

#include <algorithm>
#include <cstdio>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cpu/capability.h"
#include "kernels/parallel.h"

namespace tandem::test {

struct Registry {
  std::vector<std::pair<const char*, void (*)()>> tests;
  int failures = 0;

  static Registry& get() {
    static Registry registry;
    return registry;
  }
  static bool add(const char* name, void (*body)()) {
    get().tests.emplace_back(name, body);
    return true;
  }
};

// Four threads, whatever the machine has: the sanitizers see what really runs at the same time.
inline void threads_for(int64_t n, int64_t grain, RangeBody body, void* context) {
  const int64_t parts = std::min<int64_t>(4, std::max<int64_t>(1, n / grain));
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < parts; ++i) threads.emplace_back(body, n * i / parts, n * (i + 1) / parts, context);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace tandem::test

#define TEST(name)                                                           \
  static void name();                                                        \
  static const bool name##_added = tandem::test::Registry::add(#name, name); \
  static void name()

// CHECK(condition, "format", ...): the format says which case failed.
#define CHECK(condition, ...)                                       \
  do {                                                              \
    if (!(condition)) {                                             \
      if (++tandem::test::Registry::get().failures <= 20) {         \
        std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
        std::printf(__VA_ARGS__);                                   \
        std::printf("\n");                                          \
      }                                                             \
    }                                                               \
  } while (false)

int main() {
  auto& registry = tandem::test::Registry::get();
  try {
    std::printf("CPU path: %s\n", tandem::cpu::capability_name(tandem::cpu::capability()));
  } catch (const std::exception& error) {
    std::printf("skipped: %s\n", error.what());
    return 77;
  }
  for (const auto& [name, body] : registry.tests) {
    const int before = registry.failures;
    body();
    std::printf("%s %s\n", registry.failures == before ? "ok  " : "FAIL", name);
  }
  return registry.failures == 0 ? 0 : 1;
}
