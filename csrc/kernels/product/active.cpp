#include "active.h"

namespace tandem::cpu {

bool ActiveInputs::possible(const Geometry& geometry) {
  return geometry.is_linear() && geometry.groups == 1 && TANDEM_MULTIVERSION && capability() == Capability::kV4;
}

ActiveInputs::ActiveInputs(const Layer& layer)
    : inputs(layer.geometry.channels), count(0), masks((inputs + 15) / 16), planes() {
  const int64_t rows = layer.plane_count() * layer.geometry.batch;
  std::vector<uint8_t> any(inputs);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < inputs; ++k) any[k] |= layer.planes[r * inputs + k];
  }
  for (int64_t k = 0; k < inputs; ++k) {
    masks[k / 16] |= static_cast<uint16_t>((any[k] != 0) << (k % 16));
    count += any[k] != 0;
  }
  planes.resize(rows * count + 1);
  uint8_t* out = planes.data();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < inputs; ++k) {
      *out = layer.planes[r * inputs + k];
      out += any[k] != 0;
    }
  }
}

}  // namespace tandem::cpu
