#include "capability.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if TANDEM_MULTIVERSION
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

bool has_amx() {
  constexpr int kFirstLeaf = 7, kTileBit = 24, kInt8Bit = 25;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(kFirstLeaf, 0, &a, &b, &c, &d) == 0 || !(d >> kTileBit & 1) || !(d >> kInt8Bit & 1)) {
    return false;
  }
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // Linux provides the tile registers on request
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}
#endif

Capability detect() {
#if TANDEM_MULTIVERSION
  __builtin_cpu_init();
  if (has_v4()) return Capability::kV4;
  if (has_v3()) return Capability::kV3;
#endif
  return Capability::kDefault;
}

Capability read_capability() {
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
  static const Capability chosen = read_capability();
  return chosen;
}

const char* capability_name(Capability level) {
  static constexpr const char* names[] = {"default", "v3", "v4"};
  return names[static_cast<int>(level)];
}

#if TANDEM_MULTIVERSION
bool has(ByteProducts kind) {
  const Capability level = capability();
  if (kind == ByteProducts::kAvx2) return level != Capability::kDefault;
  if (kind == ByteProducts::kAvxVnni) return level != Capability::kDefault && has_avx_vnni();
  if (kind == ByteProducts::kAvx512Vnni) return level == Capability::kV4 && __builtin_cpu_supports("avx512vnni");
  return kind == ByteProducts::kNone || (level == Capability::kV4 && has_amx());
}
#else
bool has(ByteProducts kind) { return kind == ByteProducts::kNone; }
#endif

ByteProducts byte_products() {
  static const ByteProducts fastest = [] {
    for (auto kind : {ByteProducts::kAmx, ByteProducts::kAvx512Vnni, ByteProducts::kAvxVnni, ByteProducts::kAvx2}) {
      if (has(kind)) return kind;
    }
    return ByteProducts::kNone;
  }();
  return fastest;
}

bool can_compress() {
#if TANDEM_MULTIVERSION
  static const bool can = capability() == Capability::kV4 && __builtin_cpu_supports("avx512vbmi2");
  return can;
#else
  return false;
#endif
}

}  // namespace tandem::cpu
