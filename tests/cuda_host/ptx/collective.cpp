// Instructions in which the lanes of a warp work together: matrix products, shuffles, votes.
#include "machine.h"

namespace ptx {

namespace {

// D = A B + C of bytes, with signed A [rows, 16 halves] by rows and unsigned B [16 halves, 8] by columns. Lane 4 g + q
// holds row g of A (and row g + 8, if there are sixteen) and column g of B: depths 4 q ... + 3 of each sixteen; of C
// and D it holds columns 2 q and 2 q + 1 of its rows.
template <int rows, int halves>
void multiply(const Instruction& i, Warp& w, uint32_t) {
  constexpr size_t kParts = rows / 8 * halves, kSums = rows / 4;  // registers of A; of C and of D
  constexpr int kDepth = 16 * halves;
  int32_t a[rows][kDepth], b[8][kDepth];
  for (size_t part = 0; part < kParts + halves; ++part) {
    const uint64_t* registers = w.row(i.o[kSums + part]);
    const bool of_a = part < kParts;
    const size_t half = of_a ? part / (rows / 8) : part - kParts;
    for (size_t l = 0; l < kLanes; ++l) {
      int32_t* row = of_a ? a[l / 4 + part % (rows / 8) * 8] : b[l / 4];
      for (size_t e = 0; e < 4; ++e) {
        const auto byte = static_cast<uint8_t>(registers[l] >> 8 * e);
        row[16 * half + l % 4 * 4 + e] = of_a ? static_cast<int8_t>(byte) : byte;
      }
    }
  }
  Row sums[kSums];
  for (size_t part = 0; part < kSums; ++part) {
    const uint64_t* from = w.row(i.o[kSums + kParts + halves + part]);
    for (size_t l = 0; l < kLanes; ++l) {
      auto sum = static_cast<uint32_t>(from[l]);
      const int32_t *row = a[l / 4 + part / 2 * 8], *column = b[l % 4 * 2 + part % 2];
      for (int k = 0; k < kDepth; ++k) sum += static_cast<uint32_t>(row[k] * column[k]);
      sums[part][l] = sum;
    }
  }
  for (size_t part = 0; part < kSums; ++part) w.rows[i.o[part].row] = sums[part];
  ++w.block->counters.mma;
  w.loading.clear();
}

// From the lane that `source` names, within segments of the warp.
template <int (*source)(int lane, int by)>
void shuffle(const Instruction& i, Warp& w, uint32_t mask) {
  const auto first = i.parts;  // operand; a second result may precede it
  const Row before = w.rows[i.o[first].row];
  each(mask, [&](int l) {
    const auto by = static_cast<int>(w.row(i.o[first + 1])[l] & 31), c = static_cast<int>(w.row(i.o[first + 2])[l]);
    const int segment = c >> 8 & 31, high = (l & segment) | (c & 31 & ~segment);
    const bool inside = source(l, by) <= high;
    const int from = inside ? source(l, by) : l;
    if (!(mask >> from & 1)) {
      machine.report(w.block->kernel, i, "a shuffle reads lane " + std::to_string(from) + ", which takes no part");
    }
    w.row(i.o[0])[l] = before[from];
    if (i.parts == 2) w.row(i.o[1])[l] = inside;
  });
}
int down(int lane, int by) { return lane + by; }
int butterfly(int lane, int by) { return lane ^ by; }

void any(const Instruction& i, Warp& w, uint32_t mask) {
  const bool ballot = (w.lanes_of(i.o[1]) & mask) != 0;
  each(mask, [&](int l) { w.row(i.o[0])[l] = ballot; });
}

void warp_barrier(const Instruction&, Warp& w, uint32_t mask) {
  each(mask, [&](int l) { ++w.epoch[l]; });
}

struct Collective {
  Execute execute;
  Flow flow;
};

const std::map<std::string_view, Collective> kCollectives = {
    {"mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32", {multiply<16, 2>, Flow::kAligned}},
    {"mma.sync.aligned.m8n8k16.row.col.s32.s8.u8.s32", {multiply<8, 1>, Flow::kAligned}},
    {"shfl.sync.down.b32", {shuffle<down>, Flow::kMasked}},
    {"shfl.sync.bfly.b32", {shuffle<butterfly>, Flow::kMasked}},
    {"vote.sync.any.pred", {any, Flow::kMasked}},
    {"bar.warp.sync", {warp_barrier, Flow::kMasked}},
};

}  // namespace

Execute find_collective(std::string_view full, Instruction& i) {
  const auto found = kCollectives.find(full);
  if (found == kCollectives.end()) return nullptr;
  i.flow = found->second.flow;
  return found->second.execute;
}

}  // namespace ptx
