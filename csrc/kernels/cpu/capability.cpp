#include "capability.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace tandem::cpu {

namespace {

#if TANDEM_MULTIVERSION
#if defined(__clang__)  // clang knows the names of the levels only since version 18
bool has_v3() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
}
bool has_v4() {
  return has_v3() && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
bool has_v3() { return __builtin_cpu_supports("x86-64-v3"); }
bool has_v4() { return __builtin_cpu_supports("x86-64-v4"); }
#endif
#endif

Capability detect() {
#if TANDEM_MULTIVERSION
  __builtin_cpu_init();
  if (has_v4()) return Capability::kV4;
  if (has_v3()) return Capability::kV3;
#endif
  return Capability::kDefault;
}

Capability choose() {
  const Capability best = detect();
  const char* wish = std::getenv("TANDEM_CPU_CAPABILITY");
  if (wish == nullptr || *wish == '\0') return best;
  for (Capability level : {Capability::kDefault, Capability::kV3, Capability::kV4}) {
    if (capability_name(level) != std::string(wish)) continue;
    if (level <= best) return level;
    throw std::runtime_error("TANDEM_CPU_CAPABILITY=" + std::string(wish) + ": this processor only reaches \"" +
                             capability_name(best) + "\"");
  }
  throw std::runtime_error("TANDEM_CPU_CAPABILITY=" + std::string(wish) + ": allowed are default, v3, v4");
}

}  // namespace

Capability capability() {
  static const Capability chosen = choose();
  return chosen;
}

const char* capability_name(Capability level) {
  static constexpr const char* names[] = {"default", "v3", "v4"};
  return names[static_cast<int>(level)];
}

}  // namespace tandem::cpu
