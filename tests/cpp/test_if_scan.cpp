// The vectorised scan against one neuron at a time: every dtype, source, gate and residual, tails of N and T.
#include <random>

#include "check.h"
#include "kernels/if_scan.h"
#include "numbers.h"

using namespace tandem;
using namespace tandem::test;

namespace {

enum class Residual { kNone, kPlanes, kCurrents };

struct Case {
  DType dtype = DType::kFloat32;
  Source source = Source::kTrain;
  Gate gate = Gate::kRelu;
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
struct Layer {
  std::vector<char> currents;
  std::vector<C> scale, shift, residual_scale, residual_currents, v_init;
  std::vector<uint8_t> residual_planes;
  NeuronArgs<C> args{};

  Layer(const Case& c, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal(0.2, 1.0);
    const auto draw = [&](int64_t n) {
      std::vector<C> out(n);
      for (C& value : out) value = static_cast<C>(normal(random));
      return out;
    };
    const int64_t P = (c.T + 7) / 8;
    std::vector<double> values((c.source == Source::kTrain ? c.T : 1) * c.neurons);
    for (double& value : values) value = normal(random);
    currents = encode(values, c.dtype);
    if (c.scaled) {
      scale = draw(c.channels);
      shift = draw(c.channels);
      residual_scale = draw(c.channels);
    }
    if (c.residual == Residual::kCurrents) residual_currents = draw(c.T * c.neurons);
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
    args.scale = given(scale);
    args.shift = given(shift);
    args.residual_scale = given(residual_scale);
    args.residual_currents = given(residual_currents);
    args.residual_planes = given(residual_planes);
    args.v_init = given(v_init);
    args.v_init_size = c.v_init_size;
    args.counts_dtype = c.counts_dtype;
  }

  template <class E>
  static const E* given(const std::vector<E>& values) {
    return values.empty() ? nullptr : values.data();
  }
};

// Outputs of exactly the right size, full of ones: what is not written shows.
template <class C>
struct Outputs {
  std::vector<uint8_t> planes, mask;
  std::vector<char> counts;
  std::vector<C> v;

