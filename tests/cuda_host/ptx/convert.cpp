// Moves, conversions and operations on bits.
#include <algorithm>
#include <cmath>

#include "lanes.h"

namespace ptx {

namespace {

// --- moving and converting -------------------------------------------------------------------------------------------

// Splits a register into several, or joins several into one: the first is the lowest.
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

uint16_t to_half(float x) { return std::bit_cast<uint16_t>(static_cast<_Float16>(x)); }
uint16_t to_bfloat16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return x != x ? uint16_t{0x7fff} : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
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
  const double whole = std::trunc(x);
  const int bits = 8 * size_of(i.type);
  const bool sign = is_signed(i.type);
  const double most = std::ldexp(1.0, sign ? bits - 1 : bits), least = sign ? -most : 0.0;
  if (whole >= most) return sign ? (uint64_t{1} << (bits - 1)) - 1 : ~uint64_t{0} >> (64 - bits);
  if (whole < least) return sign ? uint64_t{1} << (bits - 1) : 0;
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
template <uint16_t (*narrow)(float)>
void convert_pair(const Instruction& i, Warp& w, uint32_t mask) {
  const float* high = w.in<float>(i.o[1]);
  const float* low = w.in<float>(i.o[2]);
  uint32_t* d = w.row<uint32_t>(i.o[0]);
  each(mask, [=](int l) { d[l] = static_cast<uint32_t>(narrow(high[l])) << 16 | narrow(low[l]); });
}
Execute find_convert(const Words& words, Instruction& i) {
  if (i.type == Type::kBF16x2) return i.from == Type::kF32 ? convert_pair<to_bfloat16> : nullptr;
  if (i.type == Type::kF16x2) return i.from == Type::kF32 ? convert_pair<to_half> : nullptr;
  if (i.o.size() != 2) return nullptr;
  // These would round twice here, but once on a GPU.
  if (i.from == Type::kF64 && (i.type == Type::kF16 || i.type == Type::kBF16)) return nullptr;
  for (const auto word : words) {
    if (word == "sat") return nullptr;
    if (word.size() == 3 && word[0] == 'r' && word[2] == 'i' && word != "rzi") return nullptr;
    if ((word == "rz" || word == "rm" || word == "rp") && is_real(i.type)) return nullptr;
  }
  const bool fits = i.o[1].bytes == size_of(i.from);  // a wider register is read in part
  if (fits && i.from == Type::kS32 && size_of(i.type) == 8 && !is_real(i.type)) return &map<kSame, int64_t, int32_t>;
  if (fits && i.from == Type::kU32 && size_of(i.type) == 8 && !is_real(i.type)) return &map<kSame, uint64_t, uint32_t>;
  if (size_of(i.from) == 8 && size_of(i.type) == 4 && !is_real(i.from) && !is_real(i.type)) {
    return &map<kSame, uint32_t, uint64_t>;
  }
  return convert;
}

// --- bits ------------------------------------------------------------------------------------------------------------

constexpr auto kShl = []<class T>(T a, uint32_t n) -> T { return n >= 8 * sizeof(T) ? T(0) : static_cast<T>(a << n); };
constexpr auto kShr = []<class T>(T a, uint32_t n) -> T {
  return static_cast<T>(a >> std::min<uint32_t>(n, 8 * sizeof(T) - 1) >> (n >= 8 * sizeof(T)));
};
constexpr auto kPopc = [](std::unsigned_integral auto a) { return static_cast<uint32_t>(std::popcount(a)); };
constexpr auto kClz = [](std::unsigned_integral auto a) { return static_cast<uint32_t>(std::countl_zero(a)); };

void permute_bytes(const Instruction& i, Warp& w, uint32_t mask) {
  each(mask, [&](int l) {
    const uint64_t pool = static_cast<uint32_t>(w.value(i.o[1], l)) | w.value(i.o[2], l) << 32;
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

Execute find_bits(std::string_view op, const Instruction& i) {
  if (op == "shl") return shift<kShl>(i.type);
  if (op == "shr") return shift<kShr>(i.type);
  if (op == "prmt") return i.type == Type::kB32 ? permute_bytes : nullptr;
  if (op == "bfi") return insert_bits;
  if (op == "bfe") return i.type == Type::kU32 || i.type == Type::kU64 ? extract_bits : nullptr;
  if (op == "popc") return i.type == Type::kB32 ? &map<kPopc, uint32_t, uint32_t> : &map<kPopc, uint32_t, uint64_t>;
  if (op == "clz") return i.type == Type::kB32 ? &map<kClz, uint32_t, uint32_t> : &map<kClz, uint32_t, uint64_t>;
  return nullptr;
}

}  // namespace

Execute find_conversion(const Words& words, Instruction& i) {
  const auto op = words[0];
  if (op == "cvt") return find_convert(words, i);
  if (op == "mov") return find_move(words, i);
  if (op == "cvta") return words[1] == "to" && words[2] == "global" ? unary<kSame>(i.type) : nullptr;
  return find_bits(op, i);
}

}  // namespace ptx
