// The layer: which way, and whether its weights have to be prepared for it.
#include "../layer.h"

#include "depthwise.h"
#include "multiply.h"

namespace tandem::cpu {

void run(const Layer& layer, ParallelFor parallel) {
  if (layer.neuron.neurons == 0) return;
  if (is_depthwise(layer.geometry)) return run_depthwise(layer, parallel);
  const bool few = layer.way == Way::kFastest && prefers_tile_by_tile(layer.geometry, layer.plane_count());
  if (layer.prepared == nullptr && (few || layer.way == Way::kTileByTile)) return run_tile_by_tile(layer, parallel);
  const Way way = way_of(layer);
  const bool unit = way == Way::kMatrixUnit;
  const Prepared prepared(layer, !unit || !has_matrix_unit(), unit, parallel);
  run_prepared({layer, prepared, way}, parallel);
}

void window_product(const Layer& layer, float* u, ParallelFor parallel) {
  if (layer.geometry.neurons() == 0) return;
  const bool unit = has_matrix_unit() && layer.geometry.taps() <= kMaxInputs;
  const Prepared prepared(layer, !unit, unit, parallel);
  multiply_windows({layer, prepared, prepared.has_digits() ? Way::kMatrixUnit : way_of(layer)}, u, parallel);
}

}  // namespace tandem::cpu
