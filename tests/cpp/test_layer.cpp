// The fused product against a plain loop in double. Weights are multiples of 1/64, so every sum is exact: bits must
// agree whatever the shape, the rate, T, the way, the capability and the threads.
#include "ways.h"

using namespace tandem;
using namespace tandem::test;

namespace {

constexpr double kRates[] = {0, 0.1, 0.5, 1};

ProductLayer of_integers(const Shape& s, int32_t T, double rate, unsigned seed, double largest) {
  ProductLayer layer(s, T, rate, seed);
  layer.dtype = DType::kInt8;
  for (double& w : layer.values) w = std::round(w * largest);
  return layer;
}

}  // namespace

TEST(linear_layers) {
  unsigned seed = 0;
  for (int64_t inputs : {0, 1, 63, 64, 130, 300}) {
    for (int64_t outputs : {1, 8, 16, 20, 40}) {
      for (int32_t T : {1, 4, 8, 9, 33}) {
        ProductLayer layer(linear(inputs, outputs), T, kRates[seed % 4], seed);
        layer.args.gate = static_cast<Gate>(seed % 3);
        layer.dtype = kDTypes[seed % 3];
        layer.plain = seed % 5 == 0;
        ++seed;
        check(layer, "linear");
      }
    }
  }
}

// What neurons have come to goes from piece to piece, and the gates look at the whole window.
TEST(long_windows) {
  for (int32_t T : {129, 255, 256, 300, 1000}) {
    for (const Gate gate : {Gate::kRelu, Gate::kClip, Gate::kResu}) {
      for (const Shape& shape : {linear(40), image(3, 2, 0, 6, 20, 2), image(3, 2, 0, 20, 20, 20)}) {
        ProductLayer layer(shape, T, 0.2, static_cast<unsigned>(T));
        layer.args.gate = gate;
        check(layer, "long");
        layer.args.leak = 0.9f;
        if (shape.height == 1) check(layer, "long, with a leak");
      }
    }
  }
  ProductLayer blocks(linear(2100, 5, 1), 300, 0.02, 3);
  check(blocks, "K-blocks");
  ProductLayer bytes = of_integers(linear(70, 5, 1), 300, 0.1, 4, 7);
  check(bytes, "few bits");
}

TEST(the_longest_window) {
  ProductLayer layer(linear(2, 3, 1), 65535, 0.9, 1);
  layer.args.threshold = 0.125f;
  layer.args.gate = Gate::kClip;
  for (double& w : layer.values) w = std::abs(w);  // some neuron fires at nearly every step
  check(layer, "65535 steps");
}

TEST(odd_shapes) {
  const struct {
    const char* name;
    Shape shape;
    int32_t T;
    double rate;
  } cases[] = {
      {"inputs at the end of an entry's range", linear(8191, 9), 9, 0.05},
      {"inputs beyond the range of an entry", linear(8192, 9), 9, 0.05},
      {"many inputs", linear(30000, 9), 9, 0.05},
      {"a million inputs", linear(1000000, 3, 1), 9, 0.01},
      {"padding around one pixel: more rows than samples", image(1, 1, 1, 24, 20), 8, 0.3},
      {"more taps than a list can name", line(8300, 8200, 0, 2, 9), 3, 0.1},
      {"a long line, which is cut", line(1000, 5, 2, 5, 8), 8, 0.2},
  };
  for (const auto& c : cases) {
    ProductLayer layer(c.shape, c.T, c.rate, 7);
    check(layer, c.name);
  }
}

// Weights of few bits take fewer digits, few inputs more bits of the fixed point and so one digit more.
TEST(every_number_of_digits) {
  for (int64_t inputs : {1, 2, 5, 60, 300}) {
    for (double unit : {1.0 / 64, 1.0 + 1.0 / 4096}) {
      ProductLayer layer(linear(inputs, 33, 20), 8, 0.5, 9);
      for (double& w : layer.values) w = std::round(64 * w) * unit;
      check(layer, "digits");
    }
  }
}

