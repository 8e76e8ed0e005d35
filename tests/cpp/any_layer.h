// A layer of spike products from fuzzed bytes: any shape that a plain loop computes in milliseconds.
#pragma once

#include <optional>

#include "product_layer.h"

namespace tandem::test {

constexpr int64_t kMostProducts = 1 << 16;

inline Geometry any_linear(Input& in) {
  const int64_t inputs = in.range(0, in.flag() ? 10000 : 300);  // more than a K-block, or a list entry, can hold
  const int64_t outputs = in.range(1, 70);
  return linear(inputs, outputs, in.range(0, 6));
}

inline Geometry any_image(Input& in) {
  Geometry g{};
  g.groups = in.range(1, 20);
  g.channels =
      g.groups * in.pick<int64_t>({1, 64, 128, in.range(1, 300)});  // depthwise and whole chunks have their own code
  g.outputs = g.groups * in.range(1, 40);
  g.batch = in.range(0, 3);
  int64_t* size[] = {&g.height, &g.width};
  for (int i = 0; i < 2; ++i) {
    g.kernel[i] = in.range(1, 5);
    g.stride[i] = in.range(1, 4);
    g.padding[i] = in.range(0, 6);
    g.dilation[i] = in.range(1, 4);
    const int64_t least = g.dilation[i] * (g.kernel[i] - 1) + 1 - 2 * g.padding[i];
    *size[i] = std::max(least, in.range(1, in.flag() ? 4 : i == 0 ? 12 : 300));  // long lines are cut into blocks
  }
  return g;
}

// Returns nothing if the layer would be too large. Scale, shift and other options are present or absent.
inline std::optional<ProductLayer> any_layer(Input& in) {
  const Geometry g = in.flag() ? any_linear(in) : any_image(in);
  const int32_t T = static_cast<int32_t>(in.range(1, in.flag() ? 600 : 10));
  const double rate = in.pick({0.1, 0.02, 0.0, 0.5, 1.0});
  const int64_t neurons = g.neurons();
  if (g.inputs() * g.outputs > kMostProducts || neurons * T * (g.inputs() + 8) > 8 * kMostProducts) return {};

  ProductLayer layer(g, T, rate, static_cast<unsigned>(in.range(0, 255)));
  layer.dtype = in.pick({DType::kFloat32, DType::kBFloat16, DType::kFloat16});
  layer.channels_last = in.flag();
  layer.plain = in.flag();
  layer.way = in.pick(kWays);
  if (in.range(0, 3) == 0) layer.make_integers(in.pick({7, 127}));
  layer.finish();
  Neuron<float>& a = layer.args;
  a.steps = static_cast<int32_t>(in.range(1, 255));
  a.threshold = in.pick({1.f, 0.37f, 20.f});
  a.leak = in.pick({1.f, 0.9f});
  a.gate = in.pick({Gate::kRelu, Gate::kClip});
  a.counts_dtype = in.pick(kDTypes);
  if (T > 256) a.counts_dtype = DType::kFloat32;  // bfloat16 does not represent all counts
  if (!layer.plain) {
    a.v_init_size = in.pick({neurons, int64_t{1}, g.out_height() * g.out_width() * g.outputs});
    a.residual_planes = in.maybe(a.residual_planes);
    a.residual_scale = in.maybe(a.residual_scale);
  }
  if (T <= most_steps(Timing::kWindow) && in.flag()) {  // the bytes become counts
    a.timing = Timing::kWindow;
    a.steps = T;
    a.leak = 1;
    layer.planes.resize(layer.inputs());
    const int most = static_cast<int>(in.pick({255, 8, 15, 127, 128}));
    for (uint8_t& count : layer.planes) count = static_cast<uint8_t>(std::min<int>(count, most));
  }
  parts = in.range(1, 5);
  return layer;
}

inline std::string text(const ProductLayer& layer) {
  const Geometry& g = layer.geometry;
  std::string out = layer.args.timing == Timing::kWindow ? "window timing" : "step timing";
  out += ", T " + std::to_string(layer.T) + ", " + text(layer.way) + ", geometry";
  for (const int64_t size : {g.batch, g.height, g.width, g.channels, g.outputs, g.groups}) {
    out += " " + std::to_string(size);
  }
  for (const auto& axes : {g.kernel, g.stride, g.padding, g.dilation}) {
    out += ", " + std::to_string(axes[0]) + " " + std::to_string(axes[1]);
  }
  return out;
}

}  // namespace tandem::test
