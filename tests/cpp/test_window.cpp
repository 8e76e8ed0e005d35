// Window timing: the fused product of counts against a plain simulation that integrates one window and fires in the
// next, step by step. Weights are multiples of 1/64 where results are compared with it, so every sum is exact.
#include "kernels/product/dense.h"
#include "kernels/product/multiply.h"
#include "kernels/product/window.h"
#include "ways.h"

using namespace tandem;
using namespace tandem::test;

namespace {

struct Case {
  Shape shape;
  int32_t T = 8;
  int most = 8;       // of the counts that come in
  double rate = 0.3;  // of inputs that spike at all
  unsigned seed = 1;
  DType dtype = DType::kFloat32;
  double largest = 1;  // of the weights, which are integers for int8
};

ProductLayer window_layer(const Case& c) {
  ProductLayer layer(c.shape, c.T, 0, c.seed);
  std::mt19937 random(c.seed);
  layer.planes.resize(c.shape.batch * c.shape.height * c.shape.width * c.shape.channels);
  for (uint8_t& count : layer.planes) {
    count = static_cast<uint8_t>(random() % 1000 < 1000 * c.rate ? 1 + random() % c.most : 0);
  }
  layer.residual.resize(layer.args.neurons);
  for (uint8_t& count : layer.residual) count = static_cast<uint8_t>(random() % 256);
  layer.dtype = c.dtype;
  if (c.dtype == DType::kInt8) {
    for (double& w : layer.values) w = std::round(w * c.largest);
  }
  layer.args.timing = Timing::kWindow;
  return layer;
}

}  // namespace

TEST(linear_layers) {
  unsigned seed = 0;
  for (int64_t inputs : {0, 1, 63, 64, 130, 700}) {
    for (int64_t outputs : {1, 8, 20, 40}) {
      for (int32_t T : {1, 2, 8, 9, 33, 255}) {
        Case c{linear(inputs, outputs, 1 + seed % 21), T};
        c.most = std::vector<int>{1, 8, 15, 16, 127, 128, 255}[seed % 7];
        c.rate = std::vector<double>{0, 0.1, 0.5, 1}[seed % 4];
        c.dtype = kDTypes[seed % 3];
        c.seed = seed;
        ProductLayer layer = window_layer(c);
        layer.args.gate = static_cast<Gate>(seed % 2);
        layer.plain = seed % 5 == 0;
        ++seed;
        check(layer, "linear");
      }
    }
  }
}

TEST(convolutions) {
  std::mt19937 random(3);
  for (unsigned seed = 0; seed < 60; ++seed) {
    Case c{any_convolution(random)};
    c.T = static_cast<int32_t>(pick(random, {1, 4, 8, 20}));
    c.most = static_cast<int>(pick(random, {1, 8, 15, 255}));
    c.rate = std::vector<double>{0.02, 0.1, 0.5, 1}[seed % 4];
    c.dtype = kDTypes[seed % 3];
    c.seed = seed;
    ProductLayer layer = window_layer(c);
    layer.channels_last = seed % 2 == 0;
    layer.args.gate = static_cast<Gate>(seed % 2);
    check(layer, "convolution");
  }
}

TEST(depthwise_convolutions) {
  for (int64_t channels : {1, 7, 16, 40}) {
    for (int64_t multiplier : {1, 2}) {
      for (const DType dtype : {DType::kFloat32, DType::kInt8}) {
        Case c{image(6, 3, 1, channels, channels * multiplier, channels)};
        c.most = 255;
        c.dtype = dtype;
        c.largest = 127;
        ProductLayer layer = window_layer(c);
        check(layer, "depthwise");
      }
    }
  }
}

TEST(few_bits) {
  for (int64_t inputs : {5, 64, 300, 1500}) {
    for (int64_t outputs : {1, 33, 70}) {
      for (int largest : {7, 127}) {
        Case c{linear(inputs, outputs, 20)};
        c.dtype = DType::kInt8;
        c.largest = largest;
        c.most = inputs % 2 == 0 ? 8 : 255;
        ProductLayer layer = window_layer(c);
        if (largest == 127) layer.values[0] = layer.values[layer.values.size() - 1] = -128;
        check(layer, "few bits");
      }
    }
  }
}

// The largest sums that a digit's products can have: where 16 bits hold them, and where they do not.
TEST(all_inputs_at_their_most) {
  for (int64_t inputs : {64, 1024, 8191}) {
    for (int count : {1, 15, 127, 128, 255}) {
      for (double weight : {-1.0, 1.0, 127.0 / 128}) {
        ProductLayer layer = window_layer({linear(inputs, 17, 3), 255});
        std::fill(layer.planes.begin(), layer.planes.end(), static_cast<uint8_t>(count));
        std::fill(layer.values.begin(), layer.values.end(), weight);
        layer.values[0] = 1.0 / 64;
        check(layer, "extremes");
      }
    }
  }
}

