// Instructions in which the lanes of a warp work together: matrix products, shuffles, votes.
#include <algorithm>
#include <cmath>

#include "lanes.h"

namespace ptx {

namespace {

// --- matrix products -------------------------------------------------------------------------------------------------

double from_bfloat16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// Element e of the packed elements of a register.
double element(Type type, uint32_t bits, int e) {
  switch (type) {
    case Type::kF16:
      return from_half(static_cast<uint16_t>(bits >> 16 * e));
    case Type::kBF16:
      return from_bfloat16(static_cast<uint16_t>(bits >> 16 * e));
    default:
      return static_cast<double>(extend(type, bits >> 8 * e));
  }
}

// The exponent of a factor in tensor cores: subnormal numbers have that of the smallest normal one.
int exponent_of(double x, Type type) {
  const int least = type == Type::kF16 ? -14 : -126;
  return x == 0 ? least : std::max(std::ilogb(x), least);
}

// c + the sum of a[k] b[k] in Hopper's tensor cores, after MMA-Sim (arXiv 2511.10909): every term is truncated to 25
// bits below the largest exponent, and the sum is rounded towards zero.
float truncating_sum(const double* a, const double* b, int depth, Type type, float c) {
  constexpr int kZero = -133;  // the exponent of zero
  double exact = c;
  int largest = c == 0 ? kZero : std::max(std::ilogb(c), -126);
  for (int k = 0; k < depth; ++k) {
    exact += a[k] * b[k];
    largest = std::max(largest, a[k] * b[k] == 0 ? kZero : exponent_of(a[k], type) + exponent_of(b[k], type));
  }
  if (!std::isfinite(exact)) return static_cast<float>(exact);
  const auto cut = [&](double x) { return std::trunc(std::ldexp(x, 25 - largest)); };
  double sum = cut(c);
  for (int k = 0; k < depth; ++k) sum += cut(a[k] * b[k]);
  sum = std::ldexp(sum, largest - 25);
  const auto nearest = static_cast<float>(sum);
  return (std::fabs(static_cast<double>(nearest)) > std::fabs(sum) ? std::nextafterf(nearest, 0.0f) : nearest) + 0.0f;
}

// The sum is rounded once to float if its terms fit 53 bits.
float exact_sum(const double* a, const double* b, int depth, float c) {
  double sum = c;
  for (int k = 0; k < depth; ++k) sum += a[k] * b[k];
  return static_cast<float>(sum);
}

// D = A B + C with A [16, depth] by rows and B [depth, 8] by columns. Lane 4 g + q holds rows g and g + 8 of A and
// column g of B, of either half of the depth one register from q on; of C and D it holds rows g and g + 8, columns 2 q
// and 2 q + 1.
template <int depth>
void multiply(const Instruction& i, Warp& w, uint32_t) {
  constexpr int kPacked = depth / 8;
  const auto type_b = static_cast<Type>(i.mode);
  double a[16][depth], b[8][depth];
  for (int part = 0; part < 6; ++part) {
    const uint32_t* registers = w.in<uint32_t>(i.o[static_cast<size_t>(part) + 4]);
    for (int l = 0; l < kLanes; ++l) {
      const int g = l / 4, half = part < 4 ? part / 2 : part - 4, k = l % 4 * kPacked + half * depth / 2;
      double* row = part < 4 ? a[g + part % 2 * 8] : b[g];
      for (int e = 0; e < kPacked; ++e) row[k + e] = element(part < 4 ? i.from : type_b, registers[l], e);
    }
  }
  const Mma mode = machine().options.mma;
  for (int part = 0; part < 4; ++part) {
    const Operand& from = i.o[static_cast<size_t>(part) + 10];
    const Operand& to = i.o[static_cast<size_t>(part)];
    for (int l = 0; l < kLanes; ++l) {
      const double* row = a[l / 4 + part / 2 * 8];
      const double* column = b[l % 4 * 2 + part % 2];
      if constexpr (depth == 32) {
        double sum = w.in<int32_t>(from)[l];
        for (int k = 0; k < depth; ++k) sum += row[k] * column[k];
        w.row<uint32_t>(to)[l] = static_cast<uint32_t>(static_cast<int64_t>(sum));
      } else {
        const float c = w.in<float>(from)[l];
        w.row<float>(to)[l] =
            mode == Mma::kTruncating ? truncating_sum(row, column, depth, i.from, c) : exact_sum(row, column, depth, c);
      }
    }
  }
}

// mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
Execute find_mma(const Words& words, Instruction& i) {
  if (words.size() != 10 || words[1] != "sync" || words[4] != "row" || words[5] != "col" || i.o.size() != 14)
    return nullptr;
  i.flow = Flow::kAligned;
  i.mma = true;
  const Type a = type_of(words[7]), b = type_of(words[8]);
  i.from = a;
  i.mode = static_cast<int>(b);
  const bool half = (a == Type::kF16 || a == Type::kBF16) && a == b && words[6] == "f32" && words[9] == "f32";
  if (words[3] == "m16n8k16" && half) return multiply<16>;
  const auto byte = [](Type t) { return t == Type::kS8 || t == Type::kU8; };
  if (words[3] == "m16n8k32" && byte(a) && byte(b) && words[6] == "s32" && words[9] == "s32") return multiply<32>;
  return nullptr;
}

// --- shuffles and votes ----------------------------------------------------------------------------------------------

void shuffle(const Instruction& i, Warp& w, uint32_t mask) {
  const size_t first = static_cast<size_t>(i.parts);  // first operand; a second result may precede the operands
  uint64_t before[kLanes];
  for (int l = 0; l < kLanes; ++l) before[l] = w.value(i.o[first], l);
  each(mask, [&](int l) {
    const int by = static_cast<int>(w.value(i.o[first + 1], l) & 31), c = static_cast<int>(w.value(i.o[first + 2], l));
    const int segment = c >> 8 & 31, low = l & segment, high = low | (c & 31 & ~segment);
    int source = i.mode == 'd' ? l + by : i.mode == 'b' ? l ^ by : low | (by & ~segment);
    const bool inside = source <= high;
    if (!inside) source = l;
    if (!(mask >> source & 1)) {
      machine().report(w.block->kernel, i, "a shuffle reads lane " + std::to_string(source) + ", which takes no part");
    }
    w.set(i.o[0], l, before[source]);
    if (i.parts == 2) {
      uint32_t& p = *w.row<uint32_t>(i.o[1]);
      p = (p & ~(1u << l)) | static_cast<uint32_t>(inside) << l;
    }
  });
}

void any(const Instruction& i, Warp& w, uint32_t mask) {
  const uint32_t ballot = *w.in<uint32_t>(i.o[1]) & mask;
  uint32_t& p = *w.row<uint32_t>(i.o[0]);
  p = (p & ~mask) | (ballot != 0 ? mask : 0);
}

void warp_barrier(const Instruction&, Warp& w, uint32_t mask) {
  each(mask, [&](int l) { ++w.epoch[static_cast<size_t>(l)]; });
}

}  // namespace

Execute find_collective(const Words& words, Instruction& i) {
  const auto op = words[0];
  if (op == "mma") return find_mma(words, i);
  i.flow = Flow::kMasked;
  if (op == "shfl" && words[1] == "sync") {
    i.mode = words[2][0];
    return words[2] == "down" || words[2] == "bfly" || words[2] == "idx" ? shuffle : nullptr;
  }
  if (op == "vote" && words[1] == "sync" && words[2] == "any") return any;
  if (op == "bar" && words[1] == "warp") return warp_barrier;
  i.flow = Flow::kNone;
  return nullptr;
}

}  // namespace ptx
