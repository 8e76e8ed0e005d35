// Instructions that compute each lane's result from its own registers. There is no fma: it rounds once where the
// kernels are to round twice (-fmad=false), so one in the PTX is unknown here.
#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <type_traits>

#include "machine.h"

namespace ptx {

namespace {

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

constexpr auto kAdd = [](auto a, auto b) { return a + b; };
constexpr auto kSub = [](auto a, auto b) { return a - b; };
constexpr auto kMul = [](auto a, auto b) { return a * b; };
constexpr auto kMad = [](std::integral auto a, auto b, auto c) { return a * b + c; };
constexpr auto kNeg = [](auto a) { return -a; };
constexpr auto kNot = [](std::integral auto a) { return ~a; };
constexpr auto kAnd = [](std::integral auto a, auto b) { return a & b; };
constexpr auto kOr = [](std::integral auto a, auto b) { return a | b; };
constexpr auto kXor = [](std::integral auto a, auto b) { return a ^ b; };
constexpr auto kAbs = [](auto a) { return a < 0 ? -a : a == 0 ? decltype(a)(0) : a; };

constexpr auto kDiv = []<class T>(T a, T b) -> T {
  if constexpr (std::integral<T>) {
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(0 - a);
  }
  return a / b;
};
constexpr auto kRem = []<std::integral T>(T a, T b) -> T {
  if (b == 0) return a;
  return std::is_signed_v<T> && b == static_cast<T>(-1) ? T(0) : static_cast<T>(a % b);
};
// Of a number and NaN it is the number; -0 is less than 0.
constexpr auto kMin = []<class T>(T a, T b) -> T {
  if constexpr (std::floating_point<T>) {
    if (a != a) return b;
    if (a == b) return std::signbit(a) ? a : b;
    return b < a ? b : a;
  }
  return std::min(a, b);
};
constexpr auto kMax = []<class T>(T a, T b) -> T {
  if constexpr (std::floating_point<T>) {
    if (a != a) return b;
    if (a == b) return std::signbit(a) ? b : a;
    return b > a ? b : a;
  }
  return std::max(a, b);
};
constexpr auto kShl = []<class T>(T a, uint32_t n) -> T { return n >= 8 * sizeof(T) ? T(0) : static_cast<T>(a << n); };
constexpr auto kShr = []<class T>(T a, uint32_t n) -> T {
  return static_cast<T>(a >> std::min<uint32_t>(n, 8 * sizeof(T) - 1) >> (n >= 8 * sizeof(T)));
};
constexpr auto kRcp = [](std::floating_point auto a) { return 1 / a; };
constexpr auto kSqrt = [](std::floating_point auto a) { return std::sqrt(a); };

template <class T>
using Wide = std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
                                std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;
constexpr auto kMulWide = []<class T>(T a, T b) { return static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b); };
constexpr auto kMadWide = []<class T>(T a, T b, Wide<T> c) {
  return static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b) + c;
};
constexpr auto kMulHi = []<class T>(T a, T b) -> T {
  if constexpr (sizeof(T) == 8) {
    using Twice = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>(static_cast<Twice>(a) * b >> 64);
  } else {
    return static_cast<T>(static_cast<Wide<T>>(a) * b >> 8 * sizeof(T));
  }
};

Execute multiply(const Words& words, Type type) {
  const bool mad = words[0] == "mad";
  if (type == Type::kF32 || type == Type::kF64) {
    return mad ? nullptr : binary<kMul>(type);
  }
  const auto narrow = [&](auto make) { return size_of(type) <= 4 ? for_type(type, make) : nullptr; };
  if (words[1] == "lo") return mad ? ternary<kMad>(type) : binary<kMul>(type);
  if (words[1] == "hi" && !mad) {
    return for_type(type, []<std::integral T>(T) -> Execute { return &map2<kMulHi, T, T, T>; });
  }
  if (words[1] == "wide" && !mad) {
    return narrow([]<std::integral T>(T) -> Execute { return &map2<kMulWide, Wide<T>, T, T>; });
  }
  if (words[1] == "wide") {
    return narrow([]<std::integral T>(T) -> Execute { return &map3<kMadWide, Wide<T>, T, Wide<T>>; });
  }
  return nullptr;
}

// --- comparing and choosing ------------------------------------------------------------------------------------------

template <auto f, class T>
void compare(const Instruction& i, Warp& w, uint32_t mask) {
  const T* a = w.in<T>(i.o[1]);
  const T* b = w.in<T>(i.o[2]);
  uint32_t bits = 0;
  for (int l = 0; l < kLanes; ++l) bits |= static_cast<uint32_t>(f(a[l], b[l])) << l;
  uint32_t& d = *w.row<uint32_t>(i.o[0]);
  d = (d & ~mask) | (bits & mask);
}
template <auto f>
Execute comparing(Type type) {
  return for_type(type, []<class T>(T) -> Execute { return &compare<f, T>; });
}
constexpr auto kUnordered = [](auto a, auto b) { return a != a || b != b; };

