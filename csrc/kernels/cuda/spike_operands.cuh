// Spike trains and weights as operands of mma.sync. A = weights [16 outputs, depth], B = spikes of eight samples at one
// step [depth, 8]. In both, lane 4 g + q of the warp takes kDepth / 4 neighbours in depth from kDepth / 4 q on: any
// order will do if A and B agree, and this one makes each lane's share one load. A byte of a spike plane holds eight
// steps, so one load of spikes serves eight products.
#pragma once

#include "vec.cuh"

namespace tandem::cuda {

// Two rows' shares of eight bytes each, laid out as the mma wants them.
__device__ __forceinline__ void load_two_rows(const unsigned char* row, const unsigned char* row_8, uint32_t (&a)[4]) {
  const auto upper = load<uint2>(row);
  const auto lower = load<uint2>(row_8);
  a[0] = upper.x;
  a[1] = lower.x;
  a[2] = upper.y;
  a[3] = lower.y;
}

// Four neighbours' bytes, each in the low half of sixteen bits.
struct SpikePairs {
  uint32_t pair[2];

  __device__ __forceinline__ void load_share(const uint8_t* p) {
    const auto bytes = load<uint32_t>(p);
    pair[0] = __byte_perm(bytes, 0, 0x4140);
    pair[1] = __byte_perm(bytes, 0, 0x4342);
  }
};

// The low bits of a float16 are a subnormal number, 2^-24 times the integer they make. So masking bit t of a byte out
// is all the conversion there is: it leaves 2^(t - 24) or 0.
struct Float16Weights {
  using Weight = __half;
  using Sum = float;
  using Spikes = SpikePairs;
  static constexpr int kDepth = 16;
  static constexpr int kTerms = 1;  // mma a product takes

  static __device__ __forceinline__ void load_share(const unsigned char* row, const unsigned char* row_8,
                                                    uint32_t (&a)[kTerms][4]) {
    load_two_rows(row, row_8, a[0]);
  }
  static __device__ __forceinline__ uint32_t spikes_at(const Spikes& s, int t, int /*term*/, int r) {
    return s.pair[r] & (0x00010001u << t);
  }
  static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_f16(sum, a, b);
  }
  static __device__ __forceinline__ float product(float sum, int t) { return sum * static_cast<float>(1 << (24 - t)); }
};

__device__ __forceinline__ uint32_t as_word(__half2 pair) {
  uint32_t word;
  memcpy(&word, &pair, sizeof(word));
  return word;
}

// Float32 weights, rounded when they are used.
struct Float32AsFloat16Weights : Float16Weights {
  using Weight = float;

  static __device__ __forceinline__ void load_share(const unsigned char* row, const unsigned char* row_8,
                                                    uint32_t (&a)[kTerms][4]) {
    const auto upper = load<float4>(row);
    const auto lower = load<float4>(row_8);
    a[0][0] = as_word(__floats2half2_rn(upper.x, upper.y));
    a[0][1] = as_word(__floats2half2_rn(lower.x, lower.y));
    a[0][2] = as_word(__floats2half2_rn(upper.z, upper.w));
    a[0][3] = as_word(__floats2half2_rn(lower.z, lower.w));
  }
};

// 2^6 w = high + low / 2^4, both float16. The spikes of the high part sit four bits further up, which makes them 2^4
// times as large: both parts end in the same sum.
struct Float32Weights {
  using Weight = float;
  using Sum = float;
  using Spikes = SpikePairs;
  static constexpr int kDepth = 16;
  static constexpr int kTerms = 2;

  static __device__ __forceinline__ void split(float x, float y, uint32_t& high, uint32_t& low) {
    x *= 64.0f;
    y *= 64.0f;
    const __half2 h = __floats2half2_rn(x, y);
    high = as_word(h);
    low = as_word(__floats2half2_rn((x - __low2float(h)) * 16.0f, (y - __high2float(h)) * 16.0f));
  }
  static __device__ __forceinline__ void load_share(const unsigned char* row, const unsigned char* row_8,
                                                    uint32_t (&a)[kTerms][4]) {
    const auto upper = load<float4>(row);
    const auto lower = load<float4>(row_8);
    split(upper.x, upper.y, a[0][0], a[1][0]);
    split(lower.x, lower.y, a[0][1], a[1][1]);
    split(upper.z, upper.w, a[0][2], a[1][2]);
    split(lower.z, lower.w, a[0][3], a[1][3]);
  }
  static __device__ __forceinline__ uint32_t spikes_at(const Spikes& s, int t, int term, int r) {
    return term == 0 ? s.pair[r] << 4 & (0x00100010u << t) : s.pair[r] & (0x00010001u << t);
  }
  static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_f16(sum, a, b);
  }
  static __device__ __forceinline__ float product(float sum, int t) { return sum * static_cast<float>(1 << (14 - t)); }
};

// A subnormal bfloat16 is too small for a float32 sum; bit 14 alone is 2.
struct BFloat16Weights {
  using Weight = __nv_bfloat16;
  using Sum = float;
  using Spikes = SpikePairs;
  static constexpr int kDepth = 16;
  static constexpr int kTerms = 1;

  static __device__ __forceinline__ void load_share(const unsigned char* row, const unsigned char* row_8,
                                                    uint32_t (&a)[kTerms][4]) {
    load_two_rows(row, row_8, a[0]);
  }
  static __device__ __forceinline__ uint32_t spikes_at(const Spikes& s, int t, int /*term*/, int r) {
    return s.pair[r] << (14 - t) & 0x40004000u;
  }
  static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_bf16(sum, a, b);
  }
  static __device__ __forceinline__ float product(float sum, int /*t*/) { return sum * 0.5f; }
};

// Exact integers: a masked byte is 2^t or 0.
struct Int8Weights {
  using Weight = int8_t;
  using Sum = int32_t;
  static constexpr int kDepth = 32;
  static constexpr int kTerms = 1;

  struct Spikes {
    uint2 bytes;
    __device__ __forceinline__ void load_share(const uint8_t* p) { bytes = load<uint2>(p); }
  };

  static __device__ __forceinline__ void load_share(const unsigned char* row, const unsigned char* row_8,
                                                    uint32_t (&a)[kTerms][4]) {
    load_two_rows(row, row_8, a[0]);
  }
  static __device__ __forceinline__ uint32_t spikes_at(const Spikes& s, int t, int /*term*/, int r) {
    return (r == 0 ? s.bytes.x : s.bytes.y) & (0x01010101u << t);
  }
  static __device__ __forceinline__ void multiply(int32_t (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_s8_u8(sum, a, b);
  }
  static __device__ __forceinline__ float product(int32_t sum, int t) { return static_cast<float>(sum >> t); }
};

}  // namespace tandem::cuda
