// The rules by which a product is cut up, at their borders.
#include <cmath>
#include <cstring>

#include "check.h"
#include "kernels/cpu/spike_lists.h"
#include "kernels/cpu/spike_rule.h"
#include "product_layer.h"

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
    const Density seen = Density::measure(image.data(), static_cast<int64_t>(image.size()));
    for (int i = 0; i < 3; ++i) {
      const double want = (8 >> i) / 4.0;
      CHECK(std::abs(seen.adds[i] - want) < 0.2 * want, "%ld channels: %g", long(channels), seen.adds[i]);
    }
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
    const test::PackedWeights packed(product);
    CHECK(packed.finite, "%ld inputs", long(c.inputs));
    const Tiling tiling(product);
    float unit;
    std::memcpy(&unit, packed.data + tiling.tile_size - tiling.width(), sizeof(unit));
    CHECK(unit == c.unit, "%ld inputs: %g", long(c.inputs), unit);
    CHECK(static_cast<float>(packed.data[0]) * unit == weights[0], "%ld inputs: %d", long(c.inputs), packed.data[0]);
  }
}

TEST(rows_expanded_at_a_time) {
  CHECK(dense_rows(linear(800, 10), 1) == 128, "one plane");
  CHECK(dense_rows(linear(4096, 10), 1) == 32, "memory");
  CHECK(dense_rows(linear(8000, 10), 32) == 16, "a tile has sixteen");
}

// Sparse to dense, the choice changes, and it does so where the costs of the two widths cross.
TEST(the_choice_changes_where_costs_cross) {
  for (const SpikeProduct& product : {linear(800, 800), linear(256, 32), conv3x3(64, 64), conv3x3(128, 256)}) {
    for (bool matrix_unit : {false, true}) {
      const auto density = [](double nibbles) { return Density{{1.9 * nibbles, 1.5 * nibbles, nibbles}}; };
      const auto choice = [&](double nibbles) { return choose_width(product, density(nibbles), matrix_unit); };
      const auto cost = [&](int width, double nibbles) {
        return width == kDense ? dense_cost(product) : width_cost(product, width, density(nibbles));
      };
      int changes = 0;
      for (int i = 0; i < 200; ++i) {
        double low = 0.01 * i, high = 0.01 * (i + 1);
        const int before = choice(low);
        for (int width : {1, 2, 4}) CHECK(cost(before, low) <= cost(width, low), "%g nibbles, width %d", low, width);
        if (choice(high) == before) continue;
        ++changes;
        for (int step = 0; step < 60; ++step) {
          const double middle = (low + high) / 2;
          (choice(middle) == before ? low : high) = middle;
        }
        const double left = cost(before, high), right = cost(choice(high), high);
        CHECK(right < left && left < (1 + 1e-9) * right, "%g nibbles: %g and %g", high, left, right);
      }
      CHECK(changes > 0, "%ld inputs, matrix unit %d", long(product.inputs()), int(matrix_unit));
    }
  }
}

// Each term of a cost grows with what it stands for, and with nothing else.
TEST(what_lists_cost) {
  const auto cost = [](const SpikeProduct& product, int width, double adds) {
    Density density{{-1, -1, -1}};
    density.adds[width == 4 ? 2 : width - 1] = adds;  // of this width, and of no other
    return width_cost(product, width, density);
  };
  for (int width : {1, 2, 4}) {
    const double list = cost(linear(64, 0), width, 1);  // 64 inputs are compared at once
    CHECK(list > 0 && cost(linear(1, 0), width, 1) == list && cost(linear(65, 0), width, 1) == 2 * list, "%d", width);
    CHECK(list * runs_per_plane(1) == cost(linear(64, 0), 1, 1) * runs_per_plane(width), "runs of width %d", width);
    const struct {
      int64_t channels, stride, columns_and_copies;
    } cases[] = {{64, 1, 3 + 3}, {64, 2, 2 * 3 + 3}, {64, 3, 9}, {65, 1, 2 * 3 + 3}, {65, 3, 2 * 9}};
    for (const auto& c : cases) {
      SpikeProduct product = conv3x3(c.channels, 0);
      product.stride[0] = product.stride[1] = c.stride;
      CHECK(cost(product, width, 1) == c.columns_and_copies * list, "%ld channels, stride %ld", long(c.channels),
            long(c.stride));
    }

    const double fold = cost(linear(64, 16), width, 0) - cost(linear(64, 0), width, 0);
    CHECK(fold > 0 && cost(linear(64, 48), width, 0) - list == 3 * fold, "three tiles of width %d", width);
    const auto of_block = [&](int64_t blocks) {
      const int64_t inputs = 1024 * blocks;
      return cost(linear(inputs, 16), width, 0) - cost(linear(inputs, 0), width, 0) - fold;
    };
    CHECK(of_block(1) == 0 && of_block(2) > 0 && of_block(2) < fold, "a K-block adds up, the last one fires, too");
    CHECK(of_block(3) == 2 * of_block(2), "three K-blocks");
    CHECK(cost(linear(64, 48), width, 2) - cost(linear(64, 48), width, 0) == 3 * 2 * 64, "additions");
  }
}

TEST(what_the_matrix_unit_costs) {
  const auto near = [](double a, double b) { return a > 0 && std::abs(a - b) < 1e-9 * a; };
  const auto cost = [](SpikeProduct product, int64_t rows, bool packed = true) {
    const int32_t weights = 0;
    product.batch = rows;
    if (packed) product.packed = &weights;
    return dense_cost(product);
  };
  const double expand = cost(linear(64, 0), 16);
  CHECK(near(cost(linear(640, 0), 16), 10 * expand), "channels");
  CHECK(near(cost(conv3x3(64, 0), 1), 3 * expand), "lines that rows share");

  // Of a tile: what 64 inputs take, and what firing does.
  const auto tile = [&](int64_t inputs, int64_t outputs, int64_t rows) {
    return cost(linear(inputs, outputs), rows) - cost(linear(inputs, 0), rows);
  };
  const double multiply = tile(128, 16, 16) - tile(64, 16, 16), fire = tile(64, 16, 16) - multiply;
  CHECK(near(tile(640, 16, 16), 10 * multiply + fire) && fire > 0, "inputs");
  CHECK(near(tile(640, 48, 16), 3 * tile(640, 16, 16)), "outputs");
  CHECK(near(tile(64, 16, 8), 2 * multiply + fire), "eight rows where there is room for sixteen");

  const auto pack = [&](int64_t inputs, int64_t outputs, int64_t rows) {
    return cost(linear(inputs, outputs), rows, false) - cost(linear(inputs, outputs), rows);
  };
  CHECK(near(pack(128, 32, 16), 4 * pack(64, 16, 16)) && near(pack(64, 16, 16), 2 * pack(64, 16, 32)), "weights");
}
