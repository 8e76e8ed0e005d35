// The fused product against a plain loop in double. Weights are multiples of 1/64, so every sum is exact: bits must
// agree whatever the shape, the rate, T, the bucket width, the capability and the threads.
#include <algorithm>
#include <random>

#include "check.h"
#include "kernels/spike_product.h"
#include "numbers.h"

using namespace tandem;
using namespace tandem::test;

namespace {

struct Shape {
  int64_t batch = 2, height = 1, width = 1, channels = 24, outputs = 20, groups = 1;
  int64_t kernel[2] = {1, 1}, stride[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};
};

// A layer with everything that a neuron may have.
struct Layer {
  Shape shape;
  int32_t T;
  DType dtype = DType::kFloat32;
  bool channels_last = false;
  Gate gate = Gate::kRelu;
  bool plain = false;  // no scale, shift, residual, v_init

  SpikeProduct product{};
  NeuronArgs<float> args{};
  std::vector<uint8_t> planes, residual;
  std::vector<double> weights;
  std::vector<char> encoded;
  std::vector<float> scale, shift, residual_scale, v_init;

  Layer(const Shape& s, int32_t steps, double rate, unsigned seed) : shape(s), T(steps) {
    std::mt19937 random(seed);
    const auto dyadic = [&](int64_t n, int range, double unit) {
      std::vector<float> out(n);
      for (float& x : out) x = static_cast<float>((static_cast<int>(random() % (2 * range + 1)) - range) * unit);
      return out;
    };
    product.batch = s.batch;
    product.height = s.height;
    product.width = s.width;
    product.channels = s.channels;
    product.outputs = s.outputs;
    product.groups = s.groups;
    for (int i = 0; i < 2; ++i) {
      product.kernel[i] = s.kernel[i];
      product.stride[i] = s.stride[i];
      product.padding[i] = s.padding[i];
      product.dilation[i] = s.dilation[i];
    }
    const auto trains = [&](int64_t n, double p) {
      std::bernoulli_distribution fires(p);
      std::vector<uint8_t> out((T + 7) / 8 * n);
      for (int t = 0; t < T; ++t) {
        for (int64_t i = 0; i < n; ++i) out[t / 8 * n + i] |= static_cast<uint8_t>(fires(random) << (t % 8));
      }
      return out;
    };
    planes = trains(s.batch * s.height * s.width * s.channels, rate);
    const auto w = dyadic(s.outputs * product.inputs(), 64, 1.0 / 64);
    weights.assign(w.begin(), w.end());
    args.neurons = product.rows() * s.outputs;
    args.channels = s.outputs;
    args.T = T;
    args.steps = T;
    args.threshold = 1;
    args.leak = 1;
    residual = trains(args.neurons, 0.3);
    scale = dyadic(s.outputs, 8, 0.25);
    shift = dyadic(s.outputs, 16, 0.5);
    residual_scale = dyadic(s.outputs, 4, 0.5);
    v_init = dyadic(args.neurons, 4, 0.125);
  }

  void finish() {
    encoded = encode(weights, dtype);
    product.planes = planes.data();
    product.weight = encoded.data();
    product.weight_dtype = dtype;
    product.weight_channels_last = channels_last;
    args.gate = gate;
    if (plain) return;
    args.scale = scale.data();
    args.shift = shift.data();
    args.residual_planes = residual.data();
    args.residual_scale = residual_scale.data();
    args.v_init = v_init.data();
    args.v_init_size = args.neurons;
  }

  double weight(int64_t output, int64_t tap, int64_t channel) const {
    const int64_t within = channels_last ? tap * product.group_channels() + channel : channel * product.taps() + tap;
    return weights[output * product.inputs() + within];
  }

  // y[t] of row (b, y, x).
  double current(int t, int64_t b, int64_t y, int64_t x, int64_t output) const {
    const int64_t group = output / product.group_outputs(), pixels = shape.batch * shape.height * shape.width;
    double sum = 0;
    for (int64_t tap = 0; tap < product.taps(); ++tap) {
      const int64_t iy = y * shape.stride[0] - shape.padding[0] + tap / shape.kernel[1] * shape.dilation[0];
      const int64_t ix = x * shape.stride[1] - shape.padding[1] + tap % shape.kernel[1] * shape.dilation[1];
      if (iy < 0 || iy >= shape.height || ix < 0 || ix >= shape.width) continue;
      for (int64_t c = 0; c < product.group_channels(); ++c) {
        const int64_t pixel = t / 8 * pixels + (b * shape.height + iy) * shape.width + ix;
        const int byte = planes[pixel * shape.channels + group * product.group_channels() + c];
        if (byte >> (t % 8) & 1) sum += weight(output, tap, c);
      }
    }
    return sum;
  }
};

struct Outputs {
  std::vector<uint8_t> planes, mask;
  std::vector<float> counts, v;

