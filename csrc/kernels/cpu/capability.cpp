#include "capability.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace tandem::cpu {

namespace {

Capability detect() {
#if TANDEM_MULTIVERSION
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return Capability::kV4;
  if (__builtin_cpu_supports("x86-64-v3")) return Capability::kV3;
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
