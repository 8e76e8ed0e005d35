// Converts spike bytes to runs of entries: the inner loops of the list builder, with and without AVX-512 VBMI2.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>

#include "../cpu/vectors.h"
#include "../cpu/workspace.h"
#include "entries.h"

#if TANDEM_MULTIVERSION
#include <immintrin.h>
#endif

namespace tandem::cpu {

// A collector lists the lowest `bits` bits of the bytes, 4 or 8, in groups of G.

// Up to 64 consecutive inputs; `entry` is that of the first.
struct InputBlock {
  const uint8_t* bytes;
  int32_t size;
  uint16_t entry;
};

// The entries that are copied at a time: runs of single steps are long, runs of four steps short. What is written
// beyond the last entry stays within kSlack.
constexpr int64_t copied(int G) { return G == 4 ? 16 : 32; }
constexpr int64_t kSlack = 80;

// Pads a run to whole words and marks its last word. Returns the end of the run.
template <int Q>
TANDEM_INLINE uint16_t* end_run(uint16_t* begin, uint16_t* end, uint16_t zero) {
  for (int i = 0; i < Q; ++i) end[i] = zero;
  const int64_t words = end == begin ? 1 : (end - begin + Q - 1) / Q;
  begin[(words - 1) * Q] |= kLastOfRun;
  return begin + words * Q;
}

// With Q > 0 runs are padded to words of Q entries; with Q = 0 they are not padded, and their sizes are written.
template <int Q>
TANDEM_INLINE uint16_t* finish(uint16_t* begin, uint16_t* end, uint16_t zero, uint16_t*& sizes) {
  if constexpr (Q > 0) return end_run<Q>(begin, end, zero);
  *sizes++ = static_cast<uint16_t>(end - begin);
  return end;
}

// The positions of the set bits of each byte, as entries.
struct Positions {
  uint16_t entry[256][8];
  uint8_t count[256];
};
constexpr Positions make_positions() {
  Positions table{};
  for (int byte = 0; byte < 256; ++byte) {
    for (int bit = 0; bit < 8; ++bit) {
      if (byte >> bit & 1) table.entry[byte][table.count[byte]++] = static_cast<uint16_t>(bit * kEntryScale);
    }
  }
  return table;
}
inline constexpr Positions kPositions = make_positions();

// Collects through a table of bit positions.
struct TableCollector {
  template <int G, int Q>
  TANDEM_INLINE static uint16_t* collect(const InputBlock* blocks, int count, int bits, uint16_t zero, Workspace& outer,
                                         uint16_t* out, uint16_t* sizes) {
    Workspace workspace(outer);
    constexpr int patterns = (1 << G) - 1;
    int64_t inputs = 0;
    for (int i = 0; i < count; ++i) inputs += blocks[i].size;
    const int64_t capacity = inputs + kSlack;
    uint16_t* buckets = G == 1 ? nullptr : workspace.take<uint16_t>(capacity * patterns);
    for (int g = 0; g < bits / G; ++g) {
      if constexpr (G == 1) {
        uint16_t* end = out;
        for (int i = 0; i < count; ++i) end = positions<G>(blocks[i], g, blocks[i].entry, end);
        out = finish<Q>(out, end, zero, sizes);
      } else {
        uint16_t* ends[patterns + 1];
        for (int c = 0; c <= patterns; ++c) ends[c] = buckets + (c - 1) * capacity;
        for (int i = 0; i < count; ++i) {
          uint16_t active[64 + 8];
          const int n = static_cast<int>(positions<G>(blocks[i], g, 0, active) - active);
          for (int j = 0; j < n; ++j) {
            const int c = blocks[i].bytes[active[j] / kEntryScale] >> (g * G) & patterns;
            *ends[c]++ = static_cast<uint16_t>(active[j] + blocks[i].entry);
          }
        }
        for (int c = 1; c <= patterns; ++c) {
          const uint16_t* bucket = buckets + (c - 1) * capacity;
          const int64_t n = ends[c] - bucket;
          for (int64_t j = 0; j < n; j += 16) std::memcpy(out + j, bucket + j, 32);
          out = finish<Q>(out, out + n, zero, sizes);
        }
      }
    }
    return out;
  }