// Each kind of products that the processor has, not only the best one that the layer takes.
TEST(every_kind_of_byte_products) {
  for (int64_t inputs : {63, 700, 1500}) {
    for (int most : {1, 8, 127, 255}) {
      for (const auto& [dtype, largest] : {std::pair{DType::kFloat32, 1.0}, {DType::kInt8, 127.0}}) {
        Case c{linear(inputs, 40, 21), most, most};
        c.dtype = dtype;
        c.largest = largest;
        ProductLayer layer = window_layer(c);
        layer.finish();
        const Layer of = layer.layer();
        const cpu::Prepared prepared(of, false, true, serial_for);
        if (!prepared.has_digits()) return;
        const cpu::Multiplier m(of, prepared, Way::kDense);
        const cpu::Blocks blocks = m.blocks();
        const int width = prepared.tiling().width();
        cpu::BlockInputs in;
        m.load_counts(0, blocks[0], in);
        in.expanded.most = most;
        std::vector<double> sums(blocks[0].rows * width);
        std::vector<float> u(of.geometry.neurons());
        for (int kind = 1; kind <= int(cpu::byte_products()); ++kind) {
          if (kind == int(cpu::ByteProducts::kAvxVnni) && !cpu::has_avx_vnni()) continue;
          for (int64_t i = 0; i < prepared.tiling().tiles_per_group; ++i) {
            cpu::multiply_counts_dense(in.expanded, prepared.columns(0, i), prepared.tiling().registers, sums.data(),
                                       static_cast<cpu::ByteProducts>(kind));
            cpu::write_products(m.tile(0, i, blocks[0]), sums.data(), u.data(), c.shape.outputs);
          }
          for (int64_t n = 0; n < of.geometry.neurons(); ++n) {
            CHECK(u[n] == layer.window(n), "%ld inputs, most %d, kind %d, neuron %ld", long(inputs), most, kind,
                  long(n));
          }
        }
      }
    }
  }
}

TEST(inputs_beyond_what_ways_can_take) {
  for (const Shape& shape : {linear(30000, 9), line(8300, 8200, 0, 2, 9)}) {
    ProductLayer layer = window_layer({shape, 8, 8, 0.05});
    check(layer, shape.width == 1 ? "many inputs" : "taps");
  }
}

TEST(residual_currents_and_v_init) {
  for (int64_t v_init_size : {1, 20, 40}) {
    Case c;
    ProductLayer layer = window_layer(c);
    layer.finish();
    std::vector<float> residual(layer.args.neurons);
    for (size_t i = 0; i < residual.size(); ++i) residual[i] = 0.125f * static_cast<float>(i % 17) - 1;
    layer.args.residual_planes = nullptr;
    layer.args.residual_currents = residual.data();
    layer.args.v_init_size = v_init_size;
    const std::vector<PlainNeuron<float>> want = layer.expected();
    for (const Way way : kWays) {
      layer.way = way;
      const Outputs<float> got(layer.args);
      cpu::run(layer.layer(), serial_for);
      CHECK(agree(layer.args, want), "way %d", int(way));
    }
  }
}

TEST(all_ways_have_the_same_bits) {
  for (const Shape& shape : {linear(5, 48, 20), linear(500, 48, 20), image(5, 3, 0, 64, 48)}) {  // four digits, three
    ProductLayer layer = window_layer({shape, 20, 20});
    check_random_weights(layer);
  }
}

// theta c + v = v_init + z where that is exact, and no count falls when z grows.
TEST(counts_grow_with_z_and_lose_nothing) {
  ProductLayer layer = window_layer({linear(100, 64, 50)});
  layer.finish();
  layer.args.scale = layer.args.shift = layer.args.residual_scale = nullptr;
  layer.args.residual_planes = nullptr;
  const Outputs<float> out(layer.args);
  cpu::run(layer.layer(), serial_for);
  std::vector<std::pair<float, int>> counts;
  for (int64_t n = 0; n < layer.args.neurons; ++n) {
    const float start = layer.v_init[n] + layer.window(n);
    CHECK(start == static_cast<float>(out.planes[n]) + out.v[n], "neuron %ld", long(n));
    counts.emplace_back(start, out.planes[n]);
  }
  std::sort(counts.begin(), counts.end());
  for (size_t i = 1; i < counts.size(); ++i) CHECK(counts[i - 1].second <= counts[i].second, "%g", counts[i].first);
  CHECK(counts.front().second == 0 && counts.back().second == layer.T, "silent and saturated neurons");
}

TEST(prepared_weights_and_none) {
  ProductLayer layer = window_layer({linear(100, 33)});
  layer.finish();
  check_prepared(layer);
  ProductLayer none = window_layer({linear(100, 33, 0)});
  none.finish();
  const Outputs<float> nothing(none.args);
  cpu::run(none.layer(), threads_for);
}

TEST(sums_beyond_float_are_infinite_and_nan_never_fires) {
  const Case c{linear(24, 20, 1)};
  ProductLayer layer = window_layer(c);
  layer.plain = true;
  for (double& w : layer.values) w = 3e38;
  std::fill(layer.planes.begin(), layer.planes.end(), uint8_t{8});
  check(layer, "large");
  ProductLayer bad = window_layer(c);
  bad.finish();
  std::fill(bad.scale.begin(), bad.scale.end(), std::nanf(""));
  const Outputs<float> got(bad.args);
  cpu::run(bad.layer(), serial_for);
  CHECK(agree(bad.args, bad.expected()), "nan");
  for (const uint8_t count : got.planes) CHECK(count == 0, "nan fired");
}

TEST(a_weight_that_is_not_finite_makes_the_currents_of_its_output_nan) {
  for (const int64_t groups : {1, 40}) {
    Case c{linear(40, 40)};
    c.shape.groups = groups;
    ProductLayer layer = window_layer(c);
    check_not_finite(layer, INFINITY);
  }
}

TEST(batch_norm) {
  for (const Shape& shape : {linear(70, 37, 9), image(5, 3, 0, 70, 37)}) {
    ProductLayer layer = window_layer({shape});
    check_normalised(layer, {std::begin(kWays), std::end(kWays)}, "window");
  }
}
