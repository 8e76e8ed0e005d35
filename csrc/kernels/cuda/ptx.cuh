// PTX instructions without an intrinsic.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../neuron/if_neuron.h"

namespace tandem::cuda {

// An address in shared memory as inline PTX takes it.
__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

#if defined(__CUDA_ARCH__)
constexpr int kArch = __CUDA_ARCH__;
#else
constexpr int kArch = 800;
#endif
constexpr bool kAmpere = kArch >= 800;         // copies to shared memory asynchronously, and multiplies larger tiles
constexpr bool kFewRegisters = kArch >= 1200;  // GeForce's Blackwell, for which ptxas needs more registers

// Copies 16, 8 or 4 bytes to shared memory, `offset` further on; writes zeros if not `valid`. Not on Turing.
template <int bytes, int offset = 0>
__device__ __forceinline__ void cp_async(uint32_t to, const void* global, bool valid) {
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0+%3], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid ? 16 : 0),
                 "n"(offset)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0+%4], [%1], %3, %2;" ::"r"(to), "l"(global), "r"(valid ? bytes : 0),
                 "n"(bytes), "n"(offset)
                 : "memory");
  }
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most this many of the last groups are in flight.
template <int kGroupsInFlight>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsInFlight) : "memory");
}

// Stores sixteen bytes, `offset` further on.
template <int offset>
__device__ __forceinline__ void store_shared(uint32_t to, const uint32_t (&words)[4]) {
  asm volatile("st.shared.v4.b32 [%0+%5], {%1,%2,%3,%4};" ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]),
               "r"(words[3]), "n"(offset)
               : "memory");
}

// Loads four matrices of eight rows of sixteen bytes: lane i points to row i % 8 of matrix i / 8, and receives bytes 4
// (i % 4) ... + 3 of row i / 4 of each. `offset`: of all rows, in bytes.
template <int offset>
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4+%5];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row), "n"(offset)
               : "memory");
}

// The same for two matrices, with the addresses of the first sixteen lanes.
template <int offset>
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[2], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2+%3];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row), "n"(offset)
               : "memory");
}

// step() after the current was added: if v has reached the threshold, adds `one` to `spikes`; then leak, if kLeaky, and
// reset by subtraction. A zero potential may differ in its sign, nothing else.
template <uint32_t one, bool kLeaky>
__device__ __forceinline__ void fire(float& v, uint32_t& spikes, const Neuron& a) {
  if constexpr (kLeaky) {
    asm("{.reg .pred p; setp.ge.f32 p, %0, %2; mul.rn.f32 %0, %0, %3; @p sub.rn.f32 %0, %0, %2; @p add.u32 %1, %1, %4;}"
        : "+f"(v), "+r"(spikes)
        : "f"(a.threshold), "f"(a.leak), "n"(one));
  } else {
    asm("{.reg .pred p; setp.ge.f32 p, %0, %2; @p sub.rn.f32 %0, %0, %2; @p add.u32 %1, %1, %3;}"
        : "+f"(v), "+r"(spikes)
        : "f"(a.threshold), "n"(one));
  }
}

// D += A B on the tensor cores: A is 16 x 32 signed bytes, B 32 x 8 unsigned ones. Lane 4 g + q holds rows g and g + 8
// of A and column g of B: depths 4 q ... + 3, then those sixteen further on; of D columns 2 q and 2 q + 1.
__device__ __forceinline__ void mma(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kAmpere) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
#pragma unroll
    for (int part = 0; part < 4; ++part) {  // eight rows and half of the depth each
      const int row = part % 2;
      asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.u8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                   : "+r"(d[2 * row]), "+r"(d[2 * row + 1])
                   : "r"(a[part]), "r"(b[part / 2]));
    }
  }
}

// sum += factor x, for which the compiler takes two instructions or more. The first is modulo 2^32.
template <int factor>
__device__ __forceinline__ void add_product(int32_t& sum, int32_t x) {
  asm("mad.lo.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(x), "n"(factor));
}
template <int factor = 1>
__device__ __forceinline__ void add_wide(int64_t& sum, int32_t x) {
  asm("mad.wide.s32 %0, %1, %2, %0;" : "+l"(sum) : "r"(x), "n"(factor));
}

// The sum of four products of signed and unsigned bytes.
__device__ __forceinline__ int32_t dot(uint32_t signed_bytes, uint32_t unsigned_bytes) {
  int32_t sum;
  asm("dp4a.s32.u32 %0, %1, %2, 0;" : "=r"(sum) : "r"(signed_bytes), "r"(unsigned_bytes));
  return sum;
}

}  // namespace tandem::cuda
