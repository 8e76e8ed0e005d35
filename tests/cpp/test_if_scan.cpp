// The vectorised scan against one neuron at a time: every dtype, source, gate and residual; tails of N and T.
#include <random>

#include "check.h"
#include "kernels/neuron/scan.h"
#include "plain.h"

using namespace tandem;
using namespace tandem::test;

namespace {

enum class Residual { kNone, kPlanes, kCurrents };

struct ScanLayer {
  DType dtype = DType::kFloat32;
  Source source = Source::kTrain;
  Residual residual = Residual::kNone;
  bool scaled = false;
  Neuron args;
  std::vector<char> currents;
  std::vector<float> scale, shift, residual_scale, residual_currents, v_init;
  std::vector<uint8_t> residual_stored;

  explicit ScanLayer(int64_t neurons, int32_t T = 8, int64_t channels = 1)
      : args(neurons_of(neurons, channels, T, 1.1f)) {}

  // Draws currents and what the options ask for. With `nan` every third current is none.
  void draw(unsigned seed, bool nan = false) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal(0.2, 1.0);
    const auto drawn = [&](std::vector<float>& out, int64_t n) {
      for (int64_t i = 0; i < n; ++i) out.push_back(static_cast<float>(normal(random)));
      return out.empty() ? nullptr : out.data();
    };
    const bool window = args.timing == Timing::kWindow;
    const int64_t P = window ? 1 : (args.T + 7) / 8;
    std::vector<double> values((source == Source::kTrain ? args.T : 1) * args.neurons);
    for (double& value : values) value = normal(random);
    for (size_t i = 0; nan && i < values.size(); i += 3) values[i] = NAN;
    currents = encode(values, dtype);
    args.scale = drawn(scale, scaled ? args.channels : 0);
    args.shift = drawn(shift, scaled ? args.channels : 0);
    args.residual_scale = drawn(residual_scale, scaled ? args.channels : 0);
    args.v_init = drawn(v_init, args.v_init_size);
    if (residual == Residual::kCurrents) {
      args.residual_currents = drawn(residual_currents, (window ? 1 : args.T) * args.neurons);
    }
    if (residual == Residual::kPlanes) {
      for (int64_t i = 0; i < P * args.neurons; ++i) residual_stored.push_back(random() & 255);
      args.residual_stored = residual_stored.data();
    }
  }

  void run(ParallelFor parallel) const { cpu::if_scan(currents.data(), dtype, source, args, parallel); }

  // y[t] of neuron n.
  float current(int t, int64_t n) const {
    const int64_t row = source == Source::kTrain ? t : 0;
    const bool present = source != Source::kImpulse || t == 0;
    return present ? static_cast<float>(read(currents.data(), dtype, row * args.neurons + n)) : 0.f;
  }

  // The outputs that a kernel has to write for neuron n.
  PlainNeuron expected(int64_t n) const {
    float u = current(0, n);
    for (int t = 1; source == Source::kTrain && t < args.T; ++t) u += current(t, n);
    if (source == Source::kConstant) u *= static_cast<float>(args.T);
    if (args.timing == Timing::kStep) return plain_neuron(args, n, u, [&](int t) { return current(t, n); });
    return plain_burst(args, n, u);
  }

  // Compares the outputs of a kernel.
  void check() const {
    for (int64_t n = 0; n < args.neurons; ++n) {
      CHECK(agrees(args, n, expected(n)),
            "dtype %d source %d gate %d timing %d residual %d T %d neurons %ld channels %ld neuron %ld", int(dtype),
            int(source), int(args.gate), int(args.timing), int(residual), args.T, long(args.neurons),
            long(args.channels), long(n));
    }
    CHECK(mask_ends(args), "unused bits of the mask, neurons %ld", long(args.neurons));
  }
};

constexpr int64_t kMostSteps = 1 << 15;  // summed over all neurons

void any_scan(Input& in) {
  const int64_t channels = in.range(1, 130), features = channels * in.range(1, 9);
  const int64_t neurons = features * in.range(0, 5);
  const int64_t most = std::clamp<int64_t>(kMostSteps / (neurons + 1), 1, 600);
  ScanLayer layer(neurons, static_cast<int32_t>(in.range(1, most)), channels);
  Neuron& a = layer.args;
  layer.dtype = in.pick({DType::kFloat32, DType::kBFloat16, DType::kFloat16});
  layer.source = in.pick({Source::kTrain, Source::kConstant, Source::kImpulse});
  layer.residual = in.pick({Residual::kNone, Residual::kPlanes, Residual::kCurrents});
  layer.scaled = in.flag();
  a.counts_dtype = in.pick(kDTypes);
  if (a.T > 256) a.counts_dtype = DType::kFloat32;  // bfloat16 does not represent all counts
  a.gate = in.pick({Gate::kRelu, Gate::kClip});
  a.leak = in.pick({1.f, 0.9f, 1e-3f});
  a.steps = static_cast<int32_t>(in.range(1, 255));
  a.v_init_size = in.pick({int64_t{0}, int64_t{1}, features, neurons});
  if (a.T <= most_steps(Timing::kWindow) && in.flag()) {
    a.timing = Timing::kWindow;
    a.leak = 1;
  }
  layer.draw(static_cast<unsigned>(in.range(0, 255)), in.range(0, 3) == 0);
  a.threshold = in.pick({1.1f, 1e-3f, 40.f});
  a.scale = in.maybe(a.scale);
  a.shift = in.maybe(a.shift);
  a.residual_scale = in.maybe(a.residual_scale);
  const Outputs out(a);
  a.counts = in.maybe(a.counts);
  a.mask = in.maybe(a.mask);
  a.v = in.maybe(a.v);
  parts = in.range(1, 5);
  layer.run(cut_for);
  layer.check();
}

}  // namespace

TEST(the_longest_window) {
  ScanLayer layer(3, 65535);
  layer.args.gate = Gate::kClip;
  layer.draw(1);
  const Outputs out(layer.args);
  layer.run(serial_for);
  layer.check();
}

FUZZ(in) { any_scan(in); }
