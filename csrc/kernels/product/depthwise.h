// Depthwise products: every output reads one input channel, so there is nothing to list; lanes are channels.
#pragma once

#include "../layer.h"

namespace tandem::cpu {

inline bool is_depthwise(const Geometry& geometry) { return geometry.groups > 1 && geometry.group_channels() == 1; }

// The geometry for preparing the weights. Those of a depthwise layer, [outputs, 1, kernel], are prepared like those of
// a layer with one input channel.
inline Geometry packed_geometry(Geometry geometry) {
  if (is_depthwise(geometry)) geometry.channels = geometry.groups = 1;
  return geometry;
}

// run() for depthwise layers.
void run_depthwise(const Layer& layer, ParallelFor parallel);

// window_product() for depthwise layers.
void multiply_depthwise(const Layer& layer, float* u, ParallelFor parallel);

}  // namespace tandem::cpu
