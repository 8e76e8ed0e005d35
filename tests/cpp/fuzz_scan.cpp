// The scan on any layer of neurons, compared with one neuron at a time.
#include "fuzz.h"
#include "scan_layer.h"

using namespace tandem;
using namespace tandem::test;

namespace {

constexpr int64_t kMostSteps = 1 << 15;  // of all neurons together

template <class C>
void scan(const Case& c, Input& in) {
  ScanLayer<C> layer(c, static_cast<unsigned>(in.range(0, 255)));
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
  for (int64_t n = 0; n < a.neurons; ++n) {
    const PlainNeuron<C> want = plain_neuron(a, n, [&](int t) { return layer.current(t, n); });
    REQUIRE(agrees(a, n, want), "neuron %ld of %ld", long(n), long(a.neurons));
  }
  REQUIRE(mask_ends(a), "%ld neurons", long(a.neurons));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input in(data, size);
  Case c;
  c.dtype = in.pick({DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64});
  c.counts_dtype = in.pick({DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64});
  c.source = in.pick({Source::kTrain, Source::kConstant, Source::kImpulse});
  c.gate = in.pick({Gate::kRelu, Gate::kClip, Gate::kResu});
  c.residual = in.pick({Residual::kNone, Residual::kPlanes, Residual::kCurrents});
  c.leak = in.pick({1.0, 0.9, 1e-3});
  c.scaled = in.flag();
  c.steps = static_cast<int32_t>(in.range(1, 255));
  c.channels = in.range(1, 130);
  const int64_t features = c.channels * in.range(1, 9);
  c.neurons = features * in.range(0, 5);
  c.T = static_cast<int32_t>(in.range(1, std::clamp<int64_t>(kMostSteps / (c.neurons + 1), 1, 600)));
  if (c.T > 256) c.counts_dtype = DType::kFloat32;  // which a bfloat16 need not hold
  c.v_init_size = in.pick({int64_t{0}, int64_t{1}, features, c.neurons});
  c.dtype == DType::kFloat64 ? scan<double>(c, in) : scan<float>(c, in);
  return 0;
}
