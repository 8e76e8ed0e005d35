// Launching a product: its geometry on the device, its tiles and its grid.
#pragma once

#include "choose.h"
#include "product_fill.cuh"
#include "window_ends.cuh"

namespace tandem::cuda {

// The bytes that one copy can move, if rows of `row` bytes follow each other from p on.
inline int aligned_bytes(const void* p, int64_t row) {
  for (const int bytes : {16, 8, 4}) {
    if (row % bytes == 0 && is_aligned(p, bytes)) return bytes;
  }
  return 1;
}

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
  const DigitMemory at(geometry, layer.weights.dtype);
  DeviceGeometry g{};
  g.planes = layer.planes;
  g.digits = static_cast<const int8_t*>(layer.prepared);
  g.digit_row = at.row;
  g.digit_rows = at.output_bytes();
  g.units = reinterpret_cast<const float*>(g.digits + at.units_at());
  g.digit_counts = reinterpret_cast<const int32_t*>(g.units + at.outputs);
  g.plane = geometry.plane_size();
  g.pixels = geometry.rows();
  g.P = layer.plane_count();
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
  g.spike_bytes = aligned_bytes(g.planes, geometry.group_channels());
  if (g.spike_bytes == 16 && geometry.taps() == 1) g.spike_bytes = 0;
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

using CountShape = Shape<true, 1, 2, 2, 2, 4, 1>;

// Calls use(S{}) for the shape of the tiles of a layer with step timing.
template <int kSteps, class Use>
auto with_shape(Choice choice, const Use& use) {
  constexpr bool kMany = kSteps == 16;
  constexpr int kColumns = kSteps == 4 ? 4 : 8, kTiles = kSteps == 4 ? 4 : 2;
  if (choice == Choice::kNarrow) return use(Shape<false, kSteps, kColumns, kTiles, 1, 1, 4>{});
  if (choice == Choice::kDeep) return use(Shape<false, kSteps, kColumns, kTiles, 1, 2, kMany ? 2 : 4>{});
  return use(Shape<false, kSteps, kMany ? 8 : 4, kMany ? 2 : 4, 1, kMany ? 2 : 4, 1>{});
}
template <class Use>
auto with_shape(const Layer& layer, Choice choice, const Use& use) {
  if (layer.neuron.T <= 4) return with_shape<4>(choice, use);
  if (layer.neuron.T <= 8) return with_shape<8>(choice, use);
  return with_shape<16>(choice, use);
}

// Launches kernel<<<>>>(g, argument) with a ring for the card.
template <class S, class Kernel, class Argument>
int launch_tiles(const Layer& layer, const float* u, const Card& card, const Kernel& kernel, const Argument& argument,
                 void* stream) {
  DeviceGeometry g = geometry_of(layer, u);
  g.stages = S::stages(card.shared);
  g.stage = tap_at(g, S::kDepth);
  // The same for every layer: another host thread may be between this call and its launch.
  const int bytes = S::block_bytes(g.stages);
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return cudaGetLastError();  // clears the error
  kernel<<<grid_of<S>(layer.geometry), S::kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(g, argument);
  return cudaGetLastError();
}

// Of window timing, and of any layer that tiles do not take.
int run_window(const Layer& layer, float* u, const Card& card, void* stream);
int run_plain(const Layer& layer, float* u, void* stream);

}  // namespace tandem::cuda
