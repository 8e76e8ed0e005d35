// CPU multiversioning: one always-inline body, compiled once per x86-64 level, chosen once per process.
#pragma once

#include <type_traits>

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

// The instructions for products of bytes, from the slowest to the fastest. VNNI adds four products to a 32-bit sum;
// AVX2 adds two to a 16-bit sum, which is widened before it overflows. Processors with AVX-VNNI may lack AVX-512. AMX
// is a matrix unit, which multiplies tiles of 16 rows by 16 outputs.
enum class ByteProducts { kNone, kAvx2, kAvxVnni, kAvx512Vnni, kAmx };

// Whether the processor has these instructions at the capability in use.
bool has(ByteProducts kind);
// The fastest that it has.
ByteProducts byte_products();

// Whether the processor compresses bytes (AVX-512 VBMI2), at the capability in use.
bool can_compress();

// Calls the always-inline lambda f(std::integral_constant<int, L>), compiled for the level in use, where L is the
// number of floats in a vector of that level. f is passed by value: no store through a pointer can change its captured
// values, so they stay in registers.
#if TANDEM_MULTIVERSION
template <class F>
TANDEM_TARGET_V4 void call_v4(F f) {
  f(std::integral_constant<int, 16>{});
}
template <class F>
TANDEM_TARGET_V3 void call_v3(F f) {
  f(std::integral_constant<int, 8>{});
}
#endif
template <class F>
void call_default(F f) {
  f(std::integral_constant<int, 4>{});
}
template <class F>
void at_level(const F& f) {
#if TANDEM_MULTIVERSION
  if (capability() == Capability::kV4) return call_v4(f);
  if (capability() == Capability::kV3) return call_v3(f);
#endif
  call_default(f);
}

}  // namespace tandem::cpu

// TANDEM_CPU_KERNEL(name, (parameters), (arguments)) { body } defines `void name(parameters)`, whose always-inline body
// is compiled for the level in use, with L as at_level() has it. The products' loops are such functions: called through
// lambdas, a stream's step took 1.04 of the time.
#if TANDEM_MULTIVERSION
#define TANDEM_CPU_KERNEL(name, parameters, arguments)                                    \
  template <int L>                                                                        \
  TANDEM_INLINE void name##_body parameters;                                              \
  TANDEM_TARGET_V4 static void name##_v4 parameters { name##_body<16> arguments; }        \
  TANDEM_TARGET_V3 static void name##_v3 parameters { name##_body<8> arguments; }         \
  static void name##_default parameters { name##_body<4> arguments; }                     \
  void name parameters {                                                                  \
    static constexpr void(*levels[]) parameters = {name##_default, name##_v3, name##_v4}; \
    levels[static_cast<int>(capability())] arguments;                                     \
  }                                                                                       \
  template <int L>                                                                        \
  TANDEM_INLINE void name##_body parameters
#else
#define TANDEM_CPU_KERNEL(name, parameters, arguments) \
  template <int L>                                     \
  TANDEM_INLINE void name##_body parameters;           \
  void name parameters { name##_body<4> arguments; }   \
  template <int L>                                     \
  TANDEM_INLINE void name##_body parameters
#endif
