// The way of a layer: tiles, blocks, costs and the choice of algorithm, at the borders between two ways.
#include <cmath>

#include "kernels/product/choose.h"
#include "kernels/product/digits/digits.h"
#include "kernels/product/lists.h"
#include "kernels/product/pack.h"
#include "kernels/product/tiling.h"
#include "product_layer.h"

using namespace tandem;
using namespace tandem::cpu;

namespace {

Geometry linear(int64_t inputs, int64_t outputs) { return test::linear(inputs, outputs, 1); }

Geometry conv3x3(int64_t channels, int64_t outputs) {
  Geometry geometry = test::image(32, 3, 1, channels, outputs);
  geometry.batch = 1;
  return geometry;
}

constexpr int kDigits = 0;  // beside the steps of a pattern

// The cost of lists of `steps`, or of digits on the matrix unit.
double cost_of(const Geometry& geometry, int steps, const Density& density) {
  return steps == kDigits ? steps_cost(geometry, false, ByteProducts::kAmx)
                          : lists_cost(geometry, steps, density, kCompressedLists);
}

int cheapest(const Geometry& geometry, const Density& density, bool matrix_unit) {
  const int steps = cheapest_steps(geometry, density, kCompressedLists);
  return matrix_unit && cost_of(geometry, kDigits, density) < cost_of(geometry, steps, density) ? kDigits : steps;
}

}  // namespace

TEST(wide_tiles) {
  CHECK(Tiling(linear(784, 16)).registers == 1, "16 outputs");
  CHECK(Tiling(linear(784, 17)).registers == (capability() == Capability::kV4 ? 2 : 1), "17 outputs");
}

TEST(k_blocks) {
  CHECK(Tiling(linear(2048, 10)).blocks == 1, "2048 inputs");
  CHECK(Tiling(linear(2049, 10)).blocks == 2, "2049 inputs");
  for (const Geometry& geometry :
       {linear(0, 3), linear(1, 3), linear(1000000, 3), conv3x3(1, 3), conv3x3(171, 3), conv3x3(2048, 3)}) {
    const Tiling tiling(geometry);
    int64_t channels = 0, offset = 0;
    for (int64_t q = 0; q < tiling.blocks; ++q) {
      const int64_t block = tiling.last_channel(q) - tiling.first_channel(q);
      CHECK(geometry.taps() * block <= kMaxInputs, "block %ld of %ld inputs", long(q), long(geometry.inputs()));
      CHECK(tiling.first_row(q) * tiling.width() == offset, "block %ld of %ld inputs", long(q),
            long(geometry.inputs()));
      channels += block;
      offset += (geometry.taps() * block + 1) * tiling.width();
    }
    CHECK(channels == geometry.channels, "%ld channels", long(geometry.channels));
    CHECK(offset == tiling.tile_size, "%ld inputs", long(geometry.inputs()));
  }
}

TEST(rows_at_a_time) {
  CHECK(listed_rows(linear(800, 10), Tiling(linear(800, 10)), 1) == 256, "one plane");
  CHECK(listed_rows(linear(3000, 10), Tiling(linear(3000, 10)), 1) == 64, "K-blocks");
  CHECK(listed_rows(linear(1000000, 10), Tiling(linear(1000000, 10)), 32) == 1, "memory");
}

TEST(density_counts_patterns) {
  const std::vector<uint8_t> bytes = {0x00, 0x01, 0x03, 0x0f, 0x11, 0xff, 0x80, 0x00};
  const Density density = Density::measure(bytes.data(), 8);
  CHECK(density.adds[0] == 18 / 8.0, "%g", density.adds[0]);
  CHECK(density.adds[1] == 11 / 8.0, "%g", density.adds[1]);
  CHECK(density.adds[2] == 8 / 8.0, "%g", density.adds[2]);
  CHECK(Density::measure(bytes.data(), 0).adds[0] == 0, "nothing to measure");

  // A quarter of the channels always fires: the sample must contain them in proportion.
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
  CHECK(cheapest(linear(800, 800), sparse, false) == 1, "sparse");
  CHECK(cheapest(linear(800, 800), middle, false) == 4, "wide");
  CHECK(cheapest(conv3x3(16, 128), low, false) == 1, "narrow");
  CHECK(cheapest(conv3x3(64, 64), dense, false) == 4, "dense");
}

