// Spikes and weights as operands of mma.sync: A = weights [16 outputs, depth], B = spikes of eight pixels at one step
// [depth, 8]. Lane 4 g + q of the warp holds outputs g and g + 8 of A and pixel g of B, for the same four (int8: eight)
// depths. A byte of a spike plane has eight steps, so one load of spikes serves eight products.
#pragma once

#include "vec.cuh"

namespace tandem::cuda {

// Bytes i and i + 1 of the eight in low and high, each twice.
__device__ __forceinline__ uint32_t twice(uint32_t low, uint32_t high, int i) {
  return __byte_perm(low, high, 0x1100 + i * 0x1111);
}

// Defaults of all operands.
struct AnyWeights {
  static constexpr int kTerms = 1;  // mma instructions per product
  static constexpr bool kCounted = false;
  static constexpr bool kDigits = false;
  static constexpr int kWeightPad = 16;  // padding of a row in bytes, against bank conflicts

  // The offset in bytes where a lane starts in a tile of weights.
  static __device__ __forceinline__ int weights_of(int lane, int row_bytes) {
    return lane % 16 * row_bytes + lane / 16 * 16;
  }
  // `tile` includes the lane's offset.
  static __device__ __forceinline__ void load_weights(Shared tile, int /*row_bytes*/, uint32_t (&a)[kTerms][4]) {
    ldmatrix_x4(a[0], tile);
  }
};

// A float16 with one exponent bit set is a normal number, a power of two. (Tensor cores lose bits of subnormal ones.)
// If a byte of spikes stands twice in sixteen bits, the exponent has steps 2 to 6; shifted up by three, it has steps 7,
// 0 and 1. So a mask is all the conversion.
struct Float16Weights : AnyWeights {
  using Weight = __half;
  using Sum = float;
  static constexpr int kDepth = 16;

  struct Spikes {
    uint32_t bytes[2], moved[2];
  };

  // `row` points to pixel g's spikes at the first depth.
  static __device__ __forceinline__ Spikes load_spikes(const uint8_t* row, int q) {
    const auto bytes = load<uint4>(row);
    const uint32_t first = twice(bytes.x, bytes.y, 2 * q);
    const uint32_t second = twice(bytes.z, bytes.w, 2 * q);
    return {{first, second}, {first << 3, second << 3}};
  }
  // Converts two counts; `bytes` has each of them twice.
  static __device__ __forceinline__ uint32_t counts(uint32_t bytes) {
    return bits_as<uint32_t>(__floats2half2_rn(static_cast<float>(bytes & 255u), static_cast<float>(bytes >> 24)));
  }
  static __device__ __forceinline__ bool is_moved(int t) { return t < 2 || t > 6; }
  static __device__ __forceinline__ int exponent_bit(int t) { return is_moved(t) ? (t + 1) % 8 : t - 2; }
  static __device__ __forceinline__ uint32_t spikes_at(const Spikes& s, int t, int r) {
    return (is_moved(t) ? s.moved[r] : s.bytes[r]) & 0x04000400u << exponent_bit(t);
  }
  static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_f16(sum, a, b);
  }
  static __device__ __forceinline__ float product(float sum, int t) {
    return sum * __int_as_float((127 + 15 - (1 << exponent_bit(t))) << 23);
  }
};

// A bfloat16 with only bit 14 set is 2: the byte is shifted until step t is there. Subnormal numbers would be too small
// for a float32 sum.
struct BFloat16Weights : Float16Weights {
  using Weight = __nv_bfloat16;

  struct Spikes {
    uint32_t bytes[2];
  };

  static __device__ __forceinline__ Spikes load_spikes(const uint8_t* row, int q) {
    const auto bytes = load<uint4>(row);
    return {{twice(bytes.x, bytes.y, 2 * q), twice(bytes.z, bytes.w, 2 * q)}};
  }
  static __device__ __forceinline__ uint32_t counts(uint32_t bytes) {
    return bits_as<uint32_t>(__floats2bfloat162_rn(static_cast<float>(bytes & 255u), static_cast<float>(bytes >> 24)));
  }
  static __device__ __forceinline__ uint32_t spikes_at(const Spikes& s, int t, int r) {
    return s.bytes[r] << (14 - t) & 0x40004000u;
  }
  static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_bf16(sum, a, b);
  }
  static __device__ __forceinline__ float product(float sum, int /*t*/) { return sum * 0.5f; }
};

