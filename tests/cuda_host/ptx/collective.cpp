// Instructions in which the lanes of a warp work together: matrix products, shuffles, votes.
#include <algorithm>

#include "lanes.h"

namespace ptx {

namespace {

// --- matrix products -------------------------------------------------------------------------------------------------

// D = A B + C of bytes, with A [rows, 16 halves] by rows and B [16 halves, 8] by columns. Lane 4 g + q holds row g of A
// (and row g + 8, if there are sixteen) and column g of B: depths 4 q ... + 3 of each sixteen; of C and D it holds
// columns 2 q and 2 q + 1 of its rows.
template <int rows, int halves>
void multiply(const Instruction& i, Warp& w, uint32_t) {
  constexpr size_t kParts = rows / 8 * halves, kSums = rows / 4;  // registers of A; of C and of D
  constexpr int kDepth = 16 * halves;
  int32_t a[rows][kDepth], b[8][kDepth];
  for (size_t part = 0; part < kParts + halves; ++part) {
    const uint32_t* registers = w.in<uint32_t>(i.o[kSums + part]);
    const bool of_a = part < kParts;
    const size_t half = of_a ? part / (rows / 8) : part - kParts;
    for (size_t l = 0; l < kLanes; ++l) {
      int32_t* row = of_a ? a[l / 4 + part % (rows / 8) * 8] : b[l / 4];
      for (size_t e = 0; e < 4; ++e) {
        row[16 * half + l % 4 * 4 + e] =
            static_cast<int32_t>(extend(of_a ? i.from : static_cast<Type>(i.mode), registers[l] >> 8 * e));
      }
    }
  }
  uint32_t sums[kSums][kLanes];
  for (size_t part = 0; part < kSums; ++part) {
    const uint32_t* from = w.in<uint32_t>(i.o[kSums + kParts + halves + part]);
    for (size_t l = 0; l < kLanes; ++l) {
      sums[part][l] = from[l];
      const int32_t *row = a[l / 4 + part / 2 * 8], *column = b[l % 4 * 2 + part % 2];
      for (int k = 0; k < kDepth; ++k) sums[part][l] += static_cast<uint32_t>(row[k] * column[k]);
    }
  }
  for (size_t part = 0; part < kSums; ++part) std::copy_n(sums[part], kLanes, w.row<uint32_t>(i.o[part]));
}

// mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32
Execute find_mma(const Words& words, Instruction& i) {
  if (words.size() != 10 || words[1] != "sync" || words[4] != "row" || words[5] != "col") return nullptr;
  i.flow = Flow::kAligned;
  i.mma = true;
  const Type a = type_of(words[7]), b = type_of(words[8]);
  i.from = a;
  i.mode = static_cast<int>(b);
  const auto byte = [](Type t) { return t == Type::kS8 || t == Type::kU8; };
  if (!byte(a) || !byte(b) || words[6] != "s32" || words[9] != "s32") return nullptr;
  if (words[3] == "m16n8k32" && i.o.size() == 14) return multiply<16, 2>;
  if (words[3] == "m8n8k16" && i.o.size() == 6) return multiply<8, 1>;
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
