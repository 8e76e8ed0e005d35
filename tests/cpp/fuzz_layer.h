// A layer of spike products from bytes: any shape that a plain loop computes in milliseconds.
#pragma once

#include <optional>

#include "fuzz.h"
#include "product_layer.h"

namespace tandem::test {

constexpr int64_t kMostProducts = 1 << 16;

inline Shape any_linear(Input& in) {
  Shape s;
  s.channels = in.range(0, in.flag() ? 10000 : 300);  // beyond the K-blocks and the range of an entry
  s.outputs = in.range(1, 70);
  s.batch = in.range(0, 6);
  return s;
}

inline Shape any_image(Input& in) {
  Shape s;
  s.groups = in.range(1, 20);
  s.channels =
      s.groups * in.pick<int64_t>({1, 64, 128, in.range(1, 300)});  // depthwise has its kernel, whole chunks their way
  s.outputs = s.groups * in.range(1, 40);
  s.batch = in.range(0, 3);
  int64_t* size[] = {&s.height, &s.width};
  for (int i = 0; i < 2; ++i) {
    s.kernel[i] = in.range(1, 5);
    s.stride[i] = in.range(1, 4);
    s.padding[i] = in.range(0, 6);
    s.dilation[i] = in.range(1, 4);
    const int64_t least = s.dilation[i] * (s.kernel[i] - 1) + 1 - 2 * s.padding[i];
    *size[i] = std::max(least, in.range(1, in.flag() ? 4 : i == 0 ? 12 : 300));  // long lines are cut
  }
  return s;
}

// Nothing where the layer would be too large. Scale, shift and the rest are there or not.
inline std::optional<ProductLayer> any_layer(Input& in) {
  const Shape s = in.flag() ? any_linear(in) : any_image(in);
  const int32_t T = static_cast<int32_t>(in.range(1, in.flag() ? 600 : 10));
  const double rate = in.pick({0.1, 0.02, 0.0, 0.5, 1.0});
  const Geometry shape = s.geometry();
  const int64_t neurons = shape.rows() * s.outputs;
  if (shape.inputs() * s.outputs > kMostProducts || neurons * T * (shape.inputs() + 8) > 8 * kMostProducts) return {};

  ProductLayer layer(s, T, rate, static_cast<unsigned>(in.range(0, 255)));
  layer.dtype = in.pick({DType::kFloat32, DType::kBFloat16, DType::kFloat16});
  layer.channels_last = in.flag();
  layer.plain = in.flag();
  layer.way = static_cast<Way>(in.pick({0, 1, 2, 4, 8, 16, 32, 64}));
  layer.finish();
  Neuron<float>& a = layer.args;
  a.steps = static_cast<int32_t>(in.range(1, 255));
  a.threshold = in.pick({1.f, 0.37f, 20.f});
  a.leak = in.pick({1.f, 0.9f});
  a.gate = in.pick({Gate::kRelu, Gate::kClip, Gate::kResu});
  a.counts_dtype = in.pick({DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64});
  if (T > 256) a.counts_dtype = DType::kFloat32;  // which a bfloat16 need not hold
  if (!layer.plain) {
    a.v_init_size = in.pick({neurons, int64_t{1}, shape.out_height() * shape.out_width() * s.outputs});
    a.residual_planes = in.maybe(a.residual_planes);
    a.residual_scale = in.maybe(a.residual_scale);
  }
  if (T <= most_steps(Timing::kWindow) && in.flag()) {  // bytes are counts
    a.timing = Timing::kWindow;
    a.steps = T;
    a.leak = 1;
    a.gate = a.gate == Gate::kResu ? Gate::kRelu : a.gate;
    layer.planes.resize(s.batch * s.height * s.width * s.channels);
    const int most = static_cast<int>(in.pick({255, 8, 15, 127, 128}));
    for (uint8_t& count : layer.planes) count = static_cast<uint8_t>(std::min<int>(count, most));
  }
  parts = in.range(1, 5);
  return layer;
}

inline std::string text(const ProductLayer& layer) {
  const Shape& s = layer.shape;
  const bool window = layer.args.timing == Timing::kWindow;
  std::string out = (window ? "window timing, T " : "T ") + std::to_string(layer.T) + ", way " +
                    std::to_string(static_cast<int>(layer.way));
  const auto add = [&](const char* name, int64_t a, int64_t b) {
    out += std::string(", ") + name + " " + std::to_string(a) + " " + std::to_string(b);
  };
  add("batch, groups", s.batch, s.groups);
  add("channels, outputs", s.channels, s.outputs);
  add("image", s.height, s.width);
  add("kernel", s.kernel[0], s.kernel[1]);
  add("stride", s.stride[0], s.stride[1]);
  add("padding", s.padding[0], s.padding[1]);
  add("dilation", s.dilation[0], s.dilation[1]);
  return out;
}

}  // namespace tandem::test