Execute find_compare(std::string_view name, Type type) {
  if (name == "eq") return comparing<([](auto a, auto b) { return a == b; })>(type);
  if (name == "ne") return comparing<([](auto a, auto b) { return !kUnordered(a, b) && a != b; })>(type);
  if (name == "lt" || name == "lo") return comparing<([](auto a, auto b) { return a < b; })>(type);
  if (name == "le" || name == "ls") return comparing<([](auto a, auto b) { return a <= b; })>(type);
  if (name == "gt" || name == "hi") return comparing<([](auto a, auto b) { return a > b; })>(type);
  if (name == "ge" || name == "hs") return comparing<([](auto a, auto b) { return a >= b; })>(type);
  if (name == "equ") return comparing<([](auto a, auto b) { return kUnordered(a, b) || a == b; })>(type);
  if (name == "neu") return comparing<([](auto a, auto b) { return a != b; })>(type);
  if (name == "ltu") return comparing<([](auto a, auto b) { return !(a >= b); })>(type);
  if (name == "leu") return comparing<([](auto a, auto b) { return !(a > b); })>(type);
  if (name == "gtu") return comparing<([](auto a, auto b) { return !(a <= b); })>(type);
  if (name == "geu") return comparing<([](auto a, auto b) { return !(a < b); })>(type);
  if (name == "num") return comparing<([](auto a, auto b) { return !kUnordered(a, b); })>(type);
  if (name == "nan") return comparing<kUnordered>(type);
  return nullptr;
}

template <class T>
void select(const Instruction& i, Warp& w, uint32_t mask) {
  T* d = w.row<T>(i.o[0]);
  const T* a = w.in<T>(i.o[1]);
  const T* b = w.in<T>(i.o[2]);
  const uint32_t chosen = *w.in<uint32_t>(i.o[3]);
  each(mask, [=](int l) { d[l] = chosen >> l & 1u ? a[l] : b[l]; });
}

// --- moving and converting -------------------------------------------------------------------------------------------

// One register into several, or several into one: the first is the lowest.
void unpack(const Instruction& i, Warp& w, uint32_t mask) {
  const int bits = 8 * size_of(i.type) / i.parts;
  each(mask, [&](int l) {
    const uint64_t value = w.value(i.o.back(), l);
    for (int part = 0; part < i.parts; ++part) {
      const Operand& to = i.o[static_cast<size_t>(part)];
      if (to.bytes != 0) w.set(to, l, value >> bits * part);
    }
  });
}
void pack(const Instruction& i, Warp& w, uint32_t mask) {
  const int bits = 8 * size_of(i.type) / i.parts;
  each(mask, [&](int l) {
    uint64_t value = 0;
    for (int part = 0; part < i.parts; ++part) {
      value |= (w.value(i.o[static_cast<size_t>(part) + 1], l) & ((uint64_t{1} << bits) - 1)) << bits * part;
    }
    w.set(i.o[0], l, value);
  });
}

float from_half(uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  return static_cast<float>(half);
}
uint16_t to_half(float x) { return std::bit_cast<uint16_t>(static_cast<_Float16>(x)); }
uint16_t to_bfloat16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return x != x ? uint16_t{0x7fff} : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// x cut to the type's width, with its sign where it has one.
int64_t extend(Type type, uint64_t x) {
  switch (type) {
    case Type::kS8:
      return static_cast<int8_t>(x);
    case Type::kU8:
    case Type::kB8:
      return static_cast<uint8_t>(x);
    case Type::kS16:
      return static_cast<int16_t>(x);
    case Type::kU16:
    case Type::kB16:
      return static_cast<uint16_t>(x);
    case Type::kS32:
      return static_cast<int32_t>(x);
    case Type::kU32:
    case Type::kB32:
      return static_cast<uint32_t>(x);
    default:
      return static_cast<int64_t>(x);
  }
}
bool is_real(Type type) {
  return type == Type::kF16 || type == Type::kBF16 || type == Type::kF32 || type == Type::kF64;
}

