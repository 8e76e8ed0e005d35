// The way of a layer: tiles, blocks, costs and the choice of algorithm, at the borders between two ways.
#include <array>
#include <cmath>
#include <random>

#include "kernels/dispatch/choose.h"
#include "kernels/product/digits/digits.h"
#include "kernels/product/lists.h"
#include "kernels/weights/pack.h"
#include "kernels/weights/tiling.h"
#include "kernels/weights/units.h"
#include "product_layer.h"

using namespace tandem;
using namespace tandem::cpu;

namespace {

Geometry linear(int64_t inputs, int64_t outputs, int64_t rows = 1) { return test::linear(inputs, outputs, rows); }

Geometry conv3x3(int64_t channels, int64_t outputs, int64_t stride = 1, int64_t width = 32) {
  Geometry geometry = test::image(32, 3, 1, channels, outputs);
  geometry.batch = 1;
  geometry.width = width;
  geometry.stride[0] = geometry.stride[1] = stride;
  return geometry;
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
    TilePacker({weights.data(), DType::kFloat32, false}, tiling)(0, tile.data(), units.data());
    CHECK(units[0] == c.unit, "%ld inputs: %g", long(c.inputs), units[0]);
    CHECK(static_cast<float>(tile[0]) * units[0] == weights[0], "%ld inputs: %d", long(c.inputs), tile[0]);
  }
}

// The integers that the digits of a column stand for are those of a tile of words, whatever the weights.
TEST(digits_are_the_integers_of_words) {
  std::mt19937 random(3);
  const auto pick = [&](auto... values) {
    const decltype((values + ...)) all[] = {values...};
    return all[random() % sizeof...(values)];
  };
  for (int turn = 0; turn < 400; ++turn) {
    const int kernel = pick(1, 1, 2, 3);
    Geometry geometry = test::image(8, kernel, 0, pick(1, 3, 16, 17, 64, 90), pick(3, 16, 40), 1);
    if (turn % 5 == 0) geometry.dilation[1] = 2;
    const DType dtype = std::array{DType::kFloat32, DType::kFloat32, DType::kBFloat16, DType::kInt8}[random() % 4];
    const int64_t inputs = geometry.inputs(), size = geometry.outputs * inputs;
    const bool last = turn % 2 == 0;
    const int bits = pick(1, 4, 7, 8, 16, 23), exponent = pick(-60, -9, 0, 60, 127 - bits);
    std::vector<float> floats(size);
    std::vector<uint16_t> halves(size);
    std::vector<int8_t> bytes(size);
    for (int64_t i = 0; i < size; ++i) {
      const auto whole = static_cast<int32_t>(random() % (2u << bits)) - (1 << bits);
      floats[i] = std::ldexp(static_cast<float>(whole), exponent);
      if (turn % 7 == 0) floats[i] = i == size / 2 ? floats[i] : 0;
      if (turn % 11 == 0 && i == size / 3) floats[i] = pick(INFINITY, -INFINITY, NAN);
      halves[i] = static_cast<uint16_t>(bits_of_float(floats[i]) >> 16);
      bytes[i] = static_cast<int8_t>(whole);
    }
    const void* data = floats.data();
    if (dtype == DType::kInt8) data = bytes.data();
    if (dtype == DType::kBFloat16) data = halves.data();
    const Weights weights{data, dtype, last};
    const Tiling tiling(geometry);
    const ChunkShape shape(geometry);
    const TilePacker pack_tile(weights, tiling);
    const ColumnPacker pack_column(geometry, weights, tiling);
    std::vector<int32_t> tile(tiling.tile_size);
    std::vector<float> units(tiling.width()), unit(16);
    std::vector<int8_t> digits(shape.chunks() * most_digits(dtype) * kTileBytes);
    int64_t different = 0;
    for (int64_t column = 0; column < tiling.tiles() * tiling.registers; ++column) {
      const int64_t first = column % tiling.registers * 16;
      pack_tile(column / tiling.registers, tile.data(), units.data());
      Cut cut{};
      Workspace workspace;
      pack_column(column, &cut, digits.data(), unit.data(), workspace);
      for (int64_t output = 0; output < 16; ++output) {
        const float want = units[first + output];
        if (unit[output] != want && !(std::isnan(want) && std::isnan(unit[output]))) ++different;
        for (int64_t k = 0; k < shape.chunks() * kChunk; ++k) {
          const int64_t run = shape.chunks_per_segment * kChunk, in = k / run * shape.length + k % run;
          const int8_t* digit = digits.data() + k / kChunk * cut.count * kTileBytes + k % kChunk / 4 * 64 + output * 4;
          int64_t sum = 0;
          for (int d = cut.count - 1; d >= 0; --d) sum = sum * 256 + digit[d * kTileBytes + k % 4];
          const int64_t row = k % run < shape.length ? tiling.row(in / tiling.channels, in % tiling.channels) : -1;
          const int32_t integer = row < 0 ? 0 : tile[row * tiling.width() + first + output];
          different += sum * (int64_t{1} << cut.shift) != integer ? 1 : 0;
        }
      }
      CHECK(cut.count >= 1 && cut.count <= most_digits(dtype), "turn %d: %d digits", turn, cut.count);
    }
    CHECK(different == 0, "turn %d: %ld of %ld", turn, long(different), long(size));
  }
}

