// The fused product against a plain loop in double. Weights are multiples of 1/64, so every sum is exact: bits must
// agree whatever the shape, the rate, T, the way, the capability and the threads.
#include "check.h"
#include "product_layer.h"

using namespace tandem;
using namespace tandem::test;

namespace {

constexpr Way kWays[] = {Way::kFastest,    Way::kLists1, Way::kLists2,     Way::kLists4,
                         Way::kMatrixUnit, Way::kPlain,  Way::kTileByTile, Way::kLists};

void check(ProductLayer& layer, const char* name) {
  layer.finish();
  const std::vector<PlainNeuron<float>> want = layer.expected();
  for (const Way way : kWays) {
    for (ParallelFor parallel : {serial_for, threads_for}) {
      layer.way = way;
      const Outputs<float> got(layer.args);
      cpu::run(layer.layer(), parallel);
      CHECK(agree(layer.args, want), "%s, T %d, way %d, %s", name, layer.T, int(way),
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
        ProductLayer layer(shape, T, std::vector<double>{0, 0.1, 0.5, 1}[seed % 4], seed);
        layer.args.gate = static_cast<Gate>(seed % 3);
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
    ProductLayer layer(shape, 9, 0.05, 7);
    check(layer, "many inputs");
  }
}

TEST(a_million_inputs) {
  Shape shape;
  shape.channels = 1000000;
  shape.outputs = 3;
  shape.batch = 1;
  ProductLayer layer(shape, 9, 0.01, 8);
  check(layer, "a million inputs");
}

// Weights of few bits take fewer digits, few inputs more bits of the fixed point and so one digit more.
TEST(every_number_of_digits) {
  for (int64_t inputs : {1, 2, 5, 60, 300}) {
    for (double unit : {1.0 / 64, 1.0 + 1.0 / 4096}) {
      Shape shape;
      shape.channels = inputs;
      shape.outputs = 33;
      shape.batch = 20;
      ProductLayer layer(shape, 8, 0.5, 9);
      for (double& w : layer.values) w = std::round(64 * w) * unit;
      check(layer, "digits");
    }
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
    s.width = pick({1, 5, 7, 33}) + s.dilation[1] * (s.kernel[1] - 1);
    ProductLayer layer(s, static_cast<int32_t>(pick({1, 4, 8, 9})), std::vector<double>{0.02, 0.1, 0.5, 1}[seed % 4],
                       seed);
    layer.channels_last = seed % 2 == 0;
    layer.dtype = kDTypes[seed % 3];
    layer.args.gate = static_cast<Gate>(seed % 3);
    check(layer, "convolution");
  }
}

// More rows than samples, though the layer looks like a linear one.
TEST(padding_around_one_pixel) {
  Shape s;
  s.padding[0] = s.padding[1] = 1;
  ProductLayer layer(s, 8, 0.3, 1);
  check(layer, "one pixel");
}

// Integers of a byte have tiles of bytes where their sums fit int16, else of words.
TEST(few_bits) {
  for (int64_t inputs : {5, 64, 300, 1500}) {
    for (int64_t outputs : {1, 16, 33, 70}) {
      for (int largest : {7, 127}) {
        Shape s;
        s.channels = inputs;
        s.outputs = outputs;
        s.batch = 20;
        ProductLayer layer(s, inputs % 2 == 0 ? 8 : 17, 0.3, static_cast<unsigned>(inputs + outputs));
        layer.dtype = DType::kInt8;
        for (double& w : layer.values) w = std::round(w * largest);
        check(layer, "few bits");
      }
    }
  }
  Shape depthwise;
  depthwise.groups = depthwise.channels = depthwise.outputs = 40;
  depthwise.height = depthwise.width = 6;
  depthwise.kernel[0] = depthwise.kernel[1] = 3;
  ProductLayer layer(depthwise, 9, 0.3, 5);
  layer.dtype = DType::kInt8;
  for (double& w : layer.values) w = std::round(w * 127);
  check(layer, "depthwise");
}

TEST(more_taps_than_a_list_can_name) {
  Shape s;
  s.channels = 2;
  s.outputs = 9;
  s.width = 8300;
  s.kernel[1] = 8200;
  ProductLayer layer(s, 3, 0.1, 3);
  check(layer, "taps");
}

TEST(sums_beyond_float_are_infinite) {
  Shape s;
  s.batch = 1;
  ProductLayer layer(s, 8, 1, 2);
  layer.plain = true;
  for (double& w : layer.values) w = 3e38;
  check(layer, "large");
}

TEST(long_lines_are_cut) {
  Shape s;
  s.channels = 5;
  s.outputs = 8;
  s.width = 1000;
  s.kernel[1] = 5;
  s.padding[1] = 2;
  ProductLayer layer(s, 8, 0.2, 1);
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
      ProductLayer layer(s, 9, 0.3, 5);
      check(layer, "depthwise");
    }
  }
}

TEST(weights_may_be_packed_before) {
  Shape s;
  s.channels = 100;
  s.outputs = 33;
  ProductLayer layer(s, 8, 0.2, 2);
  layer.finish();
  const std::vector<PlainNeuron<float>> want = layer.expected();
  const PreparedWeights prepared(layer.geometry, layer.weights);
  layer.prepared = prepared.data;
  const Outputs<float> got(layer.args);
  cpu::run(layer.layer(), serial_for);
  CHECK(agree(layer.args, want), "prepared");
}

// Sums are exact, so random weights too give the same bits for every way and thread count.
TEST(order_of_additions_does_not_matter) {
  Shape s;
  s.channels = 500;
  s.outputs = 48;
  s.batch = 40;
  ProductLayer layer(s, 16, 0.2, 4);
  std::mt19937 random(1);
  std::normal_distribution<double> normal(0, 0.1);
  for (double& w : layer.values) w = static_cast<float>(normal(random));
  layer.finish();
  layer.way = Way::kLists1;
  const Outputs<float> want(layer.args);
  cpu::run(layer.layer(), serial_for);
  for (const Way way : kWays) {
    layer.way = way;
    const Outputs<float> got(layer.args);
    cpu::run(layer.layer(), threads_for);
    CHECK(got == want, "way %d", int(way));
  }
}

TEST(an_output_with_a_weight_that_is_not_finite_has_nan_at_every_step) {
  for (double bad : {std::nan(""), static_cast<double>(INFINITY)}) {
    Shape s;
    ProductLayer layer(s, 8, 0.2, 2);
    layer.values[s.channels * 3 + 1] = bad;
    layer.finish();
    std::vector<float> u(layer.args.neurons), flags(s.batch);
    layer.args.bad = flags.data();
    layer.args.sample = layer.args.neurons / s.batch;
    for (const Way way : kWays) {
      layer.way = way;
      const Outputs<float> got(layer.args);
      flags.assign(s.batch, 0.f);
      cpu::run(layer.layer(), threads_for);
      cpu::window_product(layer.layer(), u.data(), serial_for);
      for (int64_t n = 0; n < layer.args.neurons; ++n) {
        const bool here = n % s.outputs == 3;
        CHECK(std::isnan(layer.args.v[n]) == here, "v[%d], %g, way %d", int(n), bad, int(way));
        CHECK(std::isnan(u[n]) == here, "u[%d], %g, way %d", int(n), bad, int(way));
      }
      for (float flag : flags) CHECK(std::isnan(flag), "%g, way %d", bad, int(way));
    }
  }
}

TEST(empty_layers) {
  Shape s;
  s.batch = 0;
  ProductLayer layer(s, 8, 0.2, 2);
  layer.finish();
  const Outputs<float> got(layer.args);
  cpu::run(layer.layer(), threads_for);
}
