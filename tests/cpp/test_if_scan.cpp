// The vectorised scan against one neuron at a time: every dtype, source, gate and residual; tails of N and T.
#include "check.h"
#include "scan_layer.h"

using namespace tandem;
using namespace tandem::test;

namespace {

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