// A float32 weight as the sum of two bfloat16, which keep 16 of its bits, or as one, which keeps 8. A lane takes four
// neighbouring depths, with one load of weights and one of spikes: the order of depths is free as long as both operands
// share it.
template <int terms>
struct Float32Weights : BFloat16Weights {
  using Weight = float;
  static constexpr int kTerms = terms;
  static constexpr int kWeightPad = 64;

  static __device__ __forceinline__ Spikes load_spikes(const uint8_t* row, int q) {
    const auto bytes = load<uint32_t>(row + 4 * q);
    return {{twice(bytes, 0, 0), twice(bytes, 0, 2)}};
  }
  static __device__ __forceinline__ int weights_of(int lane, int row_bytes) {
    return lane / 4 * row_bytes + lane % 4 * 16;
  }
  static __device__ __forceinline__ void load_weights(Shared tile, int row_bytes, uint32_t (&a)[kTerms][4]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const auto w = load<float4>(tile.pointer + 8 * r * row_bytes);
      split(w.x, w.y, a, r);
      split(w.z, w.w, a, 2 + r);
    }
  }

 private:
  static __device__ __forceinline__ void split(float x, float y, uint32_t (&a)[kTerms][4], int r) {
#pragma unroll
    for (int term = 0; term < kTerms; ++term) {
      const __nv_bfloat162 part = __floats2bfloat162_rn(x, y);
      a[term][r] = bits_as<uint32_t>(part);
      x -= __low2float(part);
      y -= __high2float(part);
      if (term == 0) {  // inf - inf is NaN, which becomes a finite number; no real rest is as large
        x = fminf(x, 1e36f);
        y = fminf(y, 1e36f);
      }
    }
  }
};

// Sums are exact: a masked byte of spikes is 2^t or 0.
struct Int8Weights : AnyWeights {
  using Weight = int8_t;
  using Sum = int32_t;
  static constexpr int kDepth = 32;

  struct Spikes {
    uint32_t bytes[2];
  };

  static __device__ __forceinline__ Spikes load_spikes(const uint8_t* row, int q) {
    return {{load<uint32_t>(row + 4 * q), load<uint32_t>(row + 16 + 4 * q)}};
  }
  static __device__ __forceinline__ uint32_t counts(uint32_t bytes) { return bytes; }
  static __device__ __forceinline__ uint32_t spikes_at(const Spikes& s, int t, int r) {
    return s.bytes[r] & (0x01010101u << t);
  }
  static __device__ __forceinline__ void multiply(int32_t (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_s8_u8(sum, a, b);
  }
  static __device__ __forceinline__ float product(int32_t sum, int t) { return static_cast<float>(sum >> t); }
};

// All bits of a float32 weight, as digits (digits.h), which are multiplied by the spikes one after the other, the
// highest first. In between the sums are multiplied by 256. They may wrap around modulo 2^32, but the final sums fit.
struct DigitWeights : Int8Weights {
  static constexpr bool kDigits = true;

  static __device__ __forceinline__ uint32_t spikes_at(const Spikes& s, int t, int r) {
    return s.bytes[r] >> t & 0x01010101u;
  }
  static __device__ __forceinline__ float product(int32_t sum, int /*t*/) { return static_cast<float>(sum); }
};

// Counts in place of spikes: every operand type represents 0 to 255 exactly.
template <class Operands>
struct Counted : Operands {
  static constexpr bool kCounted = true;

  struct Spikes {
    uint32_t operand[2];
  };

  static __device__ __forceinline__ Spikes load_spikes(const uint8_t* row, int q) {
    const auto read = Operands::load_spikes(row, q);
    return {{Operands::counts(read.bytes[0]), Operands::counts(read.bytes[1])}};
  }
  static __device__ __forceinline__ uint32_t spikes_at(const Spikes& s, int /*t*/, int r) { return s.operand[r]; }
};

}  // namespace tandem::cuda