  explicit Outputs(const Layer& layer)
      : planes((layer.T + 7) / 8 * layer.args.neurons),
        mask((layer.args.neurons + 7) / 8),
        counts(layer.args.neurons),
        v(layer.args.neurons) {}

  NeuronArgs<float> args(const Layer& layer) {
    NeuronArgs<float> a = layer.args;
    a.planes = planes.data();
    a.counts = counts.data();
    a.mask = mask.data();
    a.v = v.data();
    return a;
  }

  friend bool operator==(const Outputs& a, const Outputs& b) {
    return a.planes == b.planes && a.mask == b.mask && a.counts == b.counts && a.v == b.v;
  }
};

Outputs expected(const Layer& layer) {
  Outputs out(layer);
  const NeuronArgs<float>& a = layer.args;
  const int64_t height = layer.product.out_height(), width = layer.product.out_width();
  for (int64_t n = 0; n < a.neurons; ++n) {
    const int64_t c = n % a.channels, row = n / a.channels;
    float v = a.v_init != nullptr ? a.v_init[n] : 0, z = 0;
    for (int t = 0; t < layer.T; ++t) {
      const auto y = static_cast<float>(layer.current(t, row / (height * width), row / width % height, row % width, c));
      float current = y;
      if (a.scale != nullptr) current = input_current(y, a.scale[c], a.shift[c] / static_cast<float>(a.steps));
      if (a.residual_planes != nullptr) {
        const int spike = a.residual_planes[t / 8 * a.neurons + n] >> (t % 8) & 1;
        current = current + static_cast<float>(spike) * a.residual_scale[c];
      }
      z = z + current;
      const bool spike = step(v, current, a.threshold, a.leak);
      out.planes[t / 8 * a.neurons + n] |= static_cast<uint8_t>(spike << (t % 8));
      out.counts[n] += spike;
    }
    const bool open = gate_open(z, a.gate, a.threshold * static_cast<float>(a.T));
    out.mask[n / 8] |= static_cast<uint8_t>(open << (n % 8));
    out.v[n] = v;
    if (a.gate == Gate::kResu && !open) {
      for (int p = 0; p < (layer.T + 7) / 8; ++p) out.planes[p * a.neurons + n] = 0;
      out.counts[n] = 0;
    }
  }
  return out;
}

void check(Layer& layer, const char* name) {
  layer.finish();
  const Outputs want = expected(layer);
  for (int width : {0, 1, 2, 4}) {
    for (ParallelFor parallel : {serial_for, threads_for}) {
      layer.product.bucket_width = width;
      Outputs got(layer);
      CHECK(cpu::product_if(layer.product, got.args(layer), parallel), "%s", name);
      CHECK(got == want, "%s, T %d, bucket width %d, %s", name, layer.T, width,
            parallel == serial_for ? "serial" : "threads");
    }
  }
}

}  // namespace

TEST(linear_layers) {
  unsigned seed = 0;
  for (int64_t inputs : {0, 1, 63, 64, 130, 300}) {
    for (int64_t outputs : {1, 8, 16, 20, 40}) {
      for (int32_t T : {1, 4, 8, 9, 33}) {
        Shape shape;
        shape.channels = inputs;
        shape.outputs = outputs;
        Layer layer(shape, T, std::vector<double>{0, 0.1, 0.5, 1}[seed % 4], seed);
        layer.gate = static_cast<Gate>(seed % 3);
        layer.dtype = kDTypes[seed % 3];
        layer.plain = seed % 5 == 0;
        ++seed;
        check(layer, "linear");
      }
    }
  }
}

TEST(inputs_beyond_the_range_of_an_entry) {
  for (int64_t inputs : {8191, 8192, 30000}) {
    Shape shape;
    shape.channels = inputs;
    shape.outputs = 9;
    Layer layer(shape, 9, 0.05, 7);
    check(layer, "many inputs");
  }
}

