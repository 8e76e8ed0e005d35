// The sums of layers whose inputs move: after any moves, u = W c in exact integers and the neurons of window timing for
// these counts. Weights are multiples of 1/64, so all sums are exact.
#include "kernels/product/moving.h"
#include "product_layer.h"

using namespace tandem;
using namespace tandem::test;

namespace {

// Moves a random part of the counts, by at most one, and returns the number of synapses that they reach.
int64_t move(ProductLayer& layer, std::mt19937& random, cpu::Moves& moves) {
  const Geometry& g = layer.geometry;
  moves.clear();
  int64_t synapses = 0;
  for (int64_t n = 0; n < layer.inputs(); ++n) {
    uint8_t& count = layer.stored[n];
    const bool falls = count > 0 && random() % 2 == 0;
    if (random() % 3 > 0 || (!falls && count == layer.T)) continue;
    count = static_cast<uint8_t>(falls ? count - 1 : count + 1);
    moves.add(n, falls);
    const int64_t pixel = n / g.channels;
    const auto readers = [&](int axis, int64_t i, int64_t outputs) {
      int64_t number = 0;
      for (int64_t o = 0; o < outputs; ++o) {
        const int64_t at = i + g.padding[axis] - o * g.stride[axis];
        number += at >= 0 && at % g.dilation[axis] == 0 && at / g.dilation[axis] < g.kernel[axis];
      }
      return number;
    };
    synapses +=
        readers(0, pixel / g.width, g.out_height()) * readers(1, pixel % g.width, g.out_width()) * g.group_outputs();
  }
  return synapses;
}

void check_moving(ProductLayer layer, const char* name) {
  const Geometry& g = layer.geometry;
  layer.count(0, 1, 1);  // silence
  layer.finish();
  const PreparedWeights weights(g, layer.weights);
  layer.prepared = weights.data;
  const cpu::MovingSums moving(layer.layer());
  const int64_t rows = g.rows(), size = cpu::MovingSums::size(g.outputs, g.group_channels() == 1 ? 1 : g.groups, rows);
  std::vector<int32_t> changes(size);
  std::vector<double> sums(size);
  std::vector<uint8_t> reached(rows), counts(layer.args.neurons), expected(layer.args.neurons);
  std::vector<int32_t> memory(layer.inputs());
  cpu::Moves moves(memory.data());
  cpu::Workspace workspace;
  std::mt19937 random(7);
  layer.args.stored = counts.data();
  moving.fire(changes.data(), sums.data(), 0, rows, layer.args);
  for (int step = 0; step < 6; ++step) {
    const int64_t synapses = move(layer, random, moves);
    std::fill(reached.begin(), reached.end(), uint8_t{2});
    layer.args.stored = counts.data();
    CHECK(moving.add(moves, changes.data(), reached.data(), workspace) == synapses, "%s: synapses", name);
    for (int64_t row = 0; row < rows; ++row) {
      if (reached[row] == 3) moving.fire(changes.data(), sums.data(), row, 1, layer.args);
    }
    const bool all_taken = std::all_of(changes.begin(), changes.end(), [](int32_t change) { return change == 0; });
    CHECK(all_taken, "%s: changes of rows that no move reaches", name);
    layer.args.stored = expected.data();
    cpu::run(layer.layer(), serial_for);
    CHECK(counts == expected, "%s: the counts after step %d", name, step);
  }
}

}  // namespace

TEST(linear_layers) {
  for (int64_t inputs : {1, 33, 700, 3000}) {
    for (int64_t outputs : {1, 16, 40, 200}) {
      for (const bool integers : {false, true}) {
        ProductLayer layer(linear(inputs, outputs, 1), 9, 0, 1);
        if (integers) layer.make_integers(100);
        check_moving(layer, "linear");
      }
    }
  }
}

TEST(convolutions) {
  for (int64_t stride : {1, 2, 3}) {
    for (int64_t dilation : {1, 2}) {
      for (int64_t groups : {1, 2, 4}) {
        Geometry g = image(9, 3, 1, 4, 8, groups);
        g.batch = 1;
        g.stride[0] = stride, g.dilation[1] = dilation, g.after[1] = dilation - 1;
        check_moving(ProductLayer(g, 4, 0, 2), "convolution");
        g.channels *= 100;  // several K-blocks
        check_moving(ProductLayer(g, 4, 0, 2), "wide convolution");
      }
    }
  }
}

TEST(points_that_read_one_pixel_or_none) {
  for (int64_t padding : {0, 1}) {
    Geometry g = image(padding == 0 ? 3 : 1, 1, padding, 4, 8, 1);
    g.batch = 1;
    g.stride[0] = g.stride[1] = 3;
    check_moving(ProductLayer(g, 4, 0, 2), "point");
  }
}
