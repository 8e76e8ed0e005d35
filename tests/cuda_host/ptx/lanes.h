// Each lane's result from its own registers: what arithmetic.cpp and convert.cpp make instructions of.
#pragma once

#include <concepts>
#include <type_traits>

#include "machine.h"

namespace ptx {

using Words = std::vector<std::string_view>;

// D = f(A), f(A, B), f(A, B, C) for the lanes of the mask.
template <auto f, class D, class A>
void map1(const Instruction& i, Warp& w, uint32_t mask) {
  D* d = w.row<D>(i.o[0]);
  const A* a = w.in<A>(i.o[1]);
  each(mask, [=](int l) { d[l] = static_cast<D>(f(a[l])); });
}
template <auto f, class D, class A, class B>
void map2(const Instruction& i, Warp& w, uint32_t mask) {
  D* d = w.row<D>(i.o[0]);
  const A* a = w.in<A>(i.o[1]);
  const B* b = w.in<B>(i.o[2]);
  each(mask, [=](int l) { d[l] = static_cast<D>(f(a[l], b[l])); });
}
template <auto f, class D, class A, class C>
void map3(const Instruction& i, Warp& w, uint32_t mask) {
  D* d = w.row<D>(i.o[0]);
  const A* a = w.in<A>(i.o[1]);
  const A* b = w.in<A>(i.o[2]);
  const C* c = w.in<C>(i.o[3]);
  each(mask, [=](int l) { d[l] = static_cast<D>(f(a[l], b[l], c[l])); });
}
template <auto f>
void predicates(const Instruction& i, Warp& w, uint32_t mask) {
  uint32_t& d = *w.row<uint32_t>(i.o[0]);
  const uint32_t b = i.o.size() > 2 ? *w.in<uint32_t>(i.o[2]) : 0;
  d = (d & ~mask) | (f(*w.in<uint32_t>(i.o[1]), b) & mask);
}

// Calls make with a value of the C++ type of `type`; null where there is none, or make cannot do with it.
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

template <auto f>
Execute unary(Type type) {
  return for_type(
      type,
      [](auto t) -> Execute
        requires requires { f(t); }
      {
        using T = decltype(t);
        return &map1<f, T, T>;
      });
}
template <auto f>
Execute binary(Type type) {
  return for_type(
      type,
      [](auto t) -> Execute
        requires requires { f(t, t); }
      {
        using T = decltype(t);
        return &map2<f, T, T, T>;
      });
}
template <auto f>
Execute ternary(Type type) {
  return for_type(
      type,
      [](auto t) -> Execute
        requires requires { f(t, t, t); }
      {
        using T = decltype(t);
        return &map3<f, T, T, T>;
      });
}
template <auto f>
Execute shift(Type type) {
  return for_type(type,
                  [](auto t) -> Execute
                    requires std::integral<decltype(t)>
                  {
                    using T = decltype(t);
                    return &map2<f, T, T, uint32_t>;
                  });
}

constexpr auto kSame = [](auto a) { return a; };

}  // namespace ptx