TEST(the_matrix_unit_takes_dense_layers_of_many_rows) {
  const Density low{{0.8, 0.76, 0.62}}, dense{{4, 3, 1.9}};
  Geometry many = linear(800, 800), line = conv3x3(64, 64);
  many.batch = 128;
  CHECK(cheapest(many, dense, true) == kDigits, "dense");
  CHECK(cheapest(many, dense, false) == 4, "no matrix unit");
  CHECK(cheapest(linear(800, 800), dense, true) == 4, "one row");
  CHECK(cheapest(line, low, true) == kDigits, "an image");
  line.width = 3;
  CHECK(steps_cost(line, false, ByteProducts::kAmx) > steps_cost(conv3x3(64, 64), false, ByteProducts::kAmx),
        "three rows where a tile has sixteen");
}

// Equal weights with the sum 1: with 31 bits for their sum, the largest has 31 - log2(inputs) bits.
TEST(units_are_larger_where_that_saves_a_digit) {
  const struct {
    int64_t inputs;
    float unit;
  } cases[] = {{16, 0x1p-29f}, {32, 0x1p-27f}, {64, 0x1p-28f}, {128, 0x1p-29f}, {256, 0x1p-29f}};
  for (const auto& c : cases) {
    Geometry geometry = linear(c.inputs, 16);
    const std::vector<float> weights(c.inputs * 16, 1.f / static_cast<float>(c.inputs));
    const Tiling tiling(geometry);
    std::vector<float> units(tiling.width());
    std::vector<int32_t> tile(tiling.tile_size);
    pack({weights.data(), DType::kFloat32, false}, {tiling, units.data(), tile.data(), nullptr, nullptr}, serial_for);
    CHECK(units[0] == c.unit, "%ld inputs: %g", long(c.inputs), units[0]);
    CHECK(static_cast<float>(tile[0]) * units[0] == weights[0], "%ld inputs: %d", long(c.inputs), tile[0]);
  }
}

TEST(rows_expanded_at_a_time) {
  CHECK(expanded_rows(linear(800, 10), 8) == 128, "one plane");
  CHECK(expanded_rows(linear(4096, 10), 8) == 32, "memory");
  CHECK(expanded_rows(linear(8000, 10), 256) == 16, "a tile has sixteen");
}

// From sparse to dense inputs the choice changes, exactly where the costs of the two widths cross.
TEST(the_choice_changes_where_costs_cross) {
  for (const Geometry& geometry : {linear(800, 800), linear(256, 32), conv3x3(64, 64), conv3x3(128, 256)}) {
    for (bool matrix_unit : {false, true}) {
      const auto density = [](double nibbles) { return Density{{1.9 * nibbles, 1.5 * nibbles, nibbles}}; };
      const auto choice = [&](double nibbles) { return cheapest(geometry, density(nibbles), matrix_unit); };
      const auto cost = [&](int steps, double nibbles) { return cost_of(geometry, steps, density(nibbles)); };
      int changes = 0;
      for (int i = 0; i < 200; ++i) {
        double low = 0.01 * i, high = 0.01 * (i + 1);
        const int before = choice(low);
        for (const int steps : {1, 2, 4}) {
          CHECK(cost(before, low) <= cost(steps, low), "%g nibbles, %d steps", low, steps);
        }
        if (choice(high) == before) continue;
        ++changes;
        for (int step = 0; step < 60; ++step) {
          const double middle = (low + high) / 2;
          (choice(middle) == before ? low : high) = middle;
        }
        const double left = cost(before, high), right = cost(choice(high), high);
        CHECK(right < left && left < (1 + 1e-9) * right, "%g nibbles: %g and %g", high, left, right);
      }
      CHECK(changes > 0, "%ld inputs, matrix unit %d", long(geometry.inputs()), int(matrix_unit));
    }
  }
}

