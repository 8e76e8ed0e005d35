// What every way of a layer of spike products must give, whatever the timing: the plain loop's bits.
#pragma once

#include <cmath>

#include "check.h"
#include "product_layer.h"

namespace tandem::test {

constexpr Way kWays[] = {Way::kFastest, Way::kLists1,     Way::kLists2, Way::kLists4, Way::kMatrixUnit,
                         Way::kPlain,   Way::kTileByTile, Way::kDense,  Way::kLists};

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

}  // namespace tandem::test
