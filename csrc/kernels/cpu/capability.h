// CPU multiversioning: always-inline bodies, compiled once per x86-64 level, chosen once per process (level.h).
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define TANDEM_MULTIVERSION 1
#if defined(__clang__)
#define TANDEM_WIDE_VECTORS
#else
#define TANDEM_WIDE_VECTORS ",prefer-vector-width=512"
#endif
#define TANDEM_TARGET_V4 [[gnu::target("arch=x86-64-v4" TANDEM_WIDE_VECTORS)]]
#define TANDEM_TARGET_V3 [[gnu::target("arch=x86-64-v3")]]
#else
#define TANDEM_MULTIVERSION 0
#endif

#define TANDEM_INLINE inline __attribute__((always_inline))
#define TANDEM_INLINE_LAMBDA __attribute__((always_inline))

namespace tandem::cpu {

enum class Capability : int { kDefault = 0, kV3 = 1, kV4 = 2 };

// The highest level of this processor, or the lower one that TANDEM_CPU_CAPABILITY (default | v3 | v4) sets. Throws
// std::runtime_error if that variable names an unknown level or one that the processor lacks.
Capability capability();
const char* capability_name(Capability level);

}  // namespace tandem::cpu