TEST(convolutions) {
  std::mt19937 random(3);
  const auto pick = [&](std::initializer_list<int64_t> values) { return values.begin()[random() % values.size()]; };
  for (unsigned seed = 0; seed < 60; ++seed) {
    Shape s;
    s.groups = pick({1, 1, 2, 3});
    s.channels = s.groups * pick({1, 3, 8, 70});
    s.outputs = s.groups * pick({1, 4, 8, 16, 20});
    for (int i = 0; i < 2; ++i) {
      s.kernel[i] = pick({1, 2, 3});
      s.stride[i] = pick({1, 2, 3});
      s.padding[i] = pick({0, 1, 2});
      s.dilation[i] = pick({1, 1, 2});
    }
    s.height = pick({1, 5, 6}) + s.dilation[0] * (s.kernel[0] - 1);
    s.width = pick({5, 7, 33}) + s.dilation[1] * (s.kernel[1] - 1);
    Layer layer(s, static_cast<int32_t>(pick({1, 4, 8, 9})), std::vector<double>{0.02, 0.1, 0.5, 1}[seed % 4], seed);
    layer.channels_last = seed % 2 == 0;
    layer.dtype = kDTypes[seed % 3];
    layer.gate = static_cast<Gate>(seed % 3);
    check(layer, "convolution");
  }
}

TEST(long_lines_are_cut) {
  Shape s;
  s.channels = 5;
  s.outputs = 8;
  s.width = 1000;
  s.kernel[1] = 5;
  s.padding[1] = 2;
  Layer layer(s, 8, 0.2, 1);
  check(layer, "line");
}

TEST(depthwise_convolutions) {
  for (int64_t channels : {1, 7, 16, 40}) {
    for (int64_t multiplier : {1, 2}) {
      Shape s;
      s.groups = s.channels = channels;
      s.outputs = channels * multiplier;
      s.height = s.width = 6;
      s.kernel[0] = s.kernel[1] = 3;
      s.padding[0] = s.padding[1] = 1;
      Layer layer(s, 9, 0.3, 5);
      check(layer, "depthwise");
    }
  }
}

TEST(weights_may_be_packed_before) {
  Shape s;
  s.channels = 100;
  s.outputs = 33;
  Layer layer(s, 8, 0.2, 2);
  layer.finish();
  const Outputs want = expected(layer);
  std::vector<int32_t> memory(cpu::packed_size(layer.product) + 16);
  int32_t* packed = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64 / sizeof(int32_t);
  CHECK(cpu::pack_weights(layer.product, packed, threads_for), "packing");
  layer.product.packed = packed;
  layer.product.weight = nullptr;
  Outputs got(layer);
  CHECK(cpu::product_if(layer.product, got.args(layer), serial_for), "packed");
  CHECK(got == want, "packed");
}

// Sums are exact, so random weights too give the same bits for every bucket width and thread count.
TEST(order_of_additions_does_not_matter) {
  Shape s;
  s.channels = 500;
  s.outputs = 48;
  s.batch = 40;
  Layer layer(s, 16, 0.2, 4);
  std::mt19937 random(1);
  std::normal_distribution<double> normal(0, 0.1);
  for (double& w : layer.weights) w = static_cast<float>(normal(random));
  layer.finish();
  layer.product.bucket_width = 1;
  Outputs want(layer);
  CHECK(cpu::product_if(layer.product, want.args(layer), serial_for), "random weights");
  for (int width : {2, 4}) {
    layer.product.bucket_width = width;
    Outputs got(layer);
    CHECK(cpu::product_if(layer.product, got.args(layer), threads_for), "random weights");
    CHECK(got == want, "bucket width %d", width);
  }
}

TEST(weights_that_are_not_finite_are_turned_down) {
  for (double bad : {std::nan(""), static_cast<double>(INFINITY), 3e38}) {
    Shape s;
    Layer layer(s, 8, 0.2, 2);
    for (int i = 0; i < 2; ++i) layer.weights[s.channels * 3 + i] = bad;
    layer.finish();
    Outputs got(layer);
    CHECK(!cpu::product_if(layer.product, got.args(layer), serial_for), "%g", bad);
  }
}

TEST(empty_layers) {
  Shape s;
  s.batch = 0;
  Layer layer(s, 8, 0.2, 2);
  layer.finish();
  Outputs got(layer);
  CHECK(cpu::product_if(layer.product, got.args(layer), threads_for), "no samples");
}