  explicit Outputs(NeuronArgs<C>& args)
      : planes((args.T + 7) / 8 * args.neurons, 255),
        mask((args.neurons + 7) / 8, 255),
        counts(args.neurons * size_of(args.counts_dtype), '\xff'),
        v(args.neurons, C(-77)) {
    args.planes = planes.data();
    args.mask = mask.data();
    args.counts = counts.data();
    args.v = v.data();
  }
};

// Neuron n, step by step.
template <class C>
void check_neuron(const Case& c, const Layer<C>& layer, const Outputs<C>& out, int64_t n) {
  const NeuronArgs<C>& a = layer.args;
  const int64_t channel = n % a.channels;
  const C k = a.shift ? a.shift[channel] / static_cast<C>(a.steps) : C(0);
  C v = a.v_init ? a.v_init[n % a.v_init_size] : C(0);
  C z = 0;
  int count = 0;
  std::vector<uint8_t> train((a.T + 7) / 8);
  for (int t = 0; t < a.T; ++t) {
    const int64_t row = c.source == Source::kTrain ? t : 0;
    const bool present = c.source != Source::kImpulse || t == 0;
    const C y = present ? static_cast<C>(read(layer.currents.data(), c.dtype, row * a.neurons + n)) : C(0);
    C current = input_current(y, a.scale ? a.scale[channel] : C(1), k);
    const C residual_scale = a.residual_scale ? a.residual_scale[channel] : C(1);
    if (a.residual_planes) {
      const int bit = (a.residual_planes[t / 8 * a.neurons + n] >> (t % 8)) & 1;
      current = rounded_add(current, rounded_mul(residual_scale, static_cast<C>(bit)));
    }
    if (a.residual_currents) {
      current = rounded_add(current, rounded_mul(residual_scale, a.residual_currents[t * a.neurons + n]));
    }
    z = rounded_add(z, current);
    if (step(v, current, a.threshold, a.leak)) {
      train[t / 8] |= static_cast<uint8_t>(1 << (t % 8));
      ++count;
    }
  }
  const bool open = gate_open(z, a.gate, a.threshold * static_cast<C>(a.T));
  if (a.gate == Gate::kResu && !open) {
    std::fill(train.begin(), train.end(), uint8_t{0});
    count = 0;
  }
  bool equal = same(v, out.v[n]) && read(out.counts.data(), a.counts_dtype, n) == count &&
               ((out.mask[n / 8] >> (n % 8)) & 1) == open;
  for (size_t p = 0; p < train.size(); ++p) equal = equal && train[p] == out.planes[p * a.neurons + n];
  CHECK(equal, "dtype %d source %d gate %d residual %d T %d neurons %lld channels %lld neuron %lld",
        static_cast<int>(c.dtype), static_cast<int>(c.source), static_cast<int>(c.gate), static_cast<int>(c.residual),
        c.T, static_cast<long long>(c.neurons), static_cast<long long>(c.channels), static_cast<long long>(n));
}

template <class C>
void check_scan(const Case& c, unsigned seed) {
  Layer<C> layer(c, seed);
  Outputs<C> out(layer.args);
  cpu::if_scan(layer.currents.data(), c.dtype, c.source, layer.args, serial_for);
  for (int64_t n = 0; n < c.neurons; ++n) check_neuron(c, layer, out, n);
  if (c.neurons % 8 != 0) {
    CHECK(out.mask.back() >> (c.neurons % 8) == 0, "unused bits of the mask, neurons %lld",
          static_cast<long long>(c.neurons));
  }
}

void check_scan(const Case& c, unsigned seed) {
  c.dtype == DType::kFloat64 ? check_scan<double>(c, seed) : check_scan<float>(c, seed);
}

}  // namespace

TEST(every_shape) {
  unsigned seed = 0;
  for (DType dtype : kDTypes) {
    for (Source source : {Source::kTrain, Source::kConstant, Source::kImpulse}) {
      for (int32_t T : {1, 7, 8, 9, 33, 255}) {
        for (int64_t neurons : {0, 1, 3, 63, 64, 65, 1000}) {
          Case c;
          c.dtype = c.counts_dtype = dtype;
          c.source = source;
          c.T = c.steps = T;
          c.neurons = neurons;
          check_scan(c, ++seed);
        }
      }
    }
  }
}

TEST(every_gate_residual_and_scale) {
  unsigned seed = 0;
  for (DType dtype : kDTypes) {
    for (Gate gate : {Gate::kRelu, Gate::kClip, Gate::kResu}) {
      for (Residual residual : {Residual::kNone, Residual::kPlanes, Residual::kCurrents}) {
        for (bool scaled : {false, true}) {
          for (int64_t channels : {1, 3, 16, 65}) {
            Case c;
            c.dtype = dtype;
            c.gate = gate;
            c.residual = residual;
            c.scaled = scaled;
            c.channels = channels;
            c.neurons = 7 * channels;
            c.T = 11;
            c.steps = 5;
            check_scan(c, ++seed);
          }
        }
      }
    }
  }
}

TEST(initial_potential_and_leak) {
  unsigned seed = 0;
  for (DType dtype : kDTypes) {
    for (int64_t v_init_size : {1, 39, 195}) {
      for (double leak : {1.0, 0.9, 0.5}) {
        Case c;
        c.dtype = dtype;
        c.T = 17;
        c.neurons = 195;
        c.channels = 39;
        c.v_init_size = v_init_size;
        c.leak = leak;
        check_scan(c, ++seed);
      }
    }
  }
}

TEST(every_dtype_of_the_counts) {
  for (DType counts : kDTypes) {
    Case c;
    c.counts_dtype = counts;
    c.T = 255;
    check_scan(c, 1);
  }
}

TEST(nan_never_fires) {
  Case c;
  Layer<float> layer(c, 1);
  for (int64_t i = 0; i < c.T * c.neurons; i += 3) {
    const float nan = std::nanf("");
    std::memcpy(layer.currents.data() + i * sizeof(float), &nan, sizeof(nan));
  }
  Outputs<float> out(layer.args);
  cpu::if_scan(layer.currents.data(), c.dtype, c.source, layer.args, serial_for);
  for (int64_t n = 0; n < c.neurons; ++n) check_neuron(c, layer, out, n);
}

TEST(threads_do_not_change_the_result) {
  Case c;
  c.neurons = 100003;
  c.channels = 1;
  Layer<float> layer(c, 1);
  Outputs<float> serial(layer.args);
  cpu::if_scan(layer.currents.data(), c.dtype, c.source, layer.args, serial_for);
  Outputs<float> threaded(layer.args);
  cpu::if_scan(layer.currents.data(), c.dtype, c.source, layer.args, threads_for);
  CHECK(serial.planes == threaded.planes, "planes");
  CHECK(serial.mask == threaded.mask, "mask");
  CHECK(serial.counts == threaded.counts, "counts");
  CHECK(serial.v == threaded.v, "v");
}

TEST(unwanted_outputs_are_not_written) {
  Case c;
  Layer<float> layer(c, 1);
  Outputs<float> all(layer.args);
  cpu::if_scan(layer.currents.data(), c.dtype, c.source, layer.args, serial_for);
  std::vector<uint8_t> planes(all.planes.size());
  layer.args.planes = planes.data();
  layer.args.mask = nullptr;
  layer.args.counts = nullptr;
  layer.args.v = nullptr;
  cpu::if_scan(layer.currents.data(), c.dtype, c.source, layer.args, serial_for);
  CHECK(planes == all.planes, "planes");
}
