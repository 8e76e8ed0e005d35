// What every way of a layer of spike products must give, whatever the timing: the plain loop's bits.
#pragma once

#include <cmath>

#include "check.h"
#include "norm_layer.h"

namespace tandem::test {

constexpr Way kWays[] = {Way::kFastest, Way::kLists1,     Way::kLists2, Way::kLists4, Way::kMatrixUnit,
                         Way::kPlain,   Way::kTileByTile, Way::kDense,  Way::kLists};

template <class Random>
int64_t pick(Random& random, std::initializer_list<int64_t> values) {
  return values.begin()[random() % values.size()];
}

template <class Random>
Shape any_convolution(Random& random) {
  Shape s;
  s.groups = pick(random, {1, 1, 2, 3});
  s.channels = s.groups * pick(random, {1, 3, 8, 64, 70});
  s.outputs = s.groups * pick(random, {1, 4, 8, 16, 20});
  for (int i = 0; i < 2; ++i) {
    s.kernel[i] = pick(random, {1, 2, 3});
    s.stride[i] = pick(random, {1, 2, 3});
    s.padding[i] = pick(random, {0, 1, 2});
    s.dilation[i] = pick(random, {1, 1, 2});
  }
  s.height = pick(random, {1, 5, 6}) + s.dilation[0] * (s.kernel[0] - 1);
  s.width = pick(random, {1, 5, 7, 33}) + s.dilation[1] * (s.kernel[1] - 1);
  return s;
}

// The neurons and, with window timing, the product by itself; of one thread and of several.
inline void check(ProductLayer& layer, const char* name) {
  layer.finish();
  const std::vector<PlainNeuron<float>> want = layer.expected();
  std::vector<float> u(layer.args.neurons), product(layer.args.neurons);
  const bool window = layer.args.timing == Timing::kWindow;
  for (int64_t n = 0; window && n < layer.args.neurons; ++n) product[n] = layer.window(n);
  for (const Way way : kWays) {
    for (ParallelFor parallel : {serial_for, threads_for}) {
      layer.way = way;
      const Outputs<float> got(layer.args);
      cpu::run(layer.layer(), parallel);
      CHECK(agree(layer.args, want), "%s, T %d, way %d, %s", name, layer.T, int(way),
            parallel == serial_for ? "serial" : "threads");
      if (!window) continue;
      std::fill(u.begin(), u.end(), -77.f);
      cpu::window_product(layer.layer(), u.data(), parallel);
      CHECK(u == product, "%s: the product, way %d", name, int(way));
    }
  }
}

// With weights prepared before, for layers that are finished.
inline void check_prepared(ProductLayer& layer) {
  const std::vector<PlainNeuron<float>> want = layer.expected();
  const PreparedWeights prepared(layer.geometry, layer.weights);
  layer.prepared = prepared.data;
  for (const Way way : kWays) {
    layer.way = way;
    const Outputs<float> got(layer.args);
    cpu::run(layer.layer(), serial_for);
    CHECK(agree(layer.args, want), "prepared, way %d", int(way));
  }
}

// Sums are exact and rounded once, so random weights too have the same bits whatever the order of additions.
inline void check_random_weights(ProductLayer& layer) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal(0, 0.1);
  for (double& w : layer.values) w = static_cast<float>(normal(random));
  layer.finish();
  layer.way = Way::kLists1;
  const Outputs<float> want(layer.args);
  cpu::run(layer.layer(), serial_for);
  for (const Way way : kWays) {
    layer.way = way;
    const Outputs<float> got(layer.args);
    cpu::run(layer.layer(), threads_for);
    CHECK(got == want, "way %d", int(way));
  }
}

// Where a weight of output 3 is not finite, its currents are NaN, and nothing else is; each sample is told.
inline void check_not_finite(ProductLayer& layer, double bad) {
  layer.values[layer.values.size() / layer.shape.outputs * 3] = bad;
  layer.finish();
  std::vector<float> u(layer.args.neurons), flags(layer.shape.batch);
  layer.args.bad = flags.data();
  layer.args.sample = layer.args.neurons / layer.shape.batch;
  for (const Way way : kWays) {
    layer.way = way;
    const Outputs<float> got(layer.args);
    flags.assign(layer.shape.batch, 0.f);
    cpu::run(layer.layer(), threads_for);
    cpu::window_product(layer.layer(), u.data(), serial_for);
    for (int64_t n = 0; n < layer.args.neurons; ++n) {
      const bool here = n % layer.shape.outputs == 3;
      CHECK(std::isnan(layer.args.v[n]) == here, "v[%ld], %g, way %d", long(n), bad, int(way));
      CHECK(std::isnan(u[n]) == here, "u[%ld], %g, way %d", long(n), bad, int(way));
    }
    for (float flag : flags) CHECK(std::isnan(flag), "%g, way %d", bad, int(way));
  }
}

// Product, statistics and neurons of a layer with batch normalisation, by these ways.
inline void check_normalised(ProductLayer& layer, const std::vector<Way>& ways, const char* name) {
  layer.finish();
  const int64_t channels = layer.shape.outputs;
  const std::vector<float> gamma = multiples(channels, 0.5f, 9), beta = multiples(channels, 0.25f, 5);
  std::vector<float> product(layer.args.neurons), mean(channels), var(channels);
  const LayerNorm norm{{nullptr, 1, gamma.data(), beta.data(), 1e-5f}, product.data(), mean.data(), var.data()};
  const PlainNorm want(layer, norm);
  layer.args.scale = want.scale.data();
  layer.args.shift = want.shift.data();
  const std::vector<PlainNeuron<float>> neurons = layer.expected();
  for (const Way way : ways) {
    for (ParallelFor parallel : {serial_for, threads_for}) {
      layer.way = way;
      std::fill(product.begin(), product.end(), -77.f);
      const Outputs<float> out(layer.args);
      cpu::run_normalised(layer.layer(), norm, parallel);
      CHECK(product == want.product && mean == want.mean && var == want.var, "%s, way %d", name, int(way));
      CHECK(agree(layer.args, neurons), "%s, way %d", name, int(way));
    }
  }
}

}  // namespace tandem::test
