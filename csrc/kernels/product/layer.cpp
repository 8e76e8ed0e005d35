// The layer: which way, and whether its weights have to be prepared for it.
#include "../layer.h"

#include "depthwise.h"
#include "in_place.h"
#include "multiply.h"

namespace tandem::cpu {

namespace {

// A list cannot name the inputs of more taps; and for a few rows it is the faster way.
bool goes_in_place(const Layer& layer) {
  if (layer.geometry.taps() > kMaxInputs || layer.way == Way::kInPlace) return true;
  return layer.way == Way::kFastest && layer.prepared == nullptr &&
         prefers_in_place(layer.geometry, layer.plane_count());
}

}  // namespace

Refusal run(const Layer& layer, ParallelFor parallel) {
  if (layer.neuron.neurons == 0) return Refusal::kNone;
  if (is_depthwise(layer.geometry)) return run_depthwise(layer, parallel);
  if (goes_in_place(layer)) return run_in_place(layer, parallel);
  const Way way = way_of(layer);
  const bool unit = way == Way::kMatrixUnit;
  const Prepared prepared(layer, !unit || !has_matrix_unit(), unit, parallel);
  if (!prepared.usable()) return Refusal::kNotFinite;
  run_prepared({layer, prepared, way}, parallel);
  return Refusal::kNone;
}

Refusal window_product(const Layer& layer, float* u, ParallelFor parallel) {
  if (layer.geometry.neurons() == 0) return Refusal::kNone;
  if (layer.geometry.taps() > kMaxInputs || layer.way == Way::kInPlace) {
    return window_product_in_place(layer, u, parallel);
  }
  const bool unit = has_matrix_unit();
  const Prepared prepared(layer, !unit, unit, parallel);
  if (!prepared.usable()) return Refusal::kNotFinite;
  multiply_windows({layer, prepared, prepared.has_digits() ? Way::kMatrixUnit : way_of(layer)}, u, parallel);
  return Refusal::kNone;
}

}  // namespace tandem::cpu