// Weights of a grid have the digits of their integers.
TEST(weights_of_a_grid_have_few_digits) {
  for (const int64_t channels : {16, 800}) {
    for (const int exponent : {-40, -6, 0, 40, 120}) {
      const Geometry geometry = linear(channels, 16);
      std::vector<float> weights(channels * 16);
      for (size_t i = 0; i < weights.size(); ++i) {
        weights[i] = std::ldexp(static_cast<float>(static_cast<int>(i % 15) - 7), exponent);
      }
      Cut cut{};
      std::vector<int8_t> digits(ChunkShape(geometry).chunks() * kMostDigits * kTileBytes);
      std::vector<float> unit(16);
      Workspace workspace;
      const Tiling tiling(geometry);
      ColumnPacker(geometry, {weights.data(), DType::kFloat32, false}, tiling)(0, &cut, digits.data(), unit.data(),
                                                                               workspace);
      CHECK(cut.count == 1, "%ld inputs, 2^%d: %d digits", long(channels), exponent, cut.count);
    }
  }
}

TEST(weights_of_one_digit_are_kept_in_bytes) {
  test::ProductLayer made(linear(1200, 20), 8, 0.1, 1);
  made.make_integers(127);
  made.finish();
  const int64_t size = prepared_size(made.geometry, made.weights);
  CHECK((size < 4 * 1200 * 20) == (capability() == Capability::kV4), "%ld bytes", long(size));
}

TEST(rows_expanded_at_a_time) {
  CHECK(expanded_rows(linear(800, 10), 8) == 128, "one plane");
  CHECK(expanded_rows(linear(4096, 10), 8) == 32, "memory");
  CHECK(expanded_rows(linear(8000, 10), 256) == 16, "a tile has sixteen");
}

