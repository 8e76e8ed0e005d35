// What a launch of a product needs to know: geometry, grid, and whether it can be launched at all.
#pragma once

#include <limits>

#include "product_fill.cuh"
#include "window_ends.cuh"

namespace tandem::cuda {

// How many bytes can be moved at once, where rows of so many follow each other from there.
inline int aligned_bytes(const void* p, size_t row) {
  int bytes = 16;
  while (bytes > 1 && (row % bytes != 0 || !is_aligned(p, bytes))) bytes /= 2;
  return bytes;
}

template <class S>
dim3 grid_of(const Geometry& geometry) {
  // Blocks that share weights run side by side.
  return dim3(blocks_for(geometry.rows(), S::kPixels), blocks_for(geometry.group_outputs(), S::kOutputs),
              static_cast<unsigned>(geometry.groups));
}

inline DeviceGeometry geometry_of(const Layer& layer) {
  const Geometry& geometry = layer.geometry;
  const auto narrow = [](int64_t x) { return static_cast<int>(x); };
  DeviceGeometry g{};
  g.planes = layer.planes;
  g.weight = layer.weights.data;
  g.plane = geometry.batch * geometry.height * geometry.width * geometry.channels;
  g.pixels = geometry.rows();
  g.P = layer.plane_count();
  g.height = narrow(geometry.height);
  g.width = narrow(geometry.width);
  g.channels = narrow(geometry.channels);
  g.out_width = narrow(geometry.out_width());
  g.out_size = narrow(geometry.out_height() * geometry.out_width());
  g.group_channels = narrow(geometry.group_channels());
  g.group_outputs = narrow(geometry.group_outputs());
  g.taps = narrow(geometry.taps());
  g.is_linear = geometry.is_linear();
  g.kernel_height = narrow(geometry.kernel[0]);
  g.kernel_width = narrow(geometry.kernel[1]);
  g.depth = narrow(geometry.inputs());
  g.weight_row = g.depth;
  const int taps = kTileDepth / g.group_channels;
  g.spike_bytes = aligned_bytes(g.planes, g.group_channels);
  g.stage = {taps / g.kernel_width, taps % g.kernel_width, kTileDepth % g.group_channels};
  for (int axis = 0; axis < 2; ++axis) {
    g.stride[axis] = narrow(geometry.stride[axis]);
    g.padding[axis] = narrow(geometry.padding[axis]);
    g.dilation[axis] = narrow(geometry.dilation[axis]);
  }
  return g;
}

// With weights as this type of operand has them.
template <class S>
DeviceGeometry geometry_for(const Layer& layer) {
  DeviceGeometry g = geometry_of(layer);
  if constexpr (S::Operands::kDigits) {
    const DigitMemory at(layer.geometry);
    g.weight = layer.prepared;
    g.weight_row = at.output_bytes();
    g.units = at.units(layer.prepared);
    g.digit_counts = at.counts(layer.prepared);
  } else {
    g.weight_bytes = aligned_bytes(g.weight, g.depth * sizeof(typename S::Weight));
  }
  return g;
}

// Neurons with window timing, which integrate the product of counts and fire.
int run_window(const Layer& layer, Operand operand, void* stream);

// Digits are made of the weights before.
inline bool is_prepared(const Layer& layer, Operand operand) {
  return operand != Operand::kFloat32 || layer.prepared != nullptr;
}

// Do numbers suffice, and do the weights of an output lie in the order of a stage?
inline bool can_multiply(const Layer& layer, Operand operand) {
  const Geometry& geometry = layer.geometry;
  const bool rows = operand == Operand::kFloat32 || layer.weights.channels_last || geometry.taps() == 1 ||
                    geometry.group_channels() == 1;
  constexpr int64_t kInt = std::numeric_limits<int32_t>::max();
  const bool narrow = geometry.channels <= kInt && geometry.height * geometry.width <= kInt &&
                      geometry.height + 2 * geometry.padding[0] <= kInt &&
                      geometry.width + 2 * geometry.padding[1] <= kInt && geometry.outputs <= kInt &&
                      geometry.out_height() * geometry.out_width() <= kInt;
  return rows && narrow && geometry.inputs() > 0 && geometry.inputs() < 1 << 24;
}

// Can tiles hold it? There are blocks enough, the mask takes eight outputs of a group at a time, and no sum of bytes
// may exceed int32.
inline bool fits_tiles(const Layer& layer, Operand operand) {
  const Geometry& geometry = layer.geometry;
  constexpr int64_t kGrid = 65535;  // blocks in a launch's y and z; in y each has sixteen outputs or more
  const bool launchable = geometry.group_outputs() <= 16 * kGrid && geometry.groups <= kGrid;
  const bool mask = layer.neuron.mask == nullptr || geometry.group_outputs() % 8 == 0;
  const bool bytes = operand == Operand::kInt8 || (operand == Operand::kFloat32 && layer.counted());
  const int64_t most = int64_t{1} << 31;
  return launchable && mask && (!bytes || geometry.inputs() < most / 128 / (layer.counted() ? 255 : 128));
}

// Or would most of a tile, which has thirty-two outputs or more, be empty?
inline bool fills_tiles(const Layer& layer) {
  return layer.geometry.groups == 1 || layer.geometry.group_outputs() >= 16;
}

// Whatever tiles are not for, float32 weights alone.
inline bool is_plain(const Layer& layer, Operand operand) {
  return operand == Operand::kFloat32 && !(fits_tiles(layer, operand) && fills_tiles(layer));
}

// Calls launch(Ops{}) for the operands of this kind.
template <class Launch>
int launch_for(Operand operand, const Launch& launch) {
  switch (operand) {
    case Operand::kFloat16:
      return launch(Float16Weights{});
    case Operand::kBFloat16:
      return launch(BFloat16Weights{});
    case Operand::kFloat32:
      return launch(DigitWeights{});
    case Operand::kFloat32High:
      return launch(Float32Weights<2>{});
    case Operand::kFloat32Medium:
      return launch(Float32Weights<1>{});
    case Operand::kInt8:
      return launch(Int8Weights{});
  }
  return cudaErrorInvalidValue;
}

int run_plain(const Layer& layer, void* stream);
int run_plain(const Layer& layer, const Write& end, void* stream);
int run_plain(const Layer& layer, const Fire& end, void* stream);

}  // namespace tandem::cuda
