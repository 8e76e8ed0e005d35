#include "layer.h"

#include <vector>

#include "../neuron/scan.h"

namespace tandem::cpu {

// Neurons need the statistics of all rows before they fire. Writing the sums of all steps to memory until then would
// take more time than anything else, so the product of the window is taken first, then that of the steps. Neurons of
// window timing need only the product of the window.
void run_normalised(const Layer& given, const LayerNorm& norm, ParallelFor parallel) {
  if (given.neuron.neurons == 0) return;
  Layer layer = given;
  const Geometry& geometry = layer.geometry;
  window_product(layer, norm.product, parallel);
  std::vector<float> scale(geometry.outputs), shift(geometry.outputs);
  BatchNormStatistics<float> statistics{};
  statistics.rows = geometry.rows();
  statistics.channels = geometry.outputs;
  statistics.product = norm.product;
  statistics.factor = 1;
  statistics.norm = norm.norm;
  statistics.mean = norm.mean;
  statistics.var = norm.var;
  statistics.scale = scale.data();
  statistics.shift = shift.data();
  batch_norm_statistics(statistics, parallel);
  layer.neuron.scale = scale.data();
  layer.neuron.shift = shift.data();
  if (!layer.counted()) return run(layer, parallel);
  if_scan(norm.product, DType::kFloat32, Source::kImpulse, layer.neuron, parallel);
}

}  // namespace tandem::cpu
