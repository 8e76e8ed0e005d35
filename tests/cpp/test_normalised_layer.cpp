// The product with batch normalisation where the sums of all its tiles do not fit into the cache at once.
#include "check.h"
#include "norm_layer.h"

using namespace tandem;
using namespace tandem::test;

namespace {

void check(const Shape& s, int32_t T, const char* name) {
  ProductLayer layer(s, T, 0.3, 1);
  layer.finish();
  const std::vector<float> gamma = multiples(s.outputs, 0.5f, 9), beta = multiples(s.outputs, 0.25f, 5);
  std::vector<float> product(layer.args.neurons), mean(s.outputs), var(s.outputs);
  const BatchNorm<float> affine{nullptr, 1, gamma.data(), beta.data(), 1e-5f};
  const LayerNorm norm{affine, product.data(), mean.data(), var.data()};
  const PlainNorm want(layer, norm);
  layer.args.scale = want.scale.data();
  layer.args.shift = want.shift.data();
  const std::vector<PlainNeuron<float>> neurons = layer.expected();
  for (const Way way : {Way::kLists1, Way::kMatrixUnit, Way::kPlain}) {
    for (ParallelFor parallel : {serial_for, threads_for}) {
      layer.way = way;
      std::fill(product.begin(), product.end(), -77.f);
      const Outputs<float> out(layer.args);
      cpu::run_normalised(layer.layer(), norm, parallel);
      CHECK(product == want.product && mean == want.mean && var == want.var, "%s, way %d", name, int(way));
      CHECK(agree(layer.args, neurons), "%s, way %d", name, int(way));
    }
  }
}

}  // namespace

// 32 planes of 32 outputs take 32 KB a row: of eight rows four tiles are kept at a time, of forty not one.
TEST(a_few_tiles_at_a_time) {
  for (int64_t batch : {8, 40}) {
    Shape s;
    s.batch = batch;
    s.channels = 8;
    s.outputs = 9 * 32 + 5;
    check(s, 255, "linear");
    s.groups = 2;
    s.outputs = 2 * 5 * 32;
    check(s, 255, "two groups");
  }
}

// Kept where there are a few rows, else multiplied twice; the product of the window in pieces either way.
TEST(long_windows) {
  for (int32_t T : {256, 300, 1000}) {
    for (int64_t batch : {2, 40}) {
      Shape s;
      s.batch = batch;
      s.channels = 12;
      s.outputs = 20;
      check(s, T, "long");
    }
  }
}

TEST(blocks_of_an_image) {
  Shape s;
  s.height = s.width = 9;
  s.channels = 3;
  s.outputs = 150;
  for (int i = 0; i < 2; ++i) {
    s.kernel[i] = 3;
    s.padding[i] = 1;
  }
  check(s, 33, "image");
}
