// cp.async, ldmatrix and mma.sync.
#include <cmath>

#include "internal.h"

namespace emulation {

namespace {

float half_at(uint64_t word, int i) {
  __half_raw raw;
  raw.x = static_cast<unsigned short>(word >> 16 * i);
  return __half2float(raw);
}

float bfloat_at(uint64_t word, int i) {
  __nv_bfloat16_raw raw;
  raw.x = static_cast<unsigned short>(word >> 16 * i);
  return __bfloat162float(raw);
}

int int8_at(uint64_t word, int i) { return static_cast<int8_t>(word >> 8 * i); }
int uint8_at(uint64_t word, int i) { return static_cast<uint8_t>(word >> 8 * i); }

// D = A B + C with A [16][kDepth] and B [kDepth][8]. PTX ISA, fragments of mma.m16n8k16 and .m16n8k32: lane 4 g + q
// holds in register r of A row g + 8 (r % 2), in register r of B column g, of C and D row g + 8 (r / 2) and column
// 2 q + r % 2; a register holds kDepth / 8 neighbours in depth, from kDepth / 8 q on, and kDepth / 2 further for the
// upper registers. Sums are exact before one rounding, which hardware does not promise: tests use data that never
// round.
template <int kDepth, class Sum, class Total, auto a_at, auto b_at>
void exchange_product(Lane* const* lanes, unsigned mask) {
  if (mask != 0xffffffffu) fault("mma needs the whole warp");
  constexpr int kPacked = kDepth / 8;
  Total a[16][kDepth], b[kDepth][8];
  for (int l = 0; l < 32; ++l) {
    const int g = l / 4, q = l % 4;
    for (int i = 0; i < kPacked; ++i) {
      const int k = kPacked * q + i;
      for (int r = 0; r < 4; ++r) a[g + r % 2 * 8][k + r / 2 * kDepth / 2] = a_at(lanes[l]->in[r], i);
      for (int r = 0; r < 2; ++r) b[k + r * kDepth / 2][g] = b_at(lanes[l]->in[4 + r], i);
    }
  }
  for (int l = 0; l < 32; ++l) {
    for (int r = 0; r < 4; ++r) {
      const int row = l / 4 + r / 2 * 8, column = l % 4 * 2 + r % 2;
      Sum c;
      std::memcpy(&c, &lanes[l]->in[6 + r], sizeof(c));
      Total total = c;
      for (int k = 0; k < kDepth; ++k) total += a[row][k] * b[k][column];
      const Sum d = static_cast<Sum>(total);
      std::memcpy(&lanes[l]->out[r], &d, sizeof(d));
    }
  }
}

// Lane i brings the address of row i % 8 of matrix i / 8 and takes word i % 4 of row i / 4 of each matrix.
void exchange_matrices(Lane* const* lanes, unsigned) {
  for (int l = 0; l < 32; ++l) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto* row = reinterpret_cast<const char*>(lanes[8 * matrix + l / 4]->in[0]);
      std::memcpy(&lanes[l]->out[matrix], row + l % 4 * 4, 4);
    }
  }
}

template <class Sum>
void mma(const char* name, Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Exchange exchange, Site at) {
  Lane& lane = running->lane;
  std::copy(a, a + 4, lane.in);
  std::copy(b, b + 2, lane.in + 4);
  for (int r = 0; r < 4; ++r) std::memcpy(&lane.in[6 + r], &d[r], sizeof(d[r]));
  meet(name, 0xffffffffu, exchange, at);
  for (int r = 0; r < 4; ++r) std::memcpy(&d[r], &lane.out[r], sizeof(d[r]));
}

}  // namespace

}  // namespace emulation

namespace tandem::cuda {

using emulation::running;

void ldmatrix_x4(uint32_t (&r)[4], const void* row, const char* file, int line) {
  emulation::check_read(row, 16, __builtin_return_address(0));
  running->lane.in[0] = reinterpret_cast<uintptr_t>(row);
  const emulation::Lane& lane = emulation::meet("ldmatrix", 0xffffffffu, emulation::exchange_matrices, {file, line});
  for (int matrix = 0; matrix < 4; ++matrix) r[matrix] = static_cast<uint32_t>(lane.out[matrix]);
}

void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file, int line) {
  emulation::mma("mma_f16", d, a, b,
                 emulation::exchange_product<16, float, double, emulation::half_at, emulation::half_at>, {file, line});
}

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file, int line) {
  emulation::mma("mma_bf16", d, a, b,
                 emulation::exchange_product<16, float, double, emulation::bfloat_at, emulation::bfloat_at>,
                 {file, line});
}

void mma_s8_u8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file, int line) {
  emulation::mma("mma_s8_u8", d, a, b,
                 emulation::exchange_product<32, int32_t, int64_t, emulation::int8_at, emulation::uint8_at>,
                 {file, line});
}

void cp_async_16(void* shared, const void* global, bool valid) {
  const emulation::Copy copy{static_cast<char*>(shared), static_cast<const char*>(global), valid};
  emulation::check_copy_issued(copy, __builtin_return_address(0));
  running->copies.back().push_back(copy);
}

void cp_async_commit() { running->copies.emplace_back(); }

// Copies land as late as they may.
void cp_async_wait(int groups_in_flight) {
  auto& groups = running->copies;
  while (static_cast<int>(groups.size()) - 1 > groups_in_flight) {
    for (const emulation::Copy& copy : groups.front()) {
      if (copy.valid) {
        std::memcpy(copy.shared, copy.global, 16);
      } else {
        std::memset(copy.shared, 0, 16);
      }
      emulation::check_copy_landed(copy);
    }
    groups.erase(groups.begin());
  }
}

}  // namespace tandem::cuda