TEST(convolutions) {
  std::mt19937 random(3);
  for (unsigned seed = 0; seed < 60; ++seed) {
    const Shape s = any_convolution(random);
    const auto T = static_cast<int32_t>(pick(random, {1, 4, 8, 9}));
    ProductLayer layer(s, T, seed % 4 == 0 ? 0.02 : kRates[seed % 4], seed);
    layer.channels_last = seed % 2 == 0;
    layer.dtype = kDTypes[seed % 3];
    layer.args.gate = static_cast<Gate>(seed % 3);
    check(layer, "convolution");
  }
}

// Integers of a byte have tiles of bytes where their sums fit int16, else of words.
TEST(few_bits) {
  for (int64_t inputs : {5, 64, 300, 1500}) {
    for (int64_t outputs : {1, 16, 33, 70}) {
      for (int largest : {7, 127}) {
        const int32_t T = inputs % 2 == 0 ? 8 : 17;
        ProductLayer layer =
            of_integers(linear(inputs, outputs, 20), T, 0.3, static_cast<unsigned>(inputs + outputs), largest);
        check(layer, "few bits");
      }
    }
  }
  ProductLayer layer = of_integers(image(6, 3, 0, 40, 40, 40), 9, 0.3, 5, 127);
  check(layer, "depthwise");
}

// Sums of all positive weights, of all negative ones, of all and of some, where these just fit int16, and do not.
TEST(bytes_up_to_the_ends_of_int16) {
  constexpr int64_t positive = 258, inputs = positive + 1 + 256;
  for (const double last : {1, 2}) {
    Shape s;
    s.channels = inputs;
    s.batch = 4;
    ProductLayer layer(s, 8, 0.5, 7);
    layer.dtype = DType::kInt8;
    for (int64_t i = 0; i < s.outputs * inputs; ++i) {
      const int64_t k = i % inputs;
      layer.values[i] = k < positive ? 127 : k == positive ? last : -128;
    }
    for (int64_t k = 0; k < inputs; ++k) {
      layer.planes[k] = k <= positive ? 0xff : 0;
      layer.planes[inputs + k] = k <= positive ? 0 : 0xff;
      layer.planes[2 * inputs + k] = 0xff;
    }
    check(layer, "the ends of int16");
  }
}

TEST(blocks_of_bytes) {
  for (int64_t channels : {128, 130, 1200}) {
    for (bool channels_last : {false, true}) {
      Shape s;
      s.channels = channels;
      s.batch = 3;
      if (channels < 1000) s.height = s.width = s.kernel[0] = s.kernel[1] = 3;
      ProductLayer layer(s, 11, 0.5, 3);
      layer.dtype = DType::kInt8;
      layer.channels_last = channels_last;
      for (double& w : layer.values) w = std::round(w * 127);
      check(layer, "blocks of bytes");
      const auto weights = static_cast<int64_t>(layer.values.size());
      CHECK(cpu::prepared_size(layer.geometry, layer.weights) < 4 * weights, "%ld channels", long(channels));
    }
  }
}

TEST(depthwise_convolutions) {
  for (int64_t channels : {1, 7, 16, 40}) {
    for (int64_t multiplier : {1, 2}) {
      ProductLayer layer(image(6, 3, 1, channels, channels * multiplier, channels), 9, 0.3, 5);
      check(layer, "depthwise");
    }
  }
}

TEST(sums_beyond_float_are_infinite) {
  ProductLayer layer(linear(24, 20, 1), 8, 1, 2);
  layer.plain = true;
  for (double& w : layer.values) w = 3e38;
  check(layer, "large");
}

TEST(weights_may_be_prepared_before) {
  ProductLayer layer(linear(100, 33), 8, 0.2, 2);
  layer.finish();
  check_prepared(layer);
}

TEST(order_of_additions_does_not_matter) {
  ProductLayer layer(linear(500, 48, 40), 16, 0.2, 4);
  check_random_weights(layer);
}

TEST(an_output_with_a_weight_that_is_not_finite_has_nan_at_every_step) {
  for (double bad : {std::nan(""), static_cast<double>(INFINITY)}) {
    ProductLayer layer(Shape{}, 8, 0.2, 2);
    check_not_finite(layer, bad);
  }
}

TEST(empty_layers) {
  ProductLayer layer(linear(24, 20, 0), 8, 0.2, 2);
  layer.finish();
  const Outputs<float> got(layer.args);
  cpu::run(layer.layer(), threads_for);
}