uint64_t from_real(double x, const Instruction& i) {
  switch (i.type) {
    case Type::kF64:
      return std::bit_cast<uint64_t>(x);
    case Type::kF32:
      return std::bit_cast<uint32_t>(static_cast<float>(x));
    case Type::kF16:
      return to_half(static_cast<float>(x));
    case Type::kBF16:
      return to_bfloat16(static_cast<float>(x));
    default:
      break;
  }
  if (x != x) return 0;
  const double whole = i.mode == 'z'   ? std::trunc(x)
                       : i.mode == 'n' ? std::nearbyint(x)
                       : i.mode == 'm' ? std::floor(x)
                                       : std::ceil(x);
  const int bits = 8 * size_of(i.type);
  const bool is_signed = i.type == Type::kS8 || i.type == Type::kS16 || i.type == Type::kS32 || i.type == Type::kS64;
  const double most = std::ldexp(1.0, is_signed ? bits - 1 : bits), least = is_signed ? -most : 0.0;
  if (whole >= most) return is_signed ? (uint64_t{1} << (bits - 1)) - 1 : ~uint64_t{0} >> (64 - bits);
  if (whole < least) return is_signed ? uint64_t{1} << (bits - 1) : 0;
  return whole < 0 ? static_cast<uint64_t>(static_cast<int64_t>(whole)) : static_cast<uint64_t>(whole);
}

uint64_t converted(const Instruction& i, uint64_t x) {
  if (is_real(i.from)) {
    const auto low = static_cast<uint32_t>(x);
    const double value = i.from == Type::kF64   ? std::bit_cast<double>(x)
                         : i.from == Type::kF32 ? std::bit_cast<float>(low)
                         : i.from == Type::kF16 ? from_half(static_cast<uint16_t>(low))
                                                : std::bit_cast<float>(low << 16);
    return from_real(value, i);
  }
  const int64_t value = extend(i.from, x);
  const bool unsigned64 = i.from == Type::kU64 || i.from == Type::kB64;
  if (i.type == Type::kF64) {
    return std::bit_cast<uint64_t>(unsigned64 ? static_cast<double>(x) : static_cast<double>(value));
  }
  if (is_real(i.type)) {
    const float single = unsigned64 ? static_cast<float>(x) : static_cast<float>(value);
    return i.type == Type::kF32 ? std::bit_cast<uint32_t>(single) : from_real(single, i);
  }
  return static_cast<uint64_t>(extend(i.type, static_cast<uint64_t>(value)));
}

void convert(const Instruction& i, Warp& w, uint32_t mask) {
  each(mask, [&](int l) { w.set(i.o[0], l, converted(i, w.value(i.o[1], l))); });
}
void convert_pair(const Instruction& i, Warp& w, uint32_t mask) {
  const float* high = w.in<float>(i.o[1]);
  const float* low = w.in<float>(i.o[2]);
  uint32_t* d = w.row<uint32_t>(i.o[0]);
  each(mask, [=](int l) { d[l] = static_cast<uint32_t>(to_bfloat16(high[l])) << 16 | to_bfloat16(low[l]); });
}
constexpr auto kSame = [](auto a) { return a; };

Execute find_convert(const Words& words, Instruction& i) {
  if (i.type == Type::kBF16x2) return i.from == Type::kF32 ? convert_pair : nullptr;
  // What rounds twice here would not on a GPU.
  if (i.from == Type::kF64 && (i.type == Type::kF16 || i.type == Type::kBF16)) return nullptr;
  for (const auto word : words) {
    if (word == "sat") return nullptr;
    if (word.size() == 3 && word[0] == 'r' && word[2] == 'i') i.mode = word[1];
    if ((word == "rz" || word == "rm" || word == "rp") && is_real(i.type)) return nullptr;
  }
  if (i.from == Type::kS32 && size_of(i.type) == 8 && !is_real(i.type)) return &map1<kSame, int64_t, int32_t>;
  if (i.from == Type::kU32 && size_of(i.type) == 8 && !is_real(i.type)) return &map1<kSame, uint64_t, uint32_t>;
  if (size_of(i.from) == 8 && size_of(i.type) == 4 && !is_real(i.from) && !is_real(i.type)) {
    return &map1<kSame, uint32_t, uint64_t>;
  }
  return convert;
}

// Generic addresses of shared memory lie in a window of their own; those of global memory are what they are.
template <int64_t by>
void move_window(const Instruction& i, Warp& w, uint32_t mask) {
  each(mask, [&](int l) { w.set(i.o[0], l, w.value(i.o[1], l) + static_cast<uint64_t>(by)); });
}

// --- bits ------------------------------------------------------------------------------------------------------------

constexpr auto kPopc = [](std::unsigned_integral auto a) { return static_cast<uint32_t>(std::popcount(a)); };
constexpr auto kClz = [](std::unsigned_integral auto a) { return static_cast<uint32_t>(std::countl_zero(a)); };

