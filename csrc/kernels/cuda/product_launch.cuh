// Launching a product: its geometry on the device, its tiles and its grid.
#pragma once

#include "choose.h"
#include "neurons.cuh"
#include "product_fill.cuh"

namespace tandem::cuda {

template <class S>
dim3 grid_of(const Geometry& geometry) {
  // x is the fastest index: blocks that share weights run at the same time.
  return dim3(blocks_for(geometry.rows(), S::kPixels), blocks_for(geometry.group_outputs(), S::kOutputs),
              static_cast<unsigned>(geometry.groups));
}

// u: where the product is written, or null.
inline DeviceGeometry geometry_of(const Layer& layer, const float* u) {
  const Geometry& geometry = layer.geometry;
  const auto narrow = [](int64_t x) { return static_cast<int>(x); };
  DeviceGeometry g{};
  g.stored = layer.stored;
  g.weights = digits_at(layer.prepared, geometry, layer.weights.dtype);
  g.outputs = geometry.outputs;
  g.plane = geometry.sheet_size();
  g.pixels = geometry.rows();
  g.P = layer.sheets();
  g.height = narrow(geometry.height);
  g.width = narrow(geometry.width);
  g.channels = narrow(geometry.channels);
  g.out_width = narrow(geometry.out_width());
  g.out_size = narrow(geometry.out_height() * geometry.out_width());
  g.group_channels = narrow(geometry.group_channels());
  g.group_outputs = narrow(geometry.group_outputs());
  g.is_linear = geometry.is_linear();
  g.kernel_width = narrow(geometry.kernel[1]);
  g.depth = narrow(geometry.inputs());
  for (const int bytes : {1, 4, 8, 16}) {
    if (g.group_channels % bytes == 0 && is_aligned(g.stored, bytes)) g.spike_bytes = bytes;
  }
  for (int axis = 0; axis < 2; ++axis) {
    g.stride[axis] = narrow(geometry.stride[axis]);
    g.padding[axis] = narrow(geometry.padding[axis]);
    g.dilation[axis] = narrow(geometry.dilation[axis]);
  }
  g.field_width = g.kernel_width * g.dilation[1];
  g.outputs_aligned = g.group_outputs % 4 == 0 && fit_four(layer.neuron) && is_aligned(u, 16);
  g.gate_bytes = layer.gate_bytes();
  return g;
}

// Calls use(S{}) for the shape of the tiles of a layer with step timing.
template <class Use>
auto with_step_shape(const Layer& layer, Choice choice, const Use& use) {
  const auto one_of = [&](auto narrow, auto deep, auto wide) {
    return choice == Choice::kNarrow ? use(narrow) : choice == Choice::kDeep ? use(deep) : use(wide);
  };
  if (layer.neuron.T <= 4) return one_of(TileShape<Narrow4>{}, TileShape<Deep4>{}, TileShape<Wide4>{});
  if (layer.neuron.T <= 8) return one_of(TileShape<Narrow8>{}, TileShape<Deep8>{}, TileShape<Wide8>{});
  return one_of(TileShape<Narrow16>{}, TileShape<Deep16>{}, TileShape<Wide16>{});
}

// The digits that a stage has room for.
template <class S>
int stage_digits(const Layer& layer) {
  return S::kTiming == Timing::kStep ? 1 : most_digits(layer.weights.dtype);
}

// Launches kernel<<<>>>(g, argument) with a ring for the card.
template <class S, class Kernel, class Argument>
int launch_tiles(const Layer& layer, const float* u, const Card& card, const Kernel& kernel, const Argument& argument,
                 void* stream) {
  DeviceGeometry g = geometry_of(layer, u);
  const int digits = stage_digits<S>(layer);
  g.stages = S::stages(card.shared, digits);
  g.stage_bytes = S::stage_bytes(digits);
  g.stage = tap_at(g, S::kDepth);
  // The same for every layer: another host thread may be between this call and its launch.
  const int most = card.shared - reserved(card.shared);
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (status != cudaSuccess) return cudaGetLastError();  // clears the error
  return launch(kernel, grid_of<S>(layer.geometry), S::kThreads, S::block_bytes(g.stages, digits), stream, g, argument);
}

// Of window timing, and of any layer that tiles do not take.
int run_window(const Layer& layer, Choice choice, float* u, const Card& card, void* stream);
int run_plain(const Layer& layer, float* u, void* stream);

}  // namespace tandem::cuda
