// The vectorised scan against one neuron at a time: every dtype, source, gate and residual; tails of N and T.
#include <random>

#include "check.h"
#include "kernels/neuron/scan.h"
#include "plain.h"

using namespace tandem;
using namespace tandem::test;

namespace {

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

// Compares the outputs of a kernel.
template <class C>
void check(const ScanLayer<C>& layer) {
  const Case& c = layer.c;
  for (int64_t n = 0; n < c.neurons; ++n) {
    CHECK(agrees(layer.args, n, layer.expected(n)),
          "dtype %d source %d gate %d timing %d residual %d T %d neurons %ld channels %ld neuron %ld", int(c.dtype),
          int(c.source), int(c.gate), int(c.timing), int(c.residual), c.T, long(c.neurons), long(c.channels), long(n));
  }
  CHECK(mask_ends(layer.args), "unused bits of the mask, neurons %ld", long(c.neurons));
}

constexpr int64_t kMostSteps = 1 << 15;  // summed over all neurons

template <class C>
void scan(const Case& c, Input& in) {
  ScanLayer<C> layer(c, static_cast<unsigned>(in.range(0, 255)), in.range(0, 3) == 0);
  Neuron<C>& a = layer.args;
  a.threshold = in.pick({C(1.1), C(1e-3), C(40)});
  a.scale = in.maybe(a.scale);
  a.shift = in.maybe(a.shift);
  a.residual_scale = in.maybe(a.residual_scale);
  const Outputs<C> out(a);
  a.counts = in.maybe(a.counts);
  a.mask = in.maybe(a.mask);
  a.v = in.maybe(a.v);
  parts = in.range(1, 5);
  cpu::if_scan(layer.currents.data(), c.dtype, c.source, a, cut_for);
  check(layer);
}

}  // namespace

// A window in pieces gives the same as at once.
TEST(pieces_of_a_window) {
  for (Gate gate : {Gate::kRelu, Gate::kClip}) {
    for (Residual residual : {Residual::kNone, Residual::kPlanes, Residual::kCurrents}) {
      Case c;
      c.gate = gate;
      c.residual = residual;
      c.scaled = true;
      c.T = c.steps = 300;
      c.neurons = 75;
      c.channels = 3;
      c.leak = 0.9;
      ScanLayer<float> layer(c, 1);
      Outputs<float> out(layer.args);
      std::vector<float> v(c.neurons, NAN), r(c.neurons, NAN);
      std::vector<double> u(c.neurons, NAN);
      std::vector<uint16_t> counts(c.neurons, 12345);
      for (int32_t first : {0, 8, 264}) {
        const int32_t steps = first == 0 ? 8 : first == 8 ? 256 : 36;
        cpu::if_scan(layer.currents.data() + first * c.neurons * sizeof(float), c.dtype, c.source,
                     piece(layer.args, first, steps, {v.data(), r.data(), u.data(), counts.data()}), serial_for);
      }
      check(layer);
    }
  }
}

TEST(the_longest_window) {
  Case c;
  c.T = c.steps = 65535;
  c.neurons = 3;
  c.gate = Gate::kClip;
  ScanLayer<float> layer(c, 1);
  Outputs<float> out(layer.args);
  cpu::if_scan(layer.currents.data(), c.dtype, c.source, layer.args, serial_for);
  check(layer);
}

TEST(threads_do_not_change_the_result) {
  Case c;
  c.neurons = 100003;
  c.channels = 1;
  ScanLayer<float> layer(c, 1);
  Outputs<float> serial(layer.args);
  cpu::if_scan(layer.currents.data(), c.dtype, c.source, layer.args, serial_for);
  Outputs<float> threaded(layer.args);
  cpu::if_scan(layer.currents.data(), c.dtype, c.source, layer.args, threads_for);
  CHECK(serial == threaded, "planes, mask, counts or potentials");
}

FUZZ(in) {
  Case c;
  c.dtype = in.pick(kDTypes);
  c.counts_dtype = in.pick(kDTypes);
  c.source = in.pick({Source::kTrain, Source::kConstant, Source::kImpulse});
  c.gate = in.pick({Gate::kRelu, Gate::kClip});
  c.residual = in.pick({Residual::kNone, Residual::kPlanes, Residual::kCurrents});
  c.leak = in.pick({1.0, 0.9, 1e-3});
  c.scaled = in.flag();
  c.steps = static_cast<int32_t>(in.range(1, 255));
  c.channels = in.range(1, 130);
  const int64_t features = c.channels * in.range(1, 9);
  c.neurons = features * in.range(0, 5);
  c.T = static_cast<int32_t>(in.range(1, std::clamp<int64_t>(kMostSteps / (c.neurons + 1), 1, 600)));
  if (c.T > 256) c.counts_dtype = DType::kFloat32;  // bfloat16 does not represent all counts
  c.v_init_size = in.pick({int64_t{0}, int64_t{1}, features, c.neurons});
  if (c.T <= most_steps(Timing::kWindow) && in.flag()) {
    c.timing = Timing::kWindow;
    c.leak = 1;
    c.steps = c.T;
  }
  c.dtype == DType::kFloat64 ? scan<double>(c, in) : scan<float>(c, in);
}