void permute_bytes(const Instruction& i, Warp& w, uint32_t mask) {
  each(mask, [&](int l) {
    const uint64_t pool = w.value(i.o[1], l) | w.value(i.o[2], l) << 32;
    const uint64_t selector = w.value(i.o[3], l);
    uint32_t out = 0;
    for (int b = 0; b < 4; ++b) {
      const auto choice = selector >> 4 * b & 15;
      auto byte = static_cast<uint8_t>(pool >> 8 * (choice & 7));
      if (choice & 8) byte = byte & 0x80 ? 0xff : 0;
      out |= static_cast<uint32_t>(byte) << 8 * b;
    }
    w.set(i.o[0], l, out);
  });
}
void insert_bits(const Instruction& i, Warp& w, uint32_t mask) {
  each(mask, [&](int l) {
    const uint64_t at = w.value(i.o[3], l) & 255, bits = w.value(i.o[4], l) & 255;
    const uint64_t field = at >= 64 ? 0 : (bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1) << at;
    w.set(i.o[0], l, (w.value(i.o[2], l) & ~field) | (at >= 64 ? 0 : w.value(i.o[1], l) << at & field));
  });
}
void extract_bits(const Instruction& i, Warp& w, uint32_t mask) {
  each(mask, [&](int l) {
    const uint64_t at = w.value(i.o[2], l) & 255, bits = w.value(i.o[3], l) & 255;
    const uint64_t field = bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
    w.set(i.o[0], l, at >= 64 ? 0 : w.value(i.o[1], l) >> at & field);
  });
}

Execute find_move(const Words& words, Instruction& i) {
  i.moves = true;
  if (i.type == Type::kPred) return predicates<[](uint32_t a, uint32_t) { return a; }>;
  if (i.parts > 1) return i.o[0].bytes < size_of(i.type) ? unpack : pack;
  return words[0] == "mov" ? unary<kSame>(i.type) : nullptr;
}

Execute find_predicates(std::string_view op) {
  if (op == "and") return predicates<[](uint32_t a, uint32_t b) { return a & b; }>;
  if (op == "or") return predicates<[](uint32_t a, uint32_t b) { return a | b; }>;
  if (op == "xor") return predicates<[](uint32_t a, uint32_t b) { return a ^ b; }>;
  if (op == "not") return predicates<[](uint32_t a, uint32_t) { return ~a; }>;
  return nullptr;
}

Execute find_bits(std::string_view op, const Instruction& i) {
  if (op == "shl") return shift<kShl>(i.type);
  if (op == "shr") return shift<kShr>(i.type);
  if (op == "prmt") return i.type == Type::kB32 ? permute_bytes : nullptr;
  if (op == "bfi") return insert_bits;
  if (op == "bfe") return i.type == Type::kU32 || i.type == Type::kU64 ? extract_bits : nullptr;
  if (op == "popc") return i.type == Type::kB32 ? &map1<kPopc, uint32_t, uint32_t> : &map1<kPopc, uint32_t, uint64_t>;
  if (op == "clz") return i.type == Type::kB32 ? &map1<kClz, uint32_t, uint32_t> : &map1<kClz, uint32_t, uint64_t>;
  return nullptr;
}

}  // namespace

Execute find_arithmetic(const Words& words, Instruction& i) {
  const auto op = words[0];
  if (i.type == Type::kPred && op != "mov") return find_predicates(op);
  if (op == "add") return binary<kAdd>(i.type);
  if (op == "sub") return binary<kSub>(i.type);
  if (op == "mul" || op == "mad") return multiply(words, i.type);
  if (op == "div") return binary<kDiv>(i.type);
  if (op == "rem") return binary<kRem>(i.type);
  if (op == "min") return binary<kMin>(i.type);
  if (op == "max") return binary<kMax>(i.type);
  if (op == "neg") return unary<kNeg>(i.type);
  if (op == "abs") return unary<kAbs>(i.type);
  if (op == "not") return unary<kNot>(i.type);
  if (op == "and") return binary<kAnd>(i.type);
  if (op == "or") return binary<kOr>(i.type);
  if (op == "xor") return binary<kXor>(i.type);
  if (op == "rcp") return unary<kRcp>(i.type);
  if (op == "sqrt") return unary<kSqrt>(i.type);
  if (op == "setp") return words.size() == 3 ? find_compare(words[1], i.type) : nullptr;
  if (op == "selp") {
    i.moves = true;
    return for_type(i.type, []<class T>(T) -> Execute { return &select<T>; });
  }
  if (op == "cvt") return find_convert(words, i);
  if (op == "mov") return find_move(words, i);
  if (op == "cvta") {
    const bool to = words[1] == "to";
    const auto space = words[to ? 2 : 1];
    if (space == "global") return unary<kSame>(i.type);
    if (space != "shared") return nullptr;
    constexpr auto kWindow = static_cast<int64_t>(kSharedWindow);
    return to ? move_window<-kWindow> : move_window<kWindow>;
  }
  return find_bits(op, i);
}

}  // namespace ptx