// Each term of a cost depends on its own quantity only.
TEST(what_lists_cost) {
  const auto cost = [](const Geometry& geometry, int width, double adds) {
    Density density{{-1, -1, -1}};
    density.adds[width == 4 ? 2 : width - 1] = adds;  // of this width only
    return lists_cost(geometry, width, density, kCompressedLists);
  };
  for (int width : {1, 2, 4}) {
    const double list = cost(linear(64, 0), width, 1);  // 64 inputs are compared at once
    CHECK(list > 0 && cost(linear(1, 0), width, 1) == list && cost(linear(65, 0), width, 1) == 2 * list, "%d", width);
    CHECK(list * runs_per_plane(1) == cost(linear(64, 0), 1, 1) * runs_per_plane(width), "runs of width %d", width);
    const struct {
      int64_t channels, stride, columns_and_copies;
    } cases[] = {{64, 1, 3 + 3}, {64, 2, 2 * 3 + 3}, {64, 3, 9}, {65, 1, 2 * 3 + 3}, {65, 3, 2 * 9}};
    for (const auto& c : cases) {
      Geometry geometry = conv3x3(c.channels, 0);
      geometry.stride[0] = geometry.stride[1] = c.stride;
      CHECK(cost(geometry, width, 1) == c.columns_and_copies * list, "%ld channels, stride %ld", long(c.channels),
            long(c.stride));
    }

    const double fold = cost(linear(64, 16), width, 0) - cost(linear(64, 0), width, 0);
    CHECK(fold > 0 && cost(linear(64, 48), width, 0) - list == 3 * fold, "three tiles of width %d", width);
    const auto of_block = [&](int64_t blocks) {
      const int64_t inputs = 2048 * blocks;
      return cost(linear(inputs, 16), width, 0) - cost(linear(inputs, 0), width, 0) - fold;
    };
    CHECK(of_block(1) == 0 && of_block(2) > 0 && of_block(2) < fold, "a K-block adds up, the last one fires, too");
    CHECK(of_block(3) == 2 * of_block(2), "three K-blocks");
    CHECK(cost(linear(64, 48), width, 2) - cost(linear(64, 48), width, 0) == 3 * 2 * 64, "additions");
  }
}

// Additions cost more in narrow vectors, which therefore sort inputs by longer patterns sooner.
TEST(lists_by_a_table_are_of_more_steps) {
  const Density tenth{{0.8, 0.72, 0.59}}, quarter{{2, 1.6, 0.9}};
  const auto steps = [&](const ListCosts& costs, const Density& density) {
    return cheapest_steps(conv3x3(64, 64), density, costs);
  };
  CHECK(steps(kCompressedLists, tenth) == 1, "AVX-512");
  CHECK(steps(kAvx2Lists, tenth) == 1 && steps(kAvx2Lists, quarter) == 4, "AVX2");
  CHECK(steps(kNarrowLists, tenth) == 4, "narrow");
}

