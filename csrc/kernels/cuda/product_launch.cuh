// Launching a product: its geometry on the device, its grid, and which kernel supports which layer.
#pragma once

#include <limits>

#include "product_fill.cuh"
#include "window_ends.cuh"

namespace tandem::cuda {

// The bytes that one copy can move, if rows of `row` bytes follow each other from p on.
inline int aligned_bytes(const void* p, size_t row) {
  int bytes = 16;
  while (bytes > 1 && (row % bytes != 0 || !is_aligned(p, bytes))) bytes /= 2;
  return bytes;
}

template <class S>
dim3 grid_of(const Geometry& geometry) {
  // x is the fastest index: blocks that share weights run at the same time.
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

// The geometry with the weights as S::Operands reads them.
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

// Runs a layer of window timing: its neurons integrate the product of counts, then fire.
int run_window(const Layer& layer, Operand operand, void* stream);

// Whether the weights are ready: float32 weights have to be prepared as digits.
inline bool is_prepared(const Layer& layer, Operand operand) {
  return operand != Operand::kFloat32 || layer.prepared != nullptr;
}

// Whether sizes fit 32-bit numbers and the weights of an output are in the order of a stage.
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

// Whether tiles support the layer: the grid has blocks enough, a byte of the mask has eight outputs of one group, and
// no sum of bytes exceeds int32.
inline bool fits_tiles(const Layer& layer, Operand operand) {
  const Geometry& geometry = layer.geometry;
  constexpr int64_t kGrid = 65535;  // blocks in a launch's y and z; in y each has sixteen outputs or more
  const bool launchable = geometry.group_outputs() <= 16 * kGrid && geometry.groups <= kGrid;
  const bool mask = layer.neuron.mask == nullptr || geometry.group_outputs() % 8 == 0;
  const bool bytes = operand == Operand::kInt8 || (operand == Operand::kFloat32 && layer.counted());
  const int64_t most = int64_t{1} << 31;
  return launchable && mask && (!bytes || geometry.inputs() < most / 128 / (layer.counted() ? 255 : 128));
}

// Whether a group has outputs enough for a tile, which has thirty-two or more.
inline bool fills_tiles(const Layer& layer) {
  return layer.geometry.groups == 1 || layer.geometry.group_outputs() >= 16;
}

// Whether plain.cu runs the layer: float32 weights for which tiles are unsuitable.
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
