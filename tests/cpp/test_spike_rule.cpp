// The rules by which a product is cut up, at their borders.
#include <cstring>

#include "check.h"
#include "kernels/cpu/spike_lists.h"
#include "kernels/cpu/spike_rule.h"

using namespace tandem;
using namespace tandem::cpu;

namespace {

SpikeProduct linear(int64_t inputs, int64_t outputs) {
  SpikeProduct product{};
  product.batch = product.height = product.width = product.groups = 1;
  product.channels = inputs;
  product.outputs = outputs;
  for (int i = 0; i < 2; ++i) product.kernel[i] = product.stride[i] = product.dilation[i] = 1;
  return product;
}

SpikeProduct conv3x3(int64_t channels, int64_t outputs) {
  SpikeProduct product = linear(channels, outputs);
  product.height = product.width = 32;
  for (int i = 0; i < 2; ++i) {
    product.kernel[i] = 3;
    product.padding[i] = 1;
  }
  return product;
}

}  // namespace

TEST(narrow_tiles_for_few_outputs) {
  CHECK(Tiling(linear(784, 16)).registers == 1, "16 outputs");
  CHECK(Tiling(linear(784, 17)).registers == 2, "17 outputs");
}

TEST(k_blocks) {
  CHECK(Tiling(linear(1024, 10)).blocks == 1, "1024 inputs");
  CHECK(Tiling(linear(1025, 10)).blocks == 2, "1025 inputs");
  for (const SpikeProduct& product :
       {linear(0, 3), linear(1, 3), linear(1000000, 3), conv3x3(1, 3), conv3x3(171, 3), conv3x3(2048, 3)}) {
    const Tiling tiling(product);
    int64_t channels = 0, offset = 0;
    for (int64_t q = 0; q < tiling.blocks; ++q) {
      const int64_t block = tiling.last_channel(product, q) - tiling.first_channel(q);
      CHECK(product.taps() * block <= kMaxInputs, "block %ld of %ld inputs", long(q), long(product.inputs()));
      CHECK(tiling.block_offset(product, q) == offset, "block %ld of %ld inputs", long(q), long(product.inputs()));
      channels += block;
      offset += (product.taps() * block + 1) * tiling.width();
    }
    CHECK(channels == product.channels, "%ld channels", long(product.channels));
    CHECK(offset + tiling.width() == tiling.tile_size, "%ld inputs", long(product.inputs()));
  }
}

TEST(rows_at_a_time) {
  CHECK(block_rows(linear(800, 10), Tiling(linear(800, 10)), 1) == 256, "one plane");
  CHECK(block_rows(linear(2000, 10), Tiling(linear(2000, 10)), 1) == 64, "K-blocks");
  CHECK(block_rows(linear(1000000, 10), Tiling(linear(1000000, 10)), 32) == 1, "memory");
}

TEST(density_counts_patterns) {
  const std::vector<uint8_t> bytes = {0x00, 0x01, 0x03, 0x0f, 0x11, 0xff, 0x80, 0x00};
  const Density density = Density::measure(bytes.data(), 8);
  CHECK(density.adds[0] == 18 / 8.0, "%g", density.adds[0]);
  CHECK(density.adds[1] == 11 / 8.0, "%g", density.adds[1]);
  CHECK(density.adds[2] == 8 / 8.0, "%g", density.adds[2]);
  CHECK(Density::measure(bytes.data(), 0).adds[0] == 0, "nothing to measure");

  // A quarter of the channels always fires: whatever the sample skips, it has to see them in proportion.
  for (int64_t channels : {24, 64, 128, 256, 1024}) {
    std::vector<uint8_t> image(int64_t{1} << 20);
    for (size_t i = 0; i < image.size(); ++i) image[i] = static_cast<int64_t>(i) % channels < channels / 4 ? 0xff : 0;
    const double adds = Density::measure(image.data(), static_cast<int64_t>(image.size())).adds[2];
    CHECK(adds > 0.4 && adds < 0.6, "%ld channels: %g", long(channels), adds);
  }
}

TEST(sparse_or_narrow_layers_take_steps_one_by_one) {
  const Density sparse{{0.24, 0.24, 0.23}}, low{{0.8, 0.76, 0.62}}, middle{{1.43, 1.23, 0.77}}, dense{{4, 3, 1.9}};
  CHECK(choose_width(linear(800, 800), sparse, false) == 1, "sparse");
  CHECK(choose_width(linear(800, 800), middle, false) == 4, "wide");
  CHECK(choose_width(conv3x3(16, 128), low, false) == 1, "narrow");
  CHECK(choose_width(conv3x3(64, 64), dense, false) == 4, "dense");
}

TEST(the_matrix_unit_takes_dense_layers_of_many_rows) {
  const Density low{{0.8, 0.76, 0.62}}, dense{{4, 3, 1.9}};
  SpikeProduct many = linear(800, 800), line = conv3x3(64, 64);
  many.batch = 128;
  CHECK(choose_width(many, dense, true) == kDense, "dense");
  CHECK(choose_width(many, dense, false) == 4, "no matrix unit");
  CHECK(choose_width(linear(800, 800), dense, true) == 4, "one row");
  CHECK(choose_width(line, low, true) == kDense, "an image");
  line.width = 3;
  CHECK(dense_cost(line) > dense_cost(conv3x3(64, 64)), "three rows where a tile has sixteen");
}

// Equal weights that add up to one: with 31 bits for their sum, the largest takes 31 - log2(inputs).
TEST(units_are_larger_where_that_saves_a_digit) {
  const struct {
    int64_t inputs;
    float unit;
  } cases[] = {{16, 0x1p-29f}, {32, 0x1p-27f}, {64, 0x1p-28f}, {128, 0x1p-29f}, {256, 0x1p-29f}};
  for (const auto& c : cases) {
    SpikeProduct product = linear(c.inputs, 16);
    const std::vector<float> weights(c.inputs * 16, 1.f / static_cast<float>(c.inputs));
    product.weight = weights.data();
    std::vector<int32_t> packed(packed_size(product) + 16);
    int32_t* aligned = packed.data();
    while (reinterpret_cast<uintptr_t>(aligned) % 64 != 0) ++aligned;
    CHECK(pack_weights(product, aligned, serial_for), "%ld inputs", long(c.inputs));
    const Tiling tiling(product);
    float unit;
    std::memcpy(&unit, aligned + tiling.tile_size - tiling.width(), sizeof(unit));
    CHECK(unit == c.unit, "%ld inputs: %g", long(c.inputs), unit);
    CHECK(static_cast<float>(aligned[0]) * unit == weights[0], "%ld inputs: %d", long(c.inputs), aligned[0]);
  }
}

TEST(rows_expanded_at_a_time) {
  CHECK(dense_rows(linear(800, 10), 1) == 128, "one plane");
  CHECK(dense_rows(linear(4096, 10), 1) == 32, "memory");
  CHECK(dense_rows(linear(8000, 10), 32) == 16, "a tile has sixteen");
}

// The choice changes exactly where the costs cross.
TEST(the_cheapest_width_wins) {
  for (const SpikeProduct& product : {linear(800, 800), linear(256, 32), conv3x3(64, 64), conv3x3(128, 256)}) {
    for (double nibbles = 0; nibbles <= 2; nibbles += 0.01) {
      const Density density{{1.9 * nibbles, 1.5 * nibbles, nibbles}};
      const int chosen = choose_width(product, density, false);
      for (int width : {1, 2, 4}) {
        CHECK(width_cost(product, chosen, density) <= width_cost(product, width, density), "%g nibbles", nibbles);
      }
    }
  }
}
