// CPU multiversioning: one always-inline body, compiled once per x86-64 level, chosen once per process.
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

// TANDEM_CPU_KERNEL(name, (parameters), (arguments)) defines `void name(parameters)`, which calls the always-inline
// function name_body, compiled for the level in use.
//
// TANDEM_CPU_LANES_KERNEL does the same for a template name_body<L>, where L is the number of floats in a vector of
// that level.
#if TANDEM_MULTIVERSION
#define TANDEM_CPU_KERNEL(name, parameters, arguments)                                            \
  TANDEM_TARGET_V4 static void name##_v4 parameters { name##_body arguments; }                    \
  TANDEM_TARGET_V3 static void name##_v3 parameters { name##_body arguments; }                    \
  static void name##_default parameters { name##_body arguments; }                                \
  void name parameters {                                                                          \
    static constexpr decltype(&name##_default) levels[] = {name##_default, name##_v3, name##_v4}; \
    levels[static_cast<int>(capability())] arguments;                                             \
  }
#define TANDEM_CPU_LANES_KERNEL(name, parameters, arguments)                                      \
  TANDEM_TARGET_V4 static void name##_v4 parameters { name##_body<16> arguments; }                \
  TANDEM_TARGET_V3 static void name##_v3 parameters { name##_body<8> arguments; }                 \
  static void name##_default parameters { name##_body<4> arguments; }                             \
  void name parameters {                                                                          \
    static constexpr decltype(&name##_default) levels[] = {name##_default, name##_v3, name##_v4}; \
    levels[static_cast<int>(capability())] arguments;                                             \
  }
#else
#define TANDEM_CPU_KERNEL(name, parameters, arguments) \
  void name parameters { name##_body arguments; }
#define TANDEM_CPU_LANES_KERNEL(name, parameters, arguments) \
  void name parameters { name##_body<4> arguments; }
#endif
