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

// Compares the outputs of every way.
template <class Expect>
void run_ways(ProductLayer& layer, ParallelFor parallel, const Expect& expect) {
  for (const Way& way : kWays) {
    layer.way = way;
    const Outputs<float> got(layer.args);
    cpu::run(layer.layer(), parallel);
    expect(got, text(way).c_str());
  }
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
      {"a long line, which is cut", line(1000, 5, 2, 5, 8), 8, 0.2},
  };
  for (const auto& c : cases) {
    for (const Timing timing : kTimings) {
      ProductLayer layer = make(c.shape, timing, c.T, c.rate, 7);
      check(layer, c.name);
    }
  }
}

// A pixel of a group takes as many bytes as one of all channels.
TEST(groups_of_64_channels) {
  for (const Timing timing : kTimings) {
    for (const int64_t groups : {2, 4, 32}) {
      Geometry shape = image(16, 1, 0, 64, 64, groups);
      for (const int64_t lines : {1, 3}) {
        shape.kernel[0] = lines;
        ProductLayer layer = make(shape, timing, 8, 0.3, 7);
        check(layer, "groups of 64 channels");
        layer.make_integers(7);
        check(layer, "groups of 64 channels, few bits");
      }
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
      layer.planes[k] = k <= positive ? 0xff : 0;
      layer.planes[inputs + k] = k <= positive ? 0 : 0xff;
      layer.planes[2 * inputs + k] = 0xff;
    }
    check(layer, "the ends of int16");
  }
}

// Few-bit weights of sizes that no vector divides are the nearest integers, and of steps the best share is taken.
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
      for (int64_t row = 0; row < rows; ++row) {
        const float* w = weights.data() + row * size;
        const auto nearest = [&](int64_t k, float step) {
          return std::clamp<float>(std::nearbyint(w[k] / step), -largest, largest);
        };
        const auto error = [&](float step) {
          double sum = 0;
          for (int64_t k = 0; k < size; ++k) sum += std::pow(w[k] - step * nearest(k, step), 2);
          return sum;
        };
        float peak = 0;
        for (int64_t k = 0; k < size; ++k) {
          peak = std::max(peak, std::abs(w[k]));
          CHECK(q[row * size + k] == nearest(k, steps[row]), "%d, %ld weights", largest, long(size));
        }
        const float whole = peak / static_cast<float>(largest);
        CHECK(largest <= 3 || steps[row] == whole, "%d, %ld weights: step %g", largest, long(size), steps[row]);
        for (const float share : {1.f, 0.75f, 0.5f, 0.375f, 0.25f}) {
          CHECK(largest > 3 || error(steps[row]) <= 1.001 * error(share * whole) + 1e-9, "%d, %ld weights: share %g",
                largest, long(size), share);
        }
      }
    }
  }
}

