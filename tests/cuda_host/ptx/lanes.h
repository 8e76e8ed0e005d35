// Instructions that compute each lane's result from the lane's own registers, for arithmetic.cpp and convert.cpp.
#pragma once

#include <concepts>
#include <tuple>
#include <type_traits>
#include <utility>

#include "machine.h"

namespace ptx {

inline float from_half(uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }

// D = f(A...) for the lanes of the mask.
template <auto f, class D, class... A>
void map(const Instruction& i, Warp& w, uint32_t mask) {
  [&]<size_t... k>(std::index_sequence<k...>) {
    D* d = w.row<D>(i.o[0]);
    const std::tuple<const A*...> in(w.in<A>(i.o[k + 1])...);
    each(mask, [=](int l) { d[l] = static_cast<D>(f(std::get<k>(in)[l]...)); });
  }(std::index_sequence_for<A...>());
}
template <auto f>
void predicates(const Instruction& i, Warp& w, uint32_t mask) {
  uint32_t& d = *w.row<uint32_t>(i.o[0]);
  const uint32_t b = i.o.size() > 2 ? *w.in<uint32_t>(i.o[2]) : 0;
  d = (d & ~mask) | (f(*w.in<uint32_t>(i.o[1]), b) & mask);
}

template <size_t, class T>
using Same = T;

// Calls make with a value of the C++ type of `type`. Null if there is none or make does not take it.
template <class Make>
Execute for_type(Type type, Make make) {
  const auto with = [&](auto value) -> Execute {
    if constexpr (std::is_invocable_v<Make, decltype(value)>) return make(value);
    return nullptr;
  };
  switch (type) {
    case Type::kB16:
    case Type::kU16:
      return with(uint16_t{});
    case Type::kS16:
      return with(int16_t{});
    case Type::kB32:
    case Type::kU32:
      return with(uint32_t{});
    case Type::kS32:
      return with(int32_t{});
    case Type::kB64:
    case Type::kU64:
      return with(uint64_t{});
    case Type::kS64:
      return with(int64_t{});
    case Type::kF32:
      return with(float{});
    case Type::kF64:
      return with(double{});
    default:
      return nullptr;
  }
}

// Applies f to operands of the instruction's type, as many as `k` has elements. Null if f does not take them.
template <auto f, size_t... k>
Execute find_map(Type type, std::index_sequence<k...>) {
  return for_type(type, []<class T>(T) -> Execute {
    if constexpr (std::is_invocable_v<decltype(f), Same<k, T>...>) return &map<f, T, Same<k, T>...>;
    return nullptr;
  });
}
template <auto f>
Execute unary(Type type) {
  return find_map<f>(type, std::make_index_sequence<1>());
}
template <auto f>
Execute binary(Type type) {
  return find_map<f>(type, std::make_index_sequence<2>());
}
template <auto f>
Execute shift(Type type) {
  return for_type(type, []<std::integral T>(T) -> Execute { return &map<f, T, T, uint32_t>; });
}

constexpr auto kSame = [](auto a) { return a; };

}  // namespace ptx