TEST(what_the_matrix_unit_costs) {
  const auto near = [](double a, double b) { return a > 0 && std::abs(a - b) < 1e-9 * a; };
  const auto cost = [](Geometry geometry, int64_t rows, bool packed = true) {
    geometry.batch = rows;
    return steps_cost(geometry, packed, ByteProducts::kAmx);
  };
  const double expand = cost(linear(64, 0), 16);
  CHECK(near(cost(linear(640, 0), 16), 10 * expand), "channels");
  CHECK(near(cost(conv3x3(64, 0), 1), 3 * expand), "lines that rows share");

  // The cost of a tile: the share of 64 inputs, and of firing.
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

// Weights of one digit are multiplied as bytes if many inputs are active or the runs of lists would be short.
TEST(products_of_bytes_take_dense_or_narrow_layers) {
  const Density tenth{{0.8, 0.76, 0.69}}, half{{4, 3, 1.88}};
  const auto by_bytes = [](int64_t inputs, const Density& density) {
    Geometry geometry = linear(inputs, 256);
    geometry.batch = 256;
    const int steps = cheapest_steps(geometry, density, kCompressedLists);
    return steps_cost(geometry, true, ByteProducts::kAvx512Vnni) <
           lists_cost(geometry, steps, density, kCompressedLists);
  };
  CHECK(!by_bytes(576, tenth) && by_bytes(576, half), "wide");
  CHECK(by_bytes(64, half), "narrow");
}

// For counts, lists pay if few inputs are active or few rows would share the weights. Both costs are of AVX-512.
TEST(counts_as_lists_or_digits) {
  const auto by_digits = [](int64_t rows, bool packed, double nibbles, ByteProducts by) {
    Geometry geometry = linear(800, 800);
    geometry.batch = rows;
    const Density density{{4 * nibbles, 2 * nibbles, nibbles}};
    return counts_cost(geometry, packed, by) <
           lists_cost(geometry, cheapest_steps(geometry, density, kCompressedLists), density, kCompressedLists);
  };
  for (const ByteProducts by : {ByteProducts::kAvx512Vnni, ByteProducts::kAmx}) {
    CHECK(by_digits(128, true, 0.9, by) && by_digits(128, false, 0.9, by), "many rows, products %d", int(by));
    CHECK(!by_digits(1, true, 0.05, by) && !by_digits(1, false, 0.9, by), "one row, products %d", int(by));
  }
  CHECK(!by_digits(128, true, 0.05, ByteProducts::kAvx512Vnni), "few spikes");
  Geometry geometry = linear(640, 160);
  geometry.batch = 16;
  constexpr auto vectors = ByteProducts::kAvx512Vnni;
  const double cost = counts_cost(geometry, true, vectors);
  CHECK(counts_cost(geometry, true, ByteProducts::kAmx) < cost && counts_cost(geometry, false, vectors) > cost,
        "costs");
  CHECK(counts_cost(geometry, true, vectors, 1) < 0.5 * cost, "weights of one digit");
  geometry.batch = 1;
  const double alone = counts_cost(geometry, true, vectors);
  CHECK(alone > 4 * cost, "one row where eight are multiplied at once");
  CHECK(counts_cost(geometry, true, ByteProducts::kAvxVnni) < 0.7 * alone, "one row where four are");
}

// What the layer asks for is taken if it is possible.
TEST(what_choose_takes) {
  const Density low{{0.8, 0.76, 0.62}};
  test::ProductLayer made(test::linear(800, 64, 32), 8, 0.1, 1);
  made.finish();
  Layer layer = made.layer();
  const auto taken = [&](Timing timing = Timing::kStep) {
    layer.neuron.timing = timing;
    return choose(layer, low).algorithm;
  };
  const bool unit = byte_products() == ByteProducts::kAmx, bytes = byte_products() != ByteProducts::kNone;
  for (const int steps : {1, 2, 4}) {
    layer.way = {Algorithm::kLists, steps};
    CHECK(taken() == Algorithm::kLists && choose(layer, low).steps == steps, "%d steps", steps);
  }
  layer.way = {Algorithm::kDigits, 0};
  CHECK(taken() == (unit ? Algorithm::kDigits : Algorithm::kLists), "float weights have several digits");
  CHECK(taken(Timing::kWindow) == (bytes ? Algorithm::kDigits : Algorithm::kLists), "counts");
  layer.weights.dtype = DType::kInt8;
  CHECK(taken() == (bytes ? Algorithm::kDigits : Algorithm::kLists), "int8 weights have one");
  layer = made.layer();
  layer.geometry.batch = 8;
  CHECK(taken() == Algorithm::kTileByTile && taken(Timing::kWindow) == Algorithm::kTileByTile, "a few rows");
  layer.neuron.planes = made.planes.data();
  CHECK(taken() == Algorithm::kTileByTile && taken(Timing::kWindow) == Algorithm::kFilter, "counts that are fired");
  layer.neuron.v = made.v_init.data();
  CHECK(taken(Timing::kWindow) == Algorithm::kTileByTile, "potentials");
  layer.neuron.v = nullptr;
  layer.prepared = made.planes.data();
  CHECK(taken() != Algorithm::kTileByTile && taken(Timing::kWindow) != Algorithm::kFilter, "prepared");
  layer.geometry = test::image(9, 3, 1, 20, 20, 20);
  CHECK(taken() == Algorithm::kPlain && taken(Timing::kWindow) == Algorithm::kPlain, "depthwise");
  layer.geometry = test::line(8300, 8200, 0, 2, 9);
  CHECK(taken() == Algorithm::kPlain, "many taps");
}
