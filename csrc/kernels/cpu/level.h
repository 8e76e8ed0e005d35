// Multiversioning of a lambda. TANDEM_CPU_KERNEL (capability.h) does it for a named function.
#pragma once

#include <type_traits>

#include "capability.h"

namespace tandem::cpu {

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
