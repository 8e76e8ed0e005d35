// Instructions that compute each lane's result from the lane's own registers. There is no fma: kernels must round twice
// (-fmad=false), so an fma in the PTX is an unknown instruction.
#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

#include "machine.h"

namespace ptx {

namespace {

// --- types -----------------------------------------------------------------------------------------------------------

struct BFloat16 {
  uint16_t bits = 0;

  BFloat16() = default;
  explicit BFloat16(float x) {  // to the nearest, ties to even
    const auto single = std::bit_cast<uint32_t>(x);
    bits = x != x ? uint16_t{0x7fff} : static_cast<uint16_t>((single + 0x7fff + (single >> 16 & 1)) >> 16);
  }
  operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
};

template <class T>
concept Number = std::integral<T> || std::floating_point<T>;  // what is computed with; half types are only converted

template <class T>
T get(uint64_t bits) {
  if constexpr (std::same_as<T, bool>) return bits & 1;
  T value;
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

template <class T>
uint64_t put(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

// Calls make with a value of the C++ type of `type`. Null if there is none or make does not take it.
template <class Make>
Execute for_type(Type type, Make make) {
  Execute found = nullptr;
  const auto offer = [&]<class... T>(std::string_view kinds, T... values) {
    const auto one = [&](auto value) {
      if constexpr (std::is_invocable_v<Make, decltype(value)>) {
        if (type.bytes == sizeof(value) && kinds.find(type.kind) != kinds.npos) found = make(value);
      }
    };
    (one(values), ...);
  };
  offer("p", bool{});
  offer("ub", uint8_t{}, uint16_t{}, uint32_t{}, uint64_t{});
  offer("s", int8_t{}, int16_t{}, int32_t{}, int64_t{});
  offer("f", _Float16{}, float{}, double{});
  offer("g", BFloat16{});
  return found;
}

// --- kinds of instructions -------------------------------------------------------------------------------------------

// D = f(A...) for the lanes of the mask.
template <auto f, class D, class... A>
void map(const Instruction& i, Warp& w, uint32_t mask) {
  [&]<size_t... k>(std::index_sequence<k...>) {
    uint64_t* d = w.row(i.o[0]);
    const std::tuple in(std::as_const(w).row(i.o[k + 1])...);
    each(mask, [=](int l) { d[l] = put(static_cast<D>(f(get<A>(std::get<k>(in)[l])...))); });
  }(std::index_sequence_for<A...>());
}

using Find = Execute (*)(const Instruction&);

template <auto f, class D, class... A>
Execute fixed(const Instruction&) {
  return map<f, D, A...>;
}
// The operands have the instruction's type.
template <auto f>
Execute unary(const Instruction& i) {
  return for_type(i.type, []<Number T>(T)
                    requires std::invocable<decltype(f), T>
                  { return Execute(map<f, T, T>); });
}
template <auto f>
Execute binary(const Instruction& i) {
  return for_type(i.type, []<Number T>(T)
                    requires std::invocable<decltype(f), T, T>
                  { return Execute(map<f, T, T, T>); });
}
template <auto f>
Execute compare(const Instruction& i) {
  return for_type(i.type, []<Number T>(T) { return Execute(map<f, bool, T, T>); });
}
template <auto f>
Execute shift(const Instruction& i) {
  return for_type(i.type, []<std::integral T>(T) { return Execute(map<f, T, T, uint32_t>); });
}

// --- arithmetic ------------------------------------------------------------------------------------------------------

constexpr auto kSame = [](auto a) { return a; };
constexpr auto kMul = [](auto a, auto b) { return a * b; };
constexpr auto kMulWide = [](auto a, auto b) { return int64_t{a} * b; };
constexpr auto kDiv = []<Number T>(T a, T b) -> T {
  if constexpr (std::integral<T>) {
    if (b == 0) return static_cast<T>(-1);
    if (std::signed_integral<T> && b == static_cast<T>(-1)) return static_cast<T>(0 - a);
  }
  return static_cast<T>(a / b);
};
constexpr auto kRem = []<std::integral T>(T a, T b) { return a - kDiv(a, b) * b; };
constexpr auto kShl = []<class T>(T a, uint32_t n) { return n >= 8 * sizeof(T) ? T(0) : static_cast<T>(a << n); };
constexpr auto kShr = []<class T>(T a, uint32_t n) {
  return static_cast<T>(a >> std::min<uint32_t>(n, 8 * sizeof(T) - 1) >> (n >= 8 * sizeof(T)));
};
constexpr auto kInsert = [](uint32_t a, uint32_t b, uint32_t at, uint32_t bits) {
  const uint64_t field = ((uint64_t{1} << std::min(bits & 255, 32u)) - 1) << std::min(at & 255, 32u);
  return (b & ~field) | (uint64_t{a} << std::min(at & 255, 32u) & field);
};
// c plus the products of the signed bytes of a and the unsigned ones of b.
constexpr auto kDot = [](uint32_t a, uint32_t b, int32_t c) {
  for (int e = 0; e < 32; e += 8) c += static_cast<int8_t>(a >> e) * static_cast<uint8_t>(b >> e);
  return c;
};
constexpr auto kPermute = [](uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t out = 0;
  for (int e = 0; e < 4; ++e) {
    const uint32_t choice = selector >> 4 * e & 15;
    const auto byte = static_cast<uint8_t>((a | uint64_t{b} << 32) >> 8 * (choice & 7));
    out |= uint32_t{choice < 8 ? byte : byte & 0x80 ? uint8_t{0xff} : uint8_t{0}} << 8 * e;
  }
  return out;
};

// Of a real number the integer part, the nearest there is.
template <class D>
constexpr auto kTo = []<class A>(A a) -> D {
  if constexpr (std::floating_point<A> && std::integral<D>) {
    const double whole = std::trunc(a);
    if (a != a) return 0;
    if (whole >= std::ldexp(1.0, std::numeric_limits<D>::digits)) return std::numeric_limits<D>::max();
    if (whole < static_cast<double>(std::numeric_limits<D>::min())) return std::numeric_limits<D>::min();
    return static_cast<D>(whole);
  } else {
    return static_cast<D>(a);
  }
};

Execute find_convert(bool truncates, const Instruction& i) {
  return for_type(i.from, [&]<class A>(A) {
    return for_type(i.type, [&]<class D>(D) -> Execute {
      if (truncates != (std::floating_point<A> && std::integral<D>)) return nullptr;
      // Only a float is narrowed to a half type: other numbers would round twice here, but once on a GPU.
      if constexpr (!Number<D> && !std::same_as<A, float>) return nullptr;
      return map<kTo<D>, D, A>;
    });
  });
}

// Splits a register into several, or joins several into one: the first is the lowest.
void unpack(const Instruction& i, Warp& w, uint32_t mask) {
  const int bits = 8 * i.type.bytes / i.parts;
  for (int part = 0; part < i.parts; ++part) {
    const Operand& to = i.o[part];
    if (to.row >= 0) each(mask, [&](int l) { w.row(to)[l] = w.row(i.o.back())[l] >> bits * part; });
  }
}
void pack(const Instruction& i, Warp& w, uint32_t mask) {
  const int bits = 8 * i.type.bytes / i.parts;
  each(mask, [&](int l) {
    uint64_t value = 0;
    for (int part = 0; part < i.parts; ++part) {
      value |= (w.row(i.o[part + 1])[l] & ((uint64_t{1} << bits) - 1)) << bits * part;
    }
    w.row(i.o[0])[l] = value;
  });
}

// By name, with or without types.
const std::map<std::string_view, Find> kArithmetic = {
    {"abs", unary<[](std::floating_point auto a) { return std::fabs(a); }>},
    {"add", binary<[](auto a, auto b) { return a + b; }>},
    {"and", binary<[](std::integral auto a, auto b) { return a & b; }>},
    {"bfi.b32", fixed<kInsert, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>},
    {"clz.b32", fixed<[](uint32_t a) { return std::countl_zero(a); }, uint32_t, uint32_t>},
    {"clz.b64", fixed<[](uint64_t a) { return std::countl_zero(a); }, uint32_t, uint64_t>},
    {"cvt", [](const Instruction& i) { return find_convert(false, i); }},
    {"cvt.rzi", [](const Instruction& i) { return find_convert(true, i); }},
    {"cvta.to.global.u64", fixed<kSame, uint64_t, uint64_t>},
    {"div", binary<kDiv>},
    {"dp4a.s32.u32", fixed<kDot, int32_t, uint32_t, uint32_t, int32_t>},
    {"mad.lo.s32", fixed<[](auto a, auto b, auto c) { return a * b + c; }, int32_t, int32_t, int32_t, int32_t>},
    {"mad.wide.s32",
     fixed<[](auto a, auto b, auto c) { return kMulWide(a, b) + c; }, int64_t, int32_t, int32_t, int64_t>},
    {"max", binary<[](std::integral auto a, auto b) { return std::max(a, b); }>},
    {"min", binary<[](std::integral auto a, auto b) { return std::min(a, b); }>},
    {"mov",
     [](const Instruction& i) { return i.splits      ? unpack
                                       : i.parts > 1 ? pack
                                                     : map<kSame, uint64_t, uint64_t>; }},
    {"mul", binary<[](std::floating_point auto a, auto b) { return a * b; }>},
    {"mul.lo", binary<[](std::integral auto a, auto b) { return a * b; }>},
    {"mul.wide.s32", fixed<kMulWide, int64_t, int32_t, int32_t>},
    {"mul.wide.u16", fixed<kMulWide, uint32_t, uint16_t, uint16_t>},
    {"mul.wide.u32", fixed<kMulWide, uint64_t, uint32_t, uint32_t>},
    {"neg", unary<[](auto a) { return -a; }>},
    {"not", unary<[]<std::integral T>(T a) { return a ^ static_cast<T>(-1); }>},
    {"or", binary<[](std::integral auto a, auto b) { return a | b; }>},
    {"popc.b32", fixed<[](uint32_t a) { return std::popcount(a); }, uint32_t, uint32_t>},
    {"prmt.b32", fixed<kPermute, uint32_t, uint32_t, uint32_t, uint32_t>},
    {"rcp", unary<[](std::floating_point auto a) { return 1 / a; }>},
    {"rem", binary<kRem>},
    {"selp", fixed<[](auto a, auto b, bool first) { return first ? a : b; }, uint64_t, uint64_t, uint64_t, bool>},
    {"setp.eq", compare<[](auto a, auto b) { return a == b; }>},
    {"setp.ne", compare<([](auto a, auto b) { return a < b || a > b; })>},
    {"setp.lt", compare<([](auto a, auto b) { return a < b; })>},
    {"setp.le", compare<([](auto a, auto b) { return a <= b; })>},
    {"setp.gt", compare<([](auto a, auto b) { return a > b; })>},
    {"setp.ge", compare<([](auto a, auto b) { return a >= b; })>},
    {"setp.neu", compare<[](auto a, auto b) { return a != b; }>},
    {"setp.ltu", compare<([](auto a, auto b) { return !(a >= b); })>},
    {"setp.leu", compare<([](auto a, auto b) { return !(a > b); })>},
    {"setp.gtu", compare<([](auto a, auto b) { return !(a <= b); })>},
    {"setp.geu", compare<([](auto a, auto b) { return !(a < b); })>},
    {"shl", shift<kShl>},
    {"shr", shift<kShr>},
    {"sqrt", unary<[](std::floating_point auto a) { return std::sqrt(a); }>},
    {"sub", binary<[](auto a, auto b) { return a - b; }>},
    {"xor", binary<[](std::integral auto a, auto b) { return a ^ b; }>},
};

}  // namespace

Execute find_arithmetic(std::string_view full, std::string_view name, Instruction& i) {
  i.moves = name == "mov" || name == "selp";
  auto found = kArithmetic.find(full);
  if (found == kArithmetic.end()) found = kArithmetic.find(name);
  return found == kArithmetic.end() ? nullptr : found->second(i);
}

}  // namespace ptx
