// The layer: which way, and whether its weights have to be prepared for it.
#include "../layer.h"

#include "depthwise.h"
#include "multiply.h"

namespace tandem::cpu {

Refusal run(const Layer& layer, ParallelFor parallel) {
  if (layer.neuron.neurons == 0) return Refusal::kNone;
  if (is_depthwise(layer.geometry)) return run_depthwise(layer, parallel);
  const bool few = layer.way == Way::kFastest && prefers_tile_by_tile(layer.geometry, layer.plane_count());
  if (layer.prepared == nullptr && (few || layer.way == Way::kTileByTile)) return run_tile_by_tile(layer, parallel);
  const Way way = way_of(layer);
  const Prepared prepared(layer, !takes_digits(way), takes_digits(way), parallel);
  if (!prepared.usable()) return Refusal::kNotFinite;
  run_prepared({layer, prepared, way}, parallel);
  return Refusal::kNone;
}

Refusal window_product(const Layer& layer, float* u, ParallelFor parallel) {
  if (layer.geometry.neurons() == 0) return Refusal::kNone;
  if (is_depthwise(layer.geometry) && layer.counted()) return multiply_depthwise_counts(layer, u, parallel);
  const Way way = window_way(layer);
  const Prepared prepared(layer, !takes_digits(way), takes_digits(way), parallel);
  if (!prepared.usable()) return Refusal::kNotFinite;
  multiply_windows({layer, prepared, way}, u, parallel);
  return Refusal::kNone;
}

}  // namespace tandem::cpu
