#include "spike_pack.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <optional>

#include "../spike_product.h"
#include "lanes.h"
#include "scratch.h"
#include "spike_dense.h"

namespace tandem::cpu {

namespace {

template <int L>
TANDEM_INLINE Vec<float, L> load_floats(const float* p) {
  return load<Vec<float, L>>(p);
}
template <int L, class Half>
TANDEM_INLINE Vec<float, L> load_floats(const Half* p) {
  float out[L];
  for (int i = 0; i < L; ++i) out[i] = to_float(p[i]);
  return load<Vec<float, L>>(out);
}

// The magnitudes of an output's weights.
struct Magnitudes {
  float sum, largest;
};

// Sixteen at a time, added up lane by lane and then as a tree: the same sum at every capability.
template <int L, class E>
TANDEM_INLINE Magnitudes measure_magnitudes(const E* row, int64_t inputs) {
  constexpr int S = kLanes / L;
  Vec<float, L> sum[S] = {}, most[S] = {};
  int64_t k = 0;
  for (; k + kLanes <= inputs; k += kLanes) {
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      const auto bits = reinterpret_cast<Int<float, L>>(load_floats<L>(row + k + s * L));
      const auto magnitude = reinterpret_cast<Vec<float, L>>(bits & 0x7fffffff);
      sum[s] += magnitude;
      most[s] = magnitude > most[s] ? magnitude : most[s];
    }
  }
  float lane[kLanes], largest[kLanes];
  std::memcpy(lane, sum, sizeof(lane));
  std::memcpy(largest, most, sizeof(largest));
  for (; k < inputs; ++k) {
    const float magnitude = std::fabs(load_floats<1>(row + k)[0]);
    lane[k % kLanes] += magnitude;
    largest[0] = std::max(largest[0], magnitude);
  }
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      lane[i] += lane[i + half];
      largest[i] = std::max(largest[i], largest[i + half]);
    }
  }
  return {lane[0], largest[0]};
}

// To the nearest integer, halves away from zero; integers stay what they are whatever their size.
template <class V>
TANDEM_INLINE auto to_fixed(V x) {
  using I = decltype(x < x);
  const I sign = reinterpret_cast<I>(x) & static_cast<int32_t>(0x80000000u);
  const V nearly_half = reinterpret_cast<V>(reinterpret_cast<I>(V{} + 0.49999997f) | sign);
  return __builtin_convertvector(x + nearly_half, I);
}

// a[first], b[first], a[first + 1], b[first + 1], ...; GCC needs the builtin to make it one shuffle, clang lacks it.
template <int L>
TANDEM_INLINE Int<float, L> zip(const Int<float, L>& a, const Int<float, L>& b, int first) {
#if __has_builtin(__builtin_shuffle)
  Int<float, L> lanes{};
  for (int i = 0; i < L; ++i) lanes[i] = first + i / 2 + i % 2 * L;
  return __builtin_shuffle(a, b, lanes);
#else
  Int<float, L> out{};
  for (int i = 0; i < L; ++i) out[i] = i % 2 == 0 ? a[first + i / 2] : b[first + i / 2];
  return out;
#endif
}

// L x L lanes: log2 L perfect shuffles.
template <int L>
TANDEM_INLINE void transpose(Int<float, L> (&m)[L]) {
#pragma GCC unroll 4
  for (int round = 1; round < L; round *= 2) {
    Int<float, L> zipped[L];
#pragma GCC unroll 16
    for (int i = 0; i < L / 2; ++i) {
      zipped[2 * i] = zip<L>(m[i], m[i + L / 2], 0);
      zipped[2 * i + 1] = zip<L>(m[i], m[i + L / 2], L / 2);
    }
    std::memcpy(m, zipped, sizeof(m));
  }
}