 private:
  // Appends the entries of the inputs that are active in group g.
  template <int G>
  TANDEM_INLINE static uint16_t* positions(const InputBlock& block, int g, uint16_t entry, uint16_t* out) {
    typedef typename Simd<uint16_t, 8>::type Entries;
    for (int i = 0; i < block.size; i += kLanes) {
      const auto bytes = load_first<ByteLanes>(block.bytes + i, std::min(kLanes, block.size - i)) >> (g * G);
      const ByteLanes group = bytes & static_cast<uint8_t>((1 << G) - 1);
      const int active = bits_of(G == 1 ? group : reinterpret_cast<ByteLanes>(group != 0));
#pragma GCC unroll 2
      for (int half = 0; half < kLanes; half += 8) {
        const int bits = active >> half & 0xff;
        store(out, load<Entries>(kPositions.entry[bits]) + static_cast<uint16_t>(entry + (i + half) * kEntryScale));
        out += kPositions.count[bits];
      }
    }
    return out;
  }
};

#if TANDEM_MULTIVERSION
#define TANDEM_TARGET_VBMI2 [[gnu::target("arch=x86-64-v4,avx512vbmi,avx512vbmi2" TANDEM_WIDE_VECTORS)]]

// Collects one run after the other: compares 64 bytes and compresses the positions that match.
struct CompressCollector {
  struct Bytes64 {
    __m512i lanes;
  };

  template <int G, int Q>
  TANDEM_TARGET_VBMI2 static uint16_t* collect(const InputBlock* blocks, int count, int bits, uint16_t zero,
                                               Workspace& outer, uint16_t* out, uint16_t* sizes) {
    Workspace workspace(outer);
    alignas(64) static constexpr auto iota = [] {
      std::array<uint8_t, 64> lanes{};
      for (int i = 0; i < 64; ++i) lanes[i] = static_cast<uint8_t>(i);
      return lanes;
    }();
    const __m512i lanes = _mm512_load_si512(iota.data());
    auto* bytes = workspace.take<Bytes64>(count);
    for (int i = 0; i < count; ++i) {
      bytes[i].lanes = blocks[i].size == 64 ? _mm512_loadu_si512(blocks[i].bytes)
                                            : _mm512_maskz_loadu_epi8((1ull << blocks[i].size) - 1, blocks[i].bytes);
    }
    for (int g = 0; g < bits / G; ++g) {
      const __m512i group = _mm512_set1_epi8(static_cast<char>(((1 << G) - 1) << (g * G)));
      for (int c = 1; c < 1 << G; ++c) {
        const __m512i pattern = _mm512_set1_epi8(static_cast<char>(c << (g * G)));
        uint16_t* end = out;
        for (int i = 0; i < count; ++i) {
          const __mmask64 match = G == 1 ? _mm512_test_epi8_mask(bytes[i].lanes, pattern)
                                         : _mm512_cmpeq_epi8_mask(_mm512_and_si512(bytes[i].lanes, group), pattern);
          const int n = __builtin_popcountll(match);
          __m512i found = _mm512_maskz_compress_epi8(match, lanes);
          const __m512i entry = _mm512_set1_epi16(static_cast<int16_t>(blocks[i].entry));
          for (int j = 0; j == 0 || __builtin_expect(j < n, 0); j += copied(G)) {
            if constexpr (copied(G) == 32) {
              const __m512i wide = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(found));
              _mm512_storeu_si512(end + j, _mm512_add_epi16(entry, _mm512_slli_epi16(wide, 3)));
              found = _mm512_shuffle_i64x2(found, found, 0x4e);
            } else {
              const __m256i wide = _mm256_cvtepu8_epi16(_mm512_castsi512_si128(found));
              _mm256_storeu_si256(reinterpret_cast<__m256i*>(end + j),
                                  _mm256_add_epi16(_mm512_castsi512_si256(entry), _mm256_slli_epi16(wide, 3)));
              found = _mm512_shuffle_i64x2(found, found, 0x39);
            }
          }
          end += n;
        }
        out = finish<Q>(out, end, zero, sizes);
      }
    }
    return out;
  }
};
#endif

}  // namespace tandem::cpu
