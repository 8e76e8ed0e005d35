// What kernels are compared with: numbers of their element types, and neurons one at a time and step by step.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "kernels/neuron/if_neuron.h"

namespace tandem::test {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

// The upper half of a float: its sign, exponent and first seven bits.
struct BFloat16 {
  uint16_t bits;

  explicit BFloat16(float value) { std::memcpy(&bits, reinterpret_cast<const char*>(&value) + 2, 2); }
  operator float() const {
    const uint16_t halves[] = {0, bits};
    float value;
    std::memcpy(&value, halves, sizeof(value));
    return value;
  }
};

// Calls f with a number of this type.
template <class F>
auto with_type(DType dtype, const F& f) {
  if (dtype == DType::kFloat32) return f(0.0f);
  if (dtype == DType::kFloat16) return f(static_cast<_Float16>(0));
  return dtype == DType::kInt8 ? f(int8_t{0}) : f(BFloat16(0));
}

inline double read(const void* data, DType dtype, int64_t i) {
  return with_type(dtype, [&](auto value) {
    std::memcpy(static_cast<void*>(&value), static_cast<const char*>(data) + i * size_of(dtype), sizeof(value));
    return static_cast<double>(value);
  });
}

// Encodes `values` in another type. bfloat16 is truncated: the result is a bfloat16 number all the same.
inline std::vector<char> encode(const std::vector<double>& values, DType dtype) {
  std::vector<char> out(values.size() * size_of(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    with_type(dtype, [&](auto number) {
      number = static_cast<decltype(number)>(static_cast<float>(values[i]));
      std::memcpy(out.data() + i * sizeof(number), static_cast<const void*>(&number), sizeof(number));
    });
  }
  return out;
}

// Whether a and b have equal bits; all NaNs count as equal.
template <class C>
bool same(C a, C b) {
  return std::memcmp(&a, &b, sizeof(C)) == 0 || (std::isnan(a) && std::isnan(b));
}

// --- neurons --------------------------------------------------------------------------------------------------------

// Neurons that have none of the optional arrays.
inline Neuron neurons_of(int64_t neurons, int64_t channels, int32_t T, float threshold, float leak = 1) {
  Neuron a{};
  a.neurons = neurons;
  a.channels = channels;
  a.T = a.steps = T;
  a.threshold = threshold;
  a.leak = leak;
  return a;
}

// Outputs of exactly the right size, filled with other values, so that a missing write shows.
struct Outputs {
  std::vector<uint8_t> stored, mask;
  std::vector<char> counts;
  std::vector<float> v;

  explicit Outputs(Neuron& args)
      : stored((args.timing == Timing::kWindow ? 1 : (args.T + 7) / 8) * args.neurons, 255),
        mask((args.neurons + 7) / 8, 255),
        counts(args.neurons * size_of(args.counts_dtype), '\xff'),
        v(args.neurons, -77.f) {
    args.stored = stored.data();
    args.mask = mask.data();
    args.counts = counts.data();
    args.v = v.data();
  }

  friend bool operator==(const Outputs& a, const Outputs& b) {
    return a.stored == b.stored && a.mask == b.mask && a.counts == b.counts && a.v == b.v;
  }
};

struct PlainNeuron {
  std::vector<uint8_t> train;  // planes, or with window timing the count
  int count = 0;
  bool open = false;
  float v = 0;
};

// z, from the product u of the window, the share of the shift and the sum r of the residual.
inline float pre_activation(const Neuron& a, int64_t channel, float u, float share, float r) {
  const float shift = rounded_mul(a.shift ? a.shift[channel] : 0.f, share);
  const float z = rounded_add(rounded_mul(a.scale ? a.scale[channel] : 1.f, u), shift);
  if (!a.residual_stored && !a.residual_currents) return z;
  return rounded_add(z, rounded_mul(a.residual_scale ? a.residual_scale[channel] : 1.f, r));
}

// Simulates neuron n of a layer; y(t) is the product at step t, u that of the window.
template <class Y>
PlainNeuron plain_neuron(const Neuron& a, int64_t n, float u, const Y& y) {
  const int64_t channel = n % a.channels;
  const float k = a.shift ? a.shift[channel] / static_cast<float>(a.steps) : 0.f;
  const float residual_scale = a.residual_scale ? a.residual_scale[channel] : 1.f;
  PlainNeuron out;
  out.train.resize((a.T + 7) / 8);
  out.v = a.v_init ? a.v_init[n % a.v_init_size] : 0.f;
  float r = 0;
  for (int t = 0; t < a.T; ++t) {
    float current = input_current(y(t), a.scale ? a.scale[channel] : 1.f, k);
    if (a.residual_stored || a.residual_currents) {
      const float given = a.residual_stored
                              ? static_cast<float>(a.residual_stored[t / 8 * a.neurons + n] >> (t % 8) & 1)
                              : a.residual_currents[t * a.neurons + n];
      r += given;
      current = rounded_add(current, rounded_mul(residual_scale, given));
    }
    if (step(out.v, current, a.threshold, a.leak)) {
      out.train[t / 8] |= static_cast<uint8_t>(1 << (t % 8));
      ++out.count;
    }
  }
  const float z = pre_activation(a, channel, u, static_cast<float>(a.T) / static_cast<float>(a.steps), r);
  out.open = gate_open(z, a.gate, a.threshold * static_cast<float>(a.T));
  return out;
}

// The same with window timing; u is the product of the window.
inline PlainNeuron plain_burst(const Neuron& a, int64_t n, float u) {
  const float r = a.residual_stored     ? static_cast<float>(a.residual_stored[n])
                  : a.residual_currents ? a.residual_currents[n]
                                        : 0.f;
  const float z = pre_activation(a, n % a.channels, u, 1.f, r);
  PlainNeuron out;
  out.v = rounded_add(a.v_init ? a.v_init[n % a.v_init_size] : 0.f, z);
  for (int t = 0; t < a.steps;
       ++t) {  // the neuron's own window: no input, and it stops at the first step without a spike
    float v = out.v;
    if (!step(v, 0.f, a.threshold, 1.f)) break;
    out.v = v;
    ++out.count;
  }
  out.train = {static_cast<uint8_t>(out.count)};
  out.open = gate_open(z, a.gate, a.threshold * static_cast<float>(a.steps));
  return out;
}

// Whether a kernel wrote these outputs for neuron n.
inline bool agrees(const Neuron& a, int64_t n, const PlainNeuron& want) {
  bool equal = true;
  for (size_t p = 0; p < want.train.size(); ++p) equal = equal && want.train[p] == a.stored[p * a.neurons + n];
  if (a.counts != nullptr) equal = equal && read(a.counts, a.counts_dtype, n) == want.count;
  if (a.mask != nullptr) equal = equal && ((a.mask[n / 8] >> (n % 8)) & 1) == want.open;
  if (a.v != nullptr) equal = equal && same(a.v[n], want.v);
  return equal;
}

// Whether the unused bits of the mask are zero.
inline bool mask_ends(const Neuron& a) {
  return a.mask == nullptr || a.neurons % 8 == 0 || a.mask[a.neurons / 8] >> (a.neurons % 8) == 0;
}

}  // namespace tandem::test
