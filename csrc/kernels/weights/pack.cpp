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

// The weights of output `lane` of a tile and their unit; what is packed as zeros has the exponent 0.
template <class E>
struct Row {
  const E* weights;
  OutputUnit unit;
};

template <int L, class E>
TANDEM_INLINE Row<E> find_row(const PackedWeights& from, int64_t tile, int lane, int& scale, float* unit) {
  const Tiling& tiling = from.tiling;
  const int64_t output = tile % tiling.tiles_per_group * tiling.width() + lane;
  const auto* zeros = reinterpret_cast<const E*>(from.zeros.data());
  *unit = 1;
  if (output >= tiling.outputs) return {zeros, {}};
  const int64_t first = tile / tiling.tiles_per_group * tiling.outputs;
  const E* weights = static_cast<const E*>(from.weights.data) + (first + output) * tiling.inputs();
  const OutputUnit found = measure_unit<L>(weights, tiling.inputs(), scale);
  *unit = found.finite ? power_of_two(found.exponent) : std::numeric_limits<float>::quiet_NaN();
  return {found.finite ? weights : zeros, found};
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

template <int L, class E>
TANDEM_INLINE void pack_typed(const TilePacker& job, int64_t tile, int32_t* out, float* unit) {
  const Tiling& tiling = job.tiling;
  const int width = tiling.width();
  int scale = 0;
  for (int64_t q = 0; q < tiling.blocks; ++q) {
    const int64_t rows = tiling.taps * (tiling.last_channel(q) - tiling.first_channel(q));
    std::memset(out + (tiling.first_row(q) + rows) * width, 0, width * sizeof(int32_t));
  }
  for (int lane = 0; lane < width; lane += L) {
    const E* row[L];
    float factor[L];
    for (int i = 0; i < L; ++i) {
      const Row<E> found = find_row<L, E>(job, tile, lane + i, scale, unit + lane + i);
      row[i] = found.weights;
      factor[i] = power_of_two(-found.unit.exponent);
    }
    pack_rows<L>(job, row, factor, out + lane);
  }
}

// Calls pack(E{}) for the type of the weights.
template <class Pack>
TANDEM_INLINE void of_type(DType dtype, const Pack& pack) {
  switch (dtype) {
    case DType::kBFloat16:
      return pack(BFloat16{});
    case DType::kFloat16:
      return pack(Float16{});
    case DType::kInt8:
      return pack(int8_t{});
    default:
      return pack(float{});
  }
}

TANDEM_CPU_KERNEL(pack_tile, (const TilePacker& job, int64_t tile, int32_t* out, float* unit), (job, tile, out, unit)) {
  of_type(job.weights.dtype, [&](auto e) TANDEM_INLINE_LAMBDA { pack_typed<L, decltype(e)>(job, tile, out, unit); });
}

// --- digits ----------------------------------------------------------------------------------------------------------

constexpr int kOutputs = 16;  // of a column

// Of each four words: byte d of all four, for d = 0 to 3.
template <int L, size_t... i>
TANDEM_INLINE Int<L> bytes_of_words(const Int<L>& words, std::index_sequence<i...>) {
  const auto bytes = reinterpret_cast<Bytes<4 * L>>(words);
  return reinterpret_cast<Int<L>>(__builtin_shufflevector(bytes, bytes, (i / 16 * 16 + i % 4 * 4 + i / 4 % 4)...));
}

// Moves the weights of an output, [channels, taps], to [taps, channels].
template <class E>
TANDEM_INLINE const E* channels_last(const E* weights, const Tiling& tiling, E* moved) {
  for (int64_t tap = 0; tap < tiling.taps; ++tap) {
#pragma GCC unroll 8
    for (int64_t c = 0; c < tiling.channels; ++c) moved[tap * tiling.channels + c] = weights[c * tiling.taps + tap];
  }
  return moved;
}

// The shift that all integers of a column have in common: none in most layers, which an output is enough to see.
// Weights times 2^-(exponent + shift) must remain floats.
template <int L, class E>
TANDEM_INLINE int common_shift(const Row<E> (&rows)[kOutputs], int64_t size) {
  uint32_t bits = 0;
  int exponent = 0;
  for (const Row<E>& row : rows) {
    const float factor = power_of_two(-row.unit.exponent);
    exponent = std::max(exponent, row.unit.exponent);
    Int<L> lanes{};
    int64_t j = 0;
    for (; j + L <= size; j += L) lanes |= to_fixed(load_floats<L>(row.weights + j) * factor);
    for (; j < size; ++j) lanes[0] |= to_fixed(load_floats<1>(row.weights + j) * factor)[0];
    for (int i = 0; i < L; ++i) bits |= static_cast<uint32_t>(lanes[i]);
    if (bits % 2 != 0) return 0;
  }
  return bits == 0 ? 0 : std::min(__builtin_ctz(bits), 126 - exponent);
}

// Packs inputs [j, j + L) of L outputs. The bytes of w + 0x80808080 are the digits of w plus 128.
template <int L, class E>
TANDEM_INLINE void pack_block(const E* const* row, int64_t j, const float* factor, int count, int8_t* to) {
  constexpr int32_t bias = static_cast<int32_t>(0x80808080u);
  typedef typename Simd<uint32_t, L>::type Words;  // wrap
  Int<L> block[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    const auto fixed = reinterpret_cast<Words>(to_fixed(load_floats<L>(row[i] + j) * factor[i]));
    block[i] = bytes_of_words<L>(reinterpret_cast<Int<L>>(fixed + static_cast<uint32_t>(bias)),
                                 std::make_index_sequence<4 * L>());
  }
  transpose<L>(block);
#pragma GCC unroll 4
  for (int word = 0; word < L / 4; ++word) {
#pragma GCC unroll 4
    for (int d = 0; d < kMostDigits; ++d) {
      if (d < count) store(to + d * kTileBytes + word * 4 * kOutputs, block[4 * word + d] ^ bias);
    }
  }
}

// Packs a segment of inputs, which ends in zeros. Prefetches as many weights from `next` on into L2, in the order of
// the memory: row by row they would be on as many pages at a time.
template <int L, class E>
TANDEM_INLINE void pack_segment(const ColumnPacker& job, const E* const (&rows)[kOutputs],
                                const float (&factor)[kOutputs], int count, const E* next, int8_t* digits) {
  const int64_t length = job.shape.length;
  for (int64_t j = 0; j < job.shape.chunks_per_segment * kChunk; j += L) {
    int8_t* to = digits + j / kChunk * count * kTileBytes + j % kChunk * kOutputs;
    for (int i = 0; i < kOutputs; i += L) {
      if (j + L <= length) {
#pragma GCC unroll 16
        for (int k = 0; k < L; ++k) __builtin_prefetch(next + j * kOutputs + (i + k) * L, 0, 2);
        pack_block<L>(rows + i, j, factor + i, count, to + 4 * i);
      } else {
        E rest[L][L]{};
        const E* row[L];
        for (int lane = 0; lane < L; ++lane) {
          std::copy_n(rows[i + lane] + j, std::max<int64_t>(length - j, 0), rest[lane]);
          row[lane] = rest[lane];
        }
        pack_block<L>(row, 0, factor + i, count, to + 4 * i);
      }
    }
  }
}

template <int L, class E>
TANDEM_INLINE void pack_typed(const ColumnPacker& job, int64_t column, Cut* to_cut, int8_t* digits, float* unit,
                              Workspace& outer) {
  Workspace workspace(outer);
  const Tiling& tiling = job.tiling;
  const int64_t size = tiling.inputs();
  const bool moves = tiling.taps > 1 && tiling.channels > 1 && !job.weights.channels_last;
  E* moved = moves ? workspace.take<E>(kOutputs * size) : nullptr;
  Row<E> rows[kOutputs];
  int32_t most = 0;
  int scale = 0;
  for (int i = 0; i < kOutputs; ++i) {
    const int lane = static_cast<int>(column % tiling.registers) * kOutputs + i;
    rows[i] = find_row<L, E>(job, column / tiling.registers, lane, scale, unit + i);
    most = std::max(most, tandem::to_fixed(rows[i].unit.largest * power_of_two(-rows[i].unit.exponent)));
    if (moves) rows[i].weights = channels_last(rows[i].weights, tiling, moved + i * size);
  }
  const int shift = common_shift<L>(rows, size);
  const Cut cut{digits_of(most >> shift), shift};
  const E* weights[kOutputs];
  float factor[kOutputs];
  for (int i = 0; i < kOutputs; ++i) {
    weights[i] = rows[i].weights;
    factor[i] = power_of_two(-rows[i].unit.exponent - shift);
  }
  const E* next = static_cast<const E*>(job.weights.data) + (column + 1) * kOutputs * size;
  for (int64_t segment = 0; segment < job.shape.segments; ++segment) {
    pack_segment<L>(job, weights, factor, cut.count, next, digits);
    digits += job.shape.chunks_per_segment * cut.count * kTileBytes;
    next += job.shape.length * kOutputs;
    for (const E*& row : weights) row += job.shape.length;
  }
  *to_cut = cut;
}

TANDEM_CPU_KERNEL(pack_column,
                  (const ColumnPacker& job, int64_t column, Cut* cut, int8_t* digits, float* unit,
                   Workspace& workspace),
                  (job, column, cut, digits, unit, workspace)) {
  of_type(job.weights.dtype,
          [&](auto e) TANDEM_INLINE_LAMBDA { pack_typed<L, decltype(e)>(job, column, cut, digits, unit, workspace); });
}

}  // namespace

TilePacker::TilePacker(const Weights& from, const Tiling& to) : PackedWeights(from, to), position(to.inputs()) {
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

void ColumnPacker::operator()(int64_t i, Cut* cut, int8_t* digits, float* unit, Workspace& workspace) const {
  pack_column(*this, i, cut, digits, unit, workspace);
}

}  // namespace tandem::cpu
