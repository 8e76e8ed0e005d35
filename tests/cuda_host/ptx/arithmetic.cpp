// Arithmetic, comparisons and selections. There is no fma: kernels must round twice (-fmad=false), so an fma in the PTX
// is an unknown instruction.
#include <algorithm>
#include <cmath>

#include "lanes.h"

namespace ptx {

namespace {

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
// The minimum of a number and NaN is the number; -0 is less than 0.
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
constexpr auto kRcp = [](std::floating_point auto a) { return 1 / a; };
constexpr auto kSqrt = [](std::floating_point auto a) { return std::sqrt(a); };

template <class T>
using Wide = std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
                                std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;
constexpr auto kMulWide = []<class T>(T a, T b) { return static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b); };
constexpr auto kMadWide = []<class T>(T a, T b, Wide<T> c) { return kMulWide(a, b) + c; };
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
  if (words[1] == "lo") return mad ? find_map<kMad>(type, std::make_index_sequence<3>()) : binary<kMul>(type);
  if (words[1] == "hi" && !mad) {
    return for_type(type, []<std::integral T>(T) -> Execute { return &map<kMulHi, T, T, T>; });
  }
  if (words[1] == "wide" && size_of(type) <= 4) {
    return for_type(type, [mad]<std::integral T>(T) -> Execute {
      return mad ? &map<kMadWide, Wide<T>, T, T, Wide<T>> : &map<kMulWide, Wide<T>, T, T>;
    });
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

Execute find_compare(std::string_view name, Type type) {
  if (name == "eq") return comparing<([](auto a, auto b) { return a == b; })>(type);
  if (name == "ne") return comparing<([](auto a, auto b) { return a < b || a > b; })>(type);
  if (name == "lt") return comparing<([](auto a, auto b) { return a < b; })>(type);
  if (name == "le") return comparing<([](auto a, auto b) { return a <= b; })>(type);
  if (name == "gt") return comparing<([](auto a, auto b) { return a > b; })>(type);
  if (name == "ge") return comparing<([](auto a, auto b) { return a >= b; })>(type);
  if (name == "neu") return comparing<([](auto a, auto b) { return a != b; })>(type);
  if (name == "ltu") return comparing<([](auto a, auto b) { return !(a >= b); })>(type);
  if (name == "leu") return comparing<([](auto a, auto b) { return !(a > b); })>(type);
  if (name == "gtu") return comparing<([](auto a, auto b) { return !(a <= b); })>(type);
  if (name == "geu") return comparing<([](auto a, auto b) { return !(a < b); })>(type);
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

// dp4a: c plus the products of the bytes of a and b, each signed or not.
void dot(const Instruction& i, Warp& w, uint32_t mask) {
  const auto byte = [](Type of, uint64_t word, int e) {
    return static_cast<uint32_t>(extend(of == Type::kS32 ? Type::kS8 : Type::kU8, word >> 8 * e));
  };
  each(mask, [&](int l) {
    auto sum = static_cast<uint32_t>(w.value(i.o[3], l));
    for (int e = 0; e < 4; ++e) sum += byte(i.type, w.value(i.o[1], l), e) * byte(i.from, w.value(i.o[2], l), e);
    w.set(i.o[0], l, sum);
  });
}

Execute find_predicates(std::string_view op) {
  if (op == "and") return predicates<[](uint32_t a, uint32_t b) { return a & b; }>;
  if (op == "or") return predicates<[](uint32_t a, uint32_t b) { return a | b; }>;
  if (op == "xor") return predicates<[](uint32_t a, uint32_t b) { return a ^ b; }>;
  if (op == "not") return predicates<[](uint32_t a, uint32_t) { return ~a; }>;
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
  if (op == "dp4a") return words.size() == 3 ? dot : nullptr;
  if (op == "selp") {
    i.moves = true;
    return for_type(i.type, []<class T>(T) -> Execute { return &select<T>; });
  }
  return nullptr;
}

}  // namespace ptx