TEST(blocks_of_bytes) {
  for (int64_t channels : {128, 130, 1200}) {
    for (bool channels_last : {false, true}) {
      Geometry shape = channels < 1000 ? image(3, 3, 0, channels, 20) : linear(channels);
      shape.batch = 3;
      ProductLayer layer(shape, 11, 0.5, 3);
      layer.make_integers(127);
      layer.channels_last = channels_last;
      check(layer, "blocks of bytes");
      const auto weights = static_cast<int64_t>(layer.values.size());
      const bool bytes = cpu::prepared_size(layer.geometry, layer.weights) < 4 * weights;
      CHECK(bytes == (cpu::capability() == cpu::Capability::kV4), "%ld channels", long(channels));
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

// Sums are exact and rounded once, so random weights have the same bits in every order.
TEST(order_of_additions_does_not_matter) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal(0, 0.1);
  for (const Timing timing : kTimings) {
    for (const Geometry& shape : {linear(5, 48, 20), linear(500, 48, 40), image(5, 3, 0, 64, 48)}) {
      ProductLayer layer = make(shape, timing, 20, 0.2, 4, 20);
      for (double& w : layer.values) w = static_cast<float>(normal(random));
      layer.finish();
      layer.way = {Algorithm::kLists, 1};
      const Outputs<float> want(layer.args);
      cpu::run(layer.layer(), serial_for);
      run_ways(layer, threads_for, [&](const auto& got, const char* way) { CHECK(got == want, "%s", way); });
    }
  }
}

// A weight of output 3 is not finite: only that output's currents are NaN, and all samples are marked.
TEST(an_output_with_a_weight_that_is_not_finite_has_nan_at_every_step) {
  for (const Timing timing : kTimings) {
    for (const auto& [groups, bad] : {std::pair{1, NAN}, {1, INFINITY}, {40, INFINITY}}) {
      Geometry shape = linear(40, 40);
      shape.groups = groups;
      ProductLayer layer = make(shape, timing, 8, 0.2, 2);
      layer.values[layer.values.size() / 40 * 3] = bad;
      layer.finish();
      std::vector<float> u(layer.args.neurons), flags(shape.batch);
      layer.args.bad = flags.data();
      layer.args.sample = 40;
      run_ways(layer, threads_for, [&](const auto& got, const char* way) {
        cpu::window_product(layer.layer(), u.data(), serial_for);
        for (int64_t n = 0; n < layer.args.neurons; ++n) {
          CHECK(std::isnan(got.v[n]) == (n % 40 == 3), "v[%ld], %g, %s", long(n), double(bad), way);
          CHECK(std::isnan(u[n]) == (n % 40 == 3), "u[%ld], %g, %s", long(n), double(bad), way);
        }
        for (float flag : flags) CHECK(std::isnan(flag), "%g, %s", double(bad), way);
        flags.assign(shape.batch, 0.f);
      });
    }
  }
}

// The largest sums of a digit's products, where they fit 16 bits and where they do not.
TEST(all_inputs_at_their_most) {
  for (int64_t inputs : {64, 1024, 8191}) {
    for (int count : {1, 15, 127, 128, 255}) {
      for (double weight : {-1.0, 1.0, 127.0 / 128}) {
        ProductLayer layer = make(linear(inputs, 17, 3), Timing::kWindow, 255, 0.3, 1);
        std::fill(layer.planes.begin(), layer.planes.end(), static_cast<uint8_t>(count));
        std::fill(layer.values.begin(), layer.values.end(), weight);
        layer.values[0] = 1.0 / 64;
        check(layer, "extremes");
      }
    }
  }
}

// Every kind of byte product that the processor supports, not only the one that the layer would use.
TEST(every_kind_of_byte_products) {
  for (int64_t inputs : {63, 700, 1500}) {
    for (int most : {1, 8, 127, 255}) {
      for (const bool integers : {false, true}) {
        ProductLayer layer = make(linear(inputs, 40, 21), Timing::kWindow, most, 0.3, 1, most);
        if (integers) layer.make_integers(127);
        layer.finish();
        const std::vector<PlainNeuron<float>> want = layer.expected();
        for (int kind = 1; kind <= int(cpu::ByteProducts::kAmx); ++kind) {
          const Outputs<float> got(layer.args);
          if (!run_digits(layer.layer(), static_cast<cpu::ByteProducts>(kind))) continue;
          CHECK(agree(layer.args, want), "%ld inputs, most %d, kind %d", long(inputs), most, kind);
        }
      }
    }
  }
}

// One way at a time, with and without each output.
FUZZ(in) {
  std::optional<ProductLayer> layer = any_layer(in);
  if (!layer) return;
  Neuron<float>& a = layer->args;
  std::vector<float> residual(in.flag() ? a.T * a.neurons : 0);
  for (size_t i = 0; i < residual.size(); ++i) residual[i] = 0.125f * static_cast<float>(i % 17) - 1;
  if (!residual.empty()) {
    a.residual_planes = nullptr;
    a.residual_currents = residual.data();
  }
  if (in.range(0, 7) == 0) layer->scale.front() = NAN;
  a.scale = in.maybe(a.scale);
  a.shift = in.maybe(a.shift);
  const Outputs<float> out(a);
  a.counts = in.maybe(a.counts);
  a.mask = in.maybe(a.mask);
  a.v = in.maybe(a.v);

  const PreparedWeights prepared(layer->geometry, layer->weights);
  if (in.flag()) layer->prepared = prepared.data;
  cpu::run(layer->layer(), cut_for);
  CHECK(agree(a, layer->expected()), "%s", text(*layer).c_str());
}
