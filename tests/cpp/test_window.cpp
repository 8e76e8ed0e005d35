// Window timing: the fused product of counts against a plain simulation that integrates one window and fires in the
// next, step by step. Weights are multiples of 1/64 in these comparisons, so all sums are exact.
#include "kernels/product/product.h"
#include "kernels/product/window.h"
#include "product_layer.h"

using namespace tandem;
using namespace tandem::test;

namespace {

ProductLayer window_layer(const Geometry& g, int32_t T = 8, int most = 8, double rate = 0.3) {
  ProductLayer layer(g, T, 0, 1);
  layer.count(rate, most, 1);
  return layer;
}

}  // namespace

// The largest sums of a digit's products, where they fit 16 bits and where they do not.
TEST(all_inputs_at_their_most) {
  for (int64_t inputs : {64, 1024, 8191}) {
    for (int count : {1, 15, 127, 128, 255}) {
      for (double weight : {-1.0, 1.0, 127.0 / 128}) {
        ProductLayer layer = window_layer(linear(inputs, 17, 3), 255);
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
        ProductLayer layer = window_layer(linear(inputs, 40, 21), most, most);
        if (integers) layer.make_integers(127);
        layer.finish();
        const Layer of = layer.layer();
        if (!cpu::has_digits(of.geometry)) return;
        const cpu::Prepared prepared(of, Algorithm::kDigits, serial_for);
        const cpu::Digits digits(of, prepared);
        const cpu::Blocks blocks(of.geometry, digits.most_rows());
        const int width = prepared.tiling().width();
        cpu::BlockInputs in;
        digits.load(0, blocks[0], in, serial_for);
        in.expanded.most = most;
        std::vector<double> sums(blocks[0].rows * width);
        std::vector<float> u(of.geometry.neurons());
        for (int kind = 1; kind <= int(cpu::ByteProducts::kAmx); ++kind) {
          const auto by = static_cast<cpu::ByteProducts>(kind);
          if (!cpu::has(by)) continue;
          for (int64_t i = 0; i < prepared.tiling().tiles_per_group; ++i) {
            cpu::multiply_counts(in.expanded, prepared.columns(0, i), prepared.tiling().registers, sums.data(), by);
            cpu::write_products(digits.tile({0, i, blocks[0]}), sums.data(), u.data(), of.geometry.outputs);
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