// 2^n, for the n of a normal number.
TANDEM_INLINE float power_of_two(int n) {
  const int32_t bits = (n + 127) << 23;
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

// The unit of an output's weights, as the exponent of a power of two: no sum of them may overflow. It is up to four
// times larger than that where the weights then are three digits to the matrix unit, and not four.
TANDEM_INLINE int unit_exponent(const Magnitudes& weights) {
  int exponent = 0;
  std::frexp(weights.sum, &exponent);
  exponent = std::max(exponent, -30) - 30;
  for (int spare = 0; spare <= 2; ++spare) {
    if (weights.largest * power_of_two(-exponent - spare) <= kThreeDigits) return exponent + spare;
  }
  return exponent;
}

// Packs a tile. position[j] is the row, within it, of the j-th weight of an output. False: some weight is not finite.
template <int L, class E>
TANDEM_INLINE bool pack_typed(const SpikeProduct& product, const Tiling& tiling, const int64_t* position, int64_t tile,
                              int32_t* out) {
  const int64_t inputs = product.inputs();
  const int width = tiling.width();
  bool finite = true;
  const int64_t group = tile / tiling.tiles_per_group;
  const int64_t first = tile % tiling.tiles_per_group * width;
  for (int64_t q = 0; q < tiling.blocks; ++q) {
    const int64_t rows = product.taps() * (tiling.last_channel(product, q) - tiling.first_channel(q));
    std::memset(out + tiling.block_offset(product, q) + rows * width, 0, width * sizeof(int32_t));
  }
  float* unit = reinterpret_cast<float*>(out + tiling.tile_size - width);
  for (int lane = 0; lane < width; lane += L) {
    const E* row[L];
    float factor[L];
    for (int i = 0; i < L; ++i) {
      const bool exists = first + lane + i < product.group_outputs();
      const int64_t output = group * product.group_outputs() + (exists ? first + lane + i : 0);
      row[i] = static_cast<const E*>(product.weight) + output * inputs;
      const Magnitudes weights = measure_magnitudes<L>(row[i], inputs);
      const bool usable = std::isfinite(weights.sum);
      finite &= usable;
      const int exponent = usable ? unit_exponent(weights) : 0;
      factor[i] = exists ? power_of_two(-exponent) : 0.f;
      unit[lane + i] = power_of_two(exponent);
    }
    int64_t j = 0;
    for (; j + L <= inputs; j += L) {
      Int<float, L> block[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) block[i] = to_fixed(load_floats<L>(row[i] + j) * factor[i]);
      transpose<L>(block);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) store(out + position[j + i] * width + lane, block[i]);
    }
    for (; j < inputs; ++j) {
      for (int i = 0; i < L; ++i) {
        out[position[j] * width + lane + i] = to_fixed(load_floats<1>(row[i] + j) * factor[i])[0];
      }
    }
  }
  return finite;
}

template <int L>
TANDEM_INLINE void pack_tile_body(const SpikeProduct& product, const Tiling& tiling, const int64_t* position,
                                  int64_t tile, int32_t* out, bool* finite) {
  switch (product.weight_dtype) {
    case DType::kBFloat16:
      *finite = pack_typed<L, BFloat16>(product, tiling, position, tile, out);
      return;
    case DType::kFloat16:
      *finite = pack_typed<L, Float16>(product, tiling, position, tile, out);
      return;
    default:
      *finite = pack_typed<L, float>(product, tiling, position, tile, out);
  }
}
TANDEM_CPU_LANES_KERNEL(pack_tile,
                        (const SpikeProduct& product, const Tiling& tiling, const int64_t* position, int64_t tile,
                         int32_t* out, bool* finite),
                        (product, tiling, position, tile, out, finite))

// Rows of a tile are in the order K-block, tap, channel; the weights of an output are not.
void fill_positions(const SpikeProduct& product, const Tiling& tiling, int64_t* position) {
  const int64_t taps = product.taps(), channels = product.group_channels();
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t q = c / tiling.block_channels;
    const int64_t block = tiling.last_channel(product, q) - tiling.first_channel(q);
    const int64_t row = q * (taps * tiling.block_channels + 1) + c - tiling.first_channel(q);
    for (int64_t tap = 0; tap < taps; ++tap) {
      position[product.weight_channels_last ? tap * channels + c : c * taps + tap] = row + tap * block;
    }
  }
}

}  // namespace

int64_t tiles_size(const SpikeProduct& product) {
  const Tiling tiling(product);
  return product.groups * tiling.tiles_per_group * tiling.tile_size;
}

bool pack_tiles(const SpikeProduct& product, int32_t* packed, int32_t* digits, bool units_only, ParallelFor parallel) {
  const Tiling tiling(product);
  thread_local Scratch<int64_t> positions;
  int64_t* position = positions.reserve(product.inputs());
  fill_positions(product, tiling, position);
  std::optional<DensePacker> packer;
  if (digits != nullptr) packer.emplace(product, tiling, digits);
  std::atomic<bool> all_finite{true};
  constexpr int64_t kGrain = 1 << 16;  // weights worth a thread
  const int64_t grain = 1 + kGrain / (tiling.tile_size + 1);
  parallel_ranges(parallel, product.groups * tiling.tiles_per_group, grain, [&](int64_t begin, int64_t end) {
    thread_local Scratch<int32_t> tile_memory;
    int32_t* passing = units_only ? tile_memory.reserve(tiling.tile_size) : nullptr;
    for (int64_t i = begin; i < end; ++i) {
      int32_t* kept = packed + i * tiling.tile_size;
      int32_t* tile = units_only ? passing : kept;
      bool finite;
      pack_tile(product, tiling, position, i, tile, &finite);
      if (!finite) all_finite = false;
      if (packer) packer->pack(i, tile);
      const int64_t units = tiling.tile_size - tiling.width();
      if (units_only) std::copy_n(tile + units, tiling.width(), kept + units);
    }
  });
  return all_finite;
}

}  // namespace tandem::cpu
