// The fused product against a plain loop in double, for both timings. Weights are multiples of 1/64, so all sums are
// exact: bits must agree for every shape, rate, T, algorithm, capability and number of threads.
#include "kernels/weights/quantise.h"
#include "product_layer.h"

using namespace tandem;
using namespace tandem::test;

namespace {

constexpr Timing kTimings[] = {Timing::kStep, Timing::kWindow};

// With window timing inputs have up to `most` spikes.
ProductLayer make(const Geometry& g, Timing timing, int32_t T, double rate, unsigned seed, int most = 8) {
  ProductLayer layer(g, T, rate, seed);
  if (timing == Timing::kWindow) layer.count(rate, most, seed);
  return layer;
}

}  // namespace

TEST(any_layers) {
  std::mt19937 random(3);
  int tried = 0;
  while (tried < 240) {
    Input in(random);
    std::optional<ProductLayer> layer = any_layer(in);
    if (!layer) continue;
    ++tried;
    check(*layer, text(*layer).c_str());
  }
}

// Pieces of a window hand on the neurons' state, and gates see the whole window.
TEST(long_windows) {
  for (int32_t T : {129, 255, 256, 300, 1000}) {
    for (const Gate gate : {Gate::kRelu, Gate::kClip}) {
      for (const Geometry& shape : {linear(40), image(3, 2, 0, 6, 20, 2), image(3, 2, 0, 20, 20, 20)}) {
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
  ProductLayer bytes(linear(70, 5, 1), 300, 0.1, 4);
  bytes.make_integers(7);
  check(bytes, "few bits");
}

TEST(the_longest_window) {
  ProductLayer layer(linear(2, 3, 1), 65535, 0.9, 1);
  layer.args.threshold = 0.125f;
  layer.args.gate = Gate::kClip;
  for (double& w : layer.values) w = std::abs(w);  // a neuron fires at nearly every step
  check(layer, "65535 steps");
}

TEST(odd_shapes) {
  const struct {
    const char* name;
    Geometry shape;
    int32_t T;
    double rate;
  } cases[] = {
      {"inputs at the end of an entry's range", linear(8191, 9), 9, 0.05},
      {"inputs beyond the range of an entry", linear(8192, 9), 9, 0.05},
      {"many inputs", linear(30000, 9), 9, 0.05},
      {"a million inputs", linear(1000000, 3, 1), 9, 0.01},
      {"padding around one pixel: more rows than samples", image(1, 1, 1, 24, 20), 8, 0.3},
      {"more taps than a list can name", line(8300, 8200, 0, 2, 9), 3, 0.1},
      {"as many taps as a list can name", line(8193, 8191, 0, 1, 3), 3, 0.3},
      {"one tap more", line(8194, 8192, 0, 1, 3), 3, 0.3},
      {"channels times taps that a list can name", image(4, 3, 0, 910, 4), 3, 0.3},
      {"more channels times taps, in two groups", image(4, 3, 0, 1822, 4, 2), 3, 0.3},
      {"a long line, which is cut", line(1000, 5, 2, 5, 8), 8, 0.2},
  };
  for (const auto& c : cases) {
    for (const Timing timing : kTimings) {
      ProductLayer layer = make(c.shape, timing, c.T, c.rate, 7);
      check(layer, c.name);
    }
  }
}

// Few-bit weights have fewer digits. With few inputs the fixed point has more bits, and so one more digit.
TEST(every_number_of_digits) {
  for (int64_t inputs : {1, 2, 5, 60, 300}) {
    for (double unit : {1.0 / 64, 1.0 + 1.0 / 4096}) {
      ProductLayer layer(linear(inputs, 33, 20), 8, 0.5, 9);
      for (double& w : layer.values) w = std::round(64 * w) * unit;
      check(layer, "digits");
    }
  }
}

// The sums of all positive, of all negative, of all and of some weights, where they just fit int16 and where they do
// not.
TEST(bytes_up_to_the_ends_of_int16) {
  constexpr int64_t positive = 258, inputs = positive + 1 + 256;
  for (const double last : {1, 2}) {
    ProductLayer layer(linear(inputs, 20, 4), 8, 0.5, 7);
    layer.dtype = DType::kInt8;
    for (size_t i = 0; i < layer.values.size(); ++i) {
      const auto k = static_cast<int64_t>(i) % inputs;
      layer.values[i] = k < positive ? 127 : k == positive ? last : -128;
    }
    for (int64_t k = 0; k < inputs; ++k) {
      layer.stored[k] = k <= positive ? 0xff : 0;
      layer.stored[inputs + k] = k <= positive ? 0 : 0xff;
      layer.stored[2 * inputs + k] = 0xff;
    }
    check(layer, "the ends of int16");
  }
}

// Of sizes that no vector divides; tests/layers/test_few_bits.py has the steps.
TEST(few_bits_are_the_nearest) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  constexpr int64_t rows = 3;
  for (const int largest : {1, 3, 7, 127}) {
    for (const int64_t size : {1, 15, 64, 4200}) {
      std::vector<float> weights(rows * size), steps(rows);
      std::vector<int8_t> q(rows * size);
      for (float& w : weights) w = normal(random);
      cpu::quantise(weights.data(), rows, size, largest, q.data(), steps.data(), threads_for);
      for (int64_t i = 0; i < rows * size; ++i) {
        const float nearest = std::nearbyint(weights[i] / steps[i / size]);
        CHECK(q[i] == std::clamp<float>(nearest, -largest, largest), "%d, %ld weights", largest, long(size));
      }
    }
  }
}

TEST(sums_beyond_float_are_infinite) {
  for (const Timing timing : kTimings) {
    ProductLayer layer = make(linear(24, 20, 1), timing, 8, 1, 2);
    layer.plain = true;
    for (double& w : layer.values) w = 3e38;
    check(layer, "large");
  }
}

// The largest sums of a digit's products, where they fit 16 bits and where they do not.
TEST(all_inputs_at_their_most) {
  for (int64_t inputs : {64, 1024, 8191, 8192, 9216, 25088, 65793}) {
    for (int count : {1, 15, 127, 128, 255}) {
      for (double weight : {-1.0, 1.0, 127.0 / 128}) {
        if (inputs > 8191 && (count < 255 || weight == 1.0)) continue;
        ProductLayer layer = make(linear(inputs, 17, 3), Timing::kWindow, 255, 0.3, 1);
        std::fill(layer.stored.begin(), layer.stored.end(), static_cast<uint8_t>(count));
        std::fill(layer.values.begin(), layer.values.end(), weight);
        layer.values[0] = 1.0 / 64;
        check(layer, "extremes");
      }
    }
  }
}

// One way at a time, with and without each output.
FUZZ(in) {
  std::optional<ProductLayer> layer = any_layer(in);
  if (!layer) return;
  Neuron& a = layer->args;
  std::vector<float> residual(in.flag() ? a.T * a.neurons : 0);
  for (size_t i = 0; i < residual.size(); ++i) residual[i] = 0.125f * static_cast<float>(i % 17) - 1;
  if (!residual.empty()) {
    a.residual_stored = nullptr;
    a.residual_currents = residual.data();
  }
  if (in.range(0, 7) == 0) layer->scale.front() = NAN;
  if (layer->dtype != DType::kInt8 && !layer->values.empty() && in.range(0, 7) == 0) {
    layer->values[in.range(0, layer->values.size() - 1)] = in.pick({NAN, INFINITY, -INFINITY});
    layer->encoded = encode(layer->values, layer->dtype);
    layer->weights.data = layer->encoded.data();
  }
  a.scale = in.maybe(a.scale);
  a.shift = in.maybe(a.shift);
  const Outputs out(a);
  a.counts = in.maybe(a.counts);
  a.mask = in.maybe(a.mask);
  a.v = in.maybe(a.v);

  const PreparedWeights prepared(layer->geometry, layer->weights);
  if (in.flag()) layer->prepared = prepared.data;
  cpu::run(layer->layer(), cut_for);
  CHECK(agree(a, layer->expected()), "%s", text(*layer).c_str());
}
