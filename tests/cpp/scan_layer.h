// A random layer of neurons and currents, for the scan.
#pragma once

#include <random>

#include "kernels/neuron/scan.h"
#include "plain.h"

namespace tandem::test {

enum class Residual { kNone, kPlanes, kCurrents };

struct Case {
  DType dtype = DType::kFloat32;
  Source source = Source::kTrain;
  Gate gate = Gate::kRelu;
  Timing timing = Timing::kStep;
  Residual residual = Residual::kNone;
  int32_t T = 8;
  int32_t steps = 8;
  int64_t neurons = 1000;
  int64_t channels = 1;
  int64_t v_init_size = 0;
  bool scaled = false;
  double leak = 1.0;
  DType counts_dtype = DType::kFloat32;
};

template <class C>
struct ScanLayer {
  Case c;
  std::vector<char> currents;
  std::vector<C> scale, shift, residual_scale, residual_currents, v_init;
  std::vector<uint8_t> residual_planes;
  Neuron<C> args{};

  // With `nan` every third current is none.
  ScanLayer(const Case& of, unsigned seed, bool nan = false) : c(of) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal(0.2, 1.0);
    const auto draw = [&](int64_t n) {
      std::vector<C> out(n);
      for (C& value : out) value = static_cast<C>(normal(random));
      return out;
    };
    const bool window = c.timing == Timing::kWindow;
    const int64_t P = window ? 1 : (c.T + 7) / 8;
    std::vector<double> values((c.source == Source::kTrain ? c.T : 1) * c.neurons);
    for (double& value : values) value = normal(random);
    for (size_t i = 0; nan && i < values.size(); i += 3) values[i] = NAN;
    currents = encode(values, c.dtype);
    if (c.scaled) {
      scale = draw(c.channels);
      shift = draw(c.channels);
      residual_scale = draw(c.channels);
    }
    if (c.residual == Residual::kCurrents) residual_currents = draw((window ? 1 : c.T) * c.neurons);
    if (c.residual == Residual::kPlanes) {
      for (int64_t i = 0; i < P * c.neurons; ++i) residual_planes.push_back(random() & 255);
    }
    v_init = draw(c.v_init_size);
    args.neurons = c.neurons;
    args.channels = c.channels;
    args.T = c.T;
    args.steps = c.steps;
    args.threshold = static_cast<C>(1.1);
    args.leak = static_cast<C>(c.leak);
    args.gate = c.gate;
    args.timing = c.timing;
    args.scale = given(scale);
    args.shift = given(shift);
    args.residual_scale = given(residual_scale);
    args.residual_currents = given(residual_currents);
    args.residual_planes = given(residual_planes);
    args.v_init = given(v_init);
    args.v_init_size = c.v_init_size;
    args.counts_dtype = c.counts_dtype;
  }

  // y[t] of neuron n.
  C current(int t, int64_t n) const {
    const int64_t row = c.source == Source::kTrain ? t : 0;
    const bool present = c.source != Source::kImpulse || t == 0;
    return present ? static_cast<C>(read(currents.data(), c.dtype, row * args.neurons + n)) : C(0);
  }

  // The outputs that a kernel has to write for neuron n.
  PlainNeuron<C> expected(int64_t n) const {
    C u = current(0, n);
    for (int t = 1; c.source == Source::kTrain && t < c.T; ++t) u += current(t, n);
    if (c.source == Source::kConstant) u *= static_cast<C>(c.T);
    if (c.timing == Timing::kStep) return plain_neuron(args, n, u, [&](int t) { return current(t, n); });
    return plain_burst(args, n, u);
  }

  template <class E>
  static const E* given(const std::vector<E>& values) {
    return values.empty() ? nullptr : values.data();
  }
};

}  // namespace tandem::test
