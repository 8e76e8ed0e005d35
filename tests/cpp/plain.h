// Reference neurons, one at a time and step by step, with which all kernels are compared.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/neuron/if_neuron.h"
#include "numbers.h"

namespace tandem::test {

// Outputs of exactly the right size, filled with other values, so that a missing write shows.
template <class C>
struct Outputs {
  std::vector<uint8_t> planes, mask;
  std::vector<char> counts;
  std::vector<C> v;

  explicit Outputs(Neuron<C>& args)
      : planes((args.timing == Timing::kWindow ? 1 : (args.T + 7) / 8) * args.neurons, 255),
        mask((args.neurons + 7) / 8, 255),
        counts(args.neurons * size_of(args.counts_dtype), '\xff'),
        v(args.neurons, C(-77)) {
    args.planes = planes.data();
    args.mask = mask.data();
    args.counts = counts.data();
    args.v = v.data();
  }

  friend bool operator==(const Outputs& a, const Outputs& b) {
    return a.planes == b.planes && a.mask == b.mask && a.counts == b.counts && a.v == b.v;
  }
};

template <class C>
struct PlainNeuron {
  std::vector<uint8_t> train;  // planes, or with window timing the count
  int count = 0;
  bool open = false;
  C v = 0;
};

// Simulates neuron n of a layer; y(t) is the product at step t, u that of the window.
template <class C, class Y>
PlainNeuron<C> plain_neuron(const Neuron<C>& a, int64_t n, C u, const Y& y) {
  const int64_t channel = n % a.channels;
  const C k = a.shift ? a.shift[channel] / static_cast<C>(a.steps) : C(0);
  const C residual_scale = a.residual_scale ? a.residual_scale[channel] : C(1);
  PlainNeuron<C> out;
  out.train.resize((a.T + 7) / 8);
  out.v = a.v_init ? a.v_init[n % a.v_init_size] : C(0);
  C r = 0;
  for (int t = 0; t < a.T; ++t) {
    C current = input_current(y(t), a.scale ? a.scale[channel] : C(1), k);
    if (a.residual_planes) {
      const int bit = (a.residual_planes[t / 8 * a.neurons + n] >> (t % 8)) & 1;
      r += static_cast<C>(bit);
      current = rounded_add(current, rounded_mul(residual_scale, static_cast<C>(bit)));
    }
    if (a.residual_currents) {
      r += a.residual_currents[t * a.neurons + n];
      current = rounded_add(current, rounded_mul(residual_scale, a.residual_currents[t * a.neurons + n]));
    }
    if (step(out.v, current, a.threshold, a.leak)) {
      out.train[t / 8] |= static_cast<uint8_t>(1 << (t % 8));
      ++out.count;
    }
  }
  const C share = static_cast<C>(a.T) / static_cast<C>(a.steps);
  C z = rounded_mul(a.scale ? a.scale[channel] : C(1), u);
  z = rounded_add(z, rounded_mul(a.shift ? a.shift[channel] : C(0), share));
  if (a.residual_planes || a.residual_currents) z = rounded_add(z, rounded_mul(residual_scale, r));
  out.open = gate_open(z, a.gate, a.threshold * static_cast<C>(a.T));
  return out;
}

// The same with window timing; u is the product of the window.
template <class C>
PlainNeuron<C> plain_burst(const Neuron<C>& a, int64_t n, C u) {
  const int64_t channel = n % a.channels;
  const C residual_scale = a.residual_scale ? a.residual_scale[channel] : C(1);
  C z = rounded_mul(a.scale ? a.scale[channel] : C(1), u);
  z = rounded_add(z, a.shift ? a.shift[channel] : C(0));
  if (a.residual_planes) z = rounded_add(z, rounded_mul(residual_scale, static_cast<C>(a.residual_planes[n])));
  if (a.residual_currents) z = rounded_add(z, rounded_mul(residual_scale, a.residual_currents[n]));
  PlainNeuron<C> out;
  out.v = rounded_add(a.v_init ? a.v_init[n % a.v_init_size] : C(0), z);
  for (int t = 0; t < a.T; ++t) {  // the neuron's own window: no input, and it stops at the first step without a spike
    C v = out.v;
    if (!step(v, C(0), a.threshold, C(1))) break;
    out.v = v;
    ++out.count;
  }
  out.train = {static_cast<uint8_t>(out.count)};
  out.open = gate_open(z, a.gate, a.threshold * static_cast<C>(a.T));
  return out;
}

// Whether a kernel wrote these outputs for neuron n.
template <class C>
bool agrees(const Neuron<C>& a, int64_t n, const PlainNeuron<C>& want) {
  bool equal = true;
  for (size_t p = 0; p < want.train.size(); ++p) equal = equal && want.train[p] == a.planes[p * a.neurons + n];
  if (a.counts != nullptr) equal = equal && read(a.counts, a.counts_dtype, n) == want.count;
  if (a.mask != nullptr) equal = equal && ((a.mask[n / 8] >> (n % 8)) & 1) == want.open;
  if (a.v != nullptr) equal = equal && same(a.v[n], want.v);
  return equal;
}

// Whether the unused bits of the mask are zero.
template <class C>
bool mask_ends(const Neuron<C>& a) {
  return a.mask == nullptr || a.neurons % 8 == 0 || a.mask[a.neurons / 8] >> (a.neurons % 8) == 0;
}

}  // namespace tandem::test