// Which way is the cheapest, from sparse to dense inputs: lists of 1, 2 and 4 steps, or digits.
TEST(the_borders_between_two_ways) {
  enum Digits { kNo, kOfSteps, kOfCounts };
  constexpr int kDigits = 0;  // beside the steps of lists
  constexpr auto kUnit = ByteProducts::kAmx, kVectors = ByteProducts::kAvx512Vnni, kNarrow = ByteProducts::kAvxVnni;
  constexpr bool kPrepared = true, kUnprepared = false;
  const struct {
    Geometry shape;
    std::vector<std::pair<int, double>> ways;  // up to so many nonzero nibbles of an input byte
    Digits digits = kNo;
    ByteProducts by = kUnit;
    bool prepared = kPrepared;
    int per_weight = 3;
    ListCosts costs = kCompressedLists;
  } cases[] = {
      {linear(800, 800), {{1, 0.02600}, {2, 0.2936}, {4, 2}}},
      {linear(256, 32), {{1, 0.6250}, {2, 2}}},
      {linear(100, 16), {{1, 1.600}, {2, 2}}},
      {linear(6000, 800), {{1, 0.02507}, {2, 0.1169}, {4, 2}}},  // K-blocks
      {conv3x3(16, 128), {{1, 0.4167}, {2, 2}}},
      {conv3x3(64, 64), {{1, 0.2083}, {2, 1.028}, {4, 2}}},
      {conv3x3(65, 64), {{1, 0.3077}, {2, 1.381}, {4, 2}}},  // 64 inputs are compared at once
      {conv3x3(64, 64, 2), {{1, 0.3125}, {2, 1.403}, {4, 2}}},
      {conv3x3(64, 64, 3), {{1, 0.3125}, {2, 1.403}, {4, 2}}},
      // Narrow vectors, in which additions cost more, sort inputs by longer patterns sooner.
      {linear(800, 800), {{1, 0.02632}, {2, 0.1546}, {4, 2}}, kNo, kVectors, kPrepared, 3, kAvx2Lists},
      {conv3x3(64, 64), {{2, 0.2924}, {1, 0.3152}, {4, 2}}, kNo, kVectors, kPrepared, 3, kAvx2Lists},
      // The matrix unit takes dense inputs of many rows; a tile has sixteen.
      {linear(800, 800, 128), {{1, 0.02600}, {2, 0.2936}, {4, 0.3788}, {kDigits, 2}}, kOfSteps},
      {linear(800, 800, 128), {{1, 0.02600}, {2, 0.2936}, {4, 0.4137}, {kDigits, 2}}, kOfSteps, kUnit, kUnprepared},
      {linear(800, 800), {{1, 0.02600}, {2, 0.2936}, {4, 2}}, kOfSteps},
      {linear(800, 16, 128), {{1, 0.7257}, {kDigits, 2}}, kOfSteps},
      {linear(64, 800, 128), {{1, 0.02500}, {2, 0.4341}, {kDigits, 2}}, kOfSteps},
      {conv3x3(64, 64), {{1, 0.2083}, {2, 0.2736}, {kDigits, 2}}, kOfSteps},
      {conv3x3(64, 64, 1, 3), {{1, 0.2083}, {2, 0.4867}, {kDigits, 2}}, kOfSteps},
      {conv3x3(64, 64, 2), {{1, 0.2998}, {kDigits, 2}}, kOfSteps},
      // Bytes in vectors take weights of one digit, if the layer is narrow or the inputs are dense.
      {linear(64, 256, 256), {{1, 0.07813}, {2, 0.9550}, {kDigits, 2}}, kOfSteps, kVectors},
      {linear(576, 256, 256), {{1, 0.07813}, {2, 0.5590}, {4, 1.847}, {kDigits, 2}}, kOfSteps, kVectors},
      {linear(576, 256, 8), {{1, 0.07813}, {2, 0.5590}, {4, 2}}, kOfSteps, kVectors, kUnprepared},
      {conv3x3(64, 64), {{1, 0.2083}, {2, 1.028}, {4, 1.495}, {kDigits, 2}}, kOfSteps, kVectors},
      // Counts are lists if few inputs are active or few rows would share the weights; eight are multiplied at once, or
      // four.
      {linear(800, 800, 128), {{1, 0.02600}, {2, 0.2219}, {kDigits, 2}}, kOfCounts, kVectors},
      {linear(800, 800, 128), {{1, 0.02600}, {2, 0.2452}, {kDigits, 2}}, kOfCounts, kVectors, kUnprepared},
      {linear(800, 800, 128), {{kDigits, 2}}, kOfCounts},
      {linear(800, 800, 128), {{kDigits, 2}}, kOfCounts, kUnit, kUnprepared},
      {linear(800, 800, 16), {{1, 0.007386}, {kDigits, 2}}, kOfCounts, kVectors, kPrepared, 1},
      {linear(800, 800, 16), {{1, 0.02600}, {2, 0.1180}, {kDigits, 2}}, kOfCounts, kVectors, kPrepared, 2},
      {linear(800, 800), {{1, 0.02600}, {2, 0.2936}, {4, 2}}, kOfCounts, kVectors},
      {linear(800, 800), {{1, 0.02600}, {2, 0.2936}, {4, 1.544}, {kDigits, 2}}, kOfCounts},
      {linear(800, 800, 4), {{1, 0.02600}, {2, 0.2936}, {4, 0.7835}, {kDigits, 2}}, kOfCounts, kVectors},
      {linear(800, 800, 4), {{1, 0.02600}, {2, 0.2735}, {kDigits, 2}}, kOfCounts, kNarrow},
      {linear(800, 800), {{1, 0.02600}, {2, 0.2936}, {4, 2}}, kOfCounts, kUnit, kUnprepared},
      {conv3x3(64, 64), {{1, 0.06559}, {kDigits, 2}}, kOfCounts, kVectors},
      {conv3x3(64, 64, 1, 3), {{1, 0.08472}, {kDigits, 2}}, kOfCounts, kVectors},
  };
  for (const auto& c : cases) {
    const auto cheapest = [&](double nibbles) {
      const Density density{{1.9 * nibbles, 1.5 * nibbles, nibbles}};
      const int steps = cheapest_steps(c.shape, density, c.costs);
      const double digits = c.digits == kOfSteps ? steps_cost(c.shape, c.prepared, c.by)
                                                 : counts_cost(c.shape, c.prepared, c.by, c.per_weight);
      return c.digits != kNo && digits < lists_cost(c.shape, steps, density, c.costs) ? kDigits : steps;
    };
    double from = 0;
    for (const auto& [way, to] : c.ways) {
      CHECK(cheapest(1.001 * from) == way && cheapest(0.999 * to) == way, "case %td, %d from %g to %g", &c - cases, way,
            from, to);
      from = to;
    }
  }
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
  const Algorithm counts = bytes ? Algorithm::kDigits : Algorithm::kLists;
  CHECK(taken() == Algorithm::kLists && taken(Timing::kWindow) == counts, "a few rows");
  layer.neuron.stored = made.stored.data();
  CHECK(taken() == Algorithm::kLists && taken(Timing::kWindow) == Algorithm::kFilter, "counts that are fired");
  layer.neuron.v = made.v_init.data();
  CHECK(taken(Timing::kWindow) == counts, "potentials");
  layer.neuron.v = nullptr;
  layer.prepared = made.stored.data();
  CHECK(taken(Timing::kWindow) != Algorithm::kFilter, "prepared");
  layer.geometry = test::image(9, 3, 1, 20, 20, 20);
  CHECK(taken() == Algorithm::kPlain && taken(Timing::kWindow) == Algorithm::kPlain, "depthwise");
  layer.geometry = test::line(8300, 8200, 0, 2, 9);
  CHECK(taken() == Algorithm::kPlain, "many taps");
}
