// Spike products of any shape, compared with a plain loop.
#include "fuzz_layer.h"

using namespace tandem;
using namespace tandem::test;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input in(data, size);
  std::optional<ProductLayer> layer = any_layer(in);
  if (!layer) return 0;
  Neuron<float>& a = layer->args;
  std::vector<float> residual(in.flag() ? a.T * a.neurons : 0);
  for (size_t i = 0; i < residual.size(); ++i) residual[i] = 0.125f * static_cast<float>(i % 17) - 1;
  if (!residual.empty()) {
    a.residual_planes = nullptr;
    a.residual_currents = residual.data();
  }
  a.scale = in.maybe(a.scale);
  a.shift = in.maybe(a.shift);
  const Outputs<float> out(a);
  a.counts = in.maybe(a.counts);
  a.mask = in.maybe(a.mask);
  a.v = in.maybe(a.v);

  const PreparedWeights prepared(layer->geometry, layer->weights);
  if (in.flag()) layer->prepared = prepared.data;
  cpu::run(layer->layer(), cut_for);
  REQUIRE(agree(a, layer->expected()), "%s", text(*layer).c_str());
  return 0;
}
