#include "pack.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "units.h"

namespace tandem::cpu {

namespace {

// a[first], b[first], a[first + 1], b[first + 1], ...; GCC needs the builtin to make it one shuffle, clang lacks it.
template <int L>
TANDEM_INLINE Int<L> zip(const Int<L>& a, const Int<L>& b, int first) {
#if __has_builtin(__builtin_shuffle)
  Int<L> lanes{};
  for (int i = 0; i < L; ++i) lanes[i] = first + i / 2 + i % 2 * L;
  return __builtin_shuffle(a, b, lanes);
#else
  Int<L> out{};
  for (int i = 0; i < L; ++i) out[i] = i % 2 == 0 ? a[first + i / 2] : b[first + i / 2];
  return out;
#endif
}

// Transposes L x L lanes by log2 L perfect shuffles.
template <int L>
TANDEM_INLINE void transpose(Int<L> (&m)[L]) {
#pragma GCC unroll 4
  for (int round = 1; round < L; round *= 2) {
    Int<L> zipped[L];
#pragma GCC unroll 16
    for (int i = 0; i < L / 2; ++i) {
      zipped[2 * i] = zip<L>(m[i], m[i + L / 2], 0);
      zipped[2 * i + 1] = zip<L>(m[i], m[i + L / 2], L / 2);
    }
    std::memcpy(m, zipped, sizeof(m));
  }
}

// Writes L rows of weights, each times its factor, as L columns of a tile. Prefetches the next rows into L2.
template <int L, class E>
TANDEM_INLINE void pack_rows(const TilePacker& job, const E* const (&row)[L], const float (&factor)[L], int32_t* out) {
  const int64_t inputs = job.tiling.inputs();
  const int width = job.tiling.width();
  const int64_t* position = job.position.data();
  int64_t j = 0;
  for (; j + L <= inputs; j += L) {
    Int<L> block[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) __builtin_prefetch(row[i] + L * inputs + j, 0, 2);
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) block[i] = to_fixed(load_floats<L>(row[i] + j) * factor[i]);
    transpose<L>(block);
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) store(out + position[j + i] * width, block[i]);
  }
  for (; j < inputs; ++j) {
    for (int i = 0; i < L; ++i) {
      out[position[j] * width + i] = to_fixed(load_floats<1>(row[i] + j) * factor[i])[0];
    }
  }
}

// Packs a tile of integers and its units. An output with a weight that is not finite has the unit NaN, which makes its
// currents NaN at every step.
template <int L, class E>
TANDEM_INLINE void pack_typed(const TilePacker& job, int64_t tile, int32_t* out, float* unit) {
  const Tiling& tiling = job.tiling;
  const int64_t row_size = tiling.inputs();
  const int width = tiling.width();
  int scale = 0;
  const int64_t group = tile / tiling.tiles_per_group;
  const int64_t first = tile % tiling.tiles_per_group * width;
  for (int64_t q = 0; q < tiling.blocks; ++q) {
    const int64_t rows = tiling.taps * (tiling.last_channel(q) - tiling.first_channel(q));
    std::memset(out + (tiling.first_row(q) + rows) * width, 0, width * sizeof(int32_t));
  }
  for (int lane = 0; lane < width; lane += L) {
    const E* row[L];
    float factor[L];
    bool finite[L];
    int exponent = 0;
    for (int i = 0; i < L; ++i) {
      const bool exists = first + lane + i < tiling.outputs;
      const int64_t output = group * tiling.outputs + std::min(first + lane + i, tiling.outputs - 1);
      row[i] = static_cast<const E*>(job.weights.data) + output * row_size;
      const bool measured = exists || i == 0;  // behind the last output are copies of it, times 0
      finite[i] = measured ? unit_exponent<L>(row[i], row_size, exponent, scale) : finite[i - 1];
      factor[i] = exists ? power_of_two(-exponent) : 0.f;
      unit[lane + i] = finite[i] ? power_of_two(exponent) : std::numeric_limits<float>::quiet_NaN();
    }
    pack_rows<L>(job, row, factor, out + lane);
    for (int i = 0; i < L; ++i) {
      const int64_t inputs = finite[i] ? 0 : row_size;
      for (int64_t j = 0; j < inputs; ++j) out[job.position[j] * width + lane + i] = 0;
    }
  }
}

TANDEM_CPU_KERNEL(pack_tile, (const TilePacker& job, int64_t tile, int32_t* out, float* unit), (job, tile, out, unit)) {
  switch (job.weights.dtype) {
    case DType::kBFloat16:
      return pack_typed<L, BFloat16>(job, tile, out, unit);
    case DType::kFloat16:
      return pack_typed<L, Float16>(job, tile, out, unit);
    case DType::kInt8:
      return pack_typed<L, int8_t>(job, tile, out, unit);
    default:
      return pack_typed<L, float>(job, tile, out, unit);
  }
}

}  // namespace

TilePacker::TilePacker(const Weights& from, const Tiling& to) : weights(from), tiling(to), position(to.inputs()) {
  for (int64_t q = 0; q < tiling.blocks; ++q) {
    int64_t row = tiling.first_row(q);
    for (int64_t tap = 0; tap < tiling.taps; ++tap) {
      for (int64_t c = tiling.first_channel(q); c < tiling.last_channel(q); ++c) {
        position[weights.channels_last ? tap * tiling.channels + c : c * tiling.taps + tap] = row++;
      }
    }
  }
}

void TilePacker::operator()(int64_t i, int32_t* tile, float* unit) const { pack_tile(*this, i, tile, unit); }

}  // namespace tandem::cpu
