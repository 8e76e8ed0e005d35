// How kernels divide their work: a range is large enough to pay for a thread's start, and large work has several
// ranges. The memory of a worker.
#include "kernels/cpu/workspace.h"
#include "kernels/neuron/scan.h"
#include "kernels/norm/batch_norm.h"
#include "kernels/planes/bits.h"
#include "kernels/planes/pool.h"
#include "kernels/weights/tiling.h"
#include "product_layer.h"

using namespace tandem;
using namespace tandem::test;

namespace {

struct Call {
  int64_t pieces, grain;
};
std::vector<Call> calls;

void record(int64_t n, int64_t grain, RangeBody body, void* context) {
  calls.push_back({n, grain});
  body(0, n, context);
}

// The parallel calls that `work` makes.
template <class F>
std::vector<Call> calls_of(const F& work) {
  calls.clear();
  work();
  return calls;
}

// Whether the call has `pieces` pieces of size `size` and its grain is worth about `least`.
bool divides(const Call& call, int64_t pieces, int64_t size, int64_t least) {
  const int64_t range = call.grain * size;
  return call.pieces == pieces && 10 * range >= 9 * least && 10 * range <= 11 * least;
}

// Whether each piece may be a range of its own.
bool divides(const Call& call, int64_t pieces) { return call.pieces == pieces && call.grain == 1; }

std::vector<Call> calls_of_product(const Geometry& shape, int32_t T) {
  ProductLayer layer(shape, T, 0.2, 1);
  layer.way = {Algorithm::kLists, 1};
  layer.finish();
  const PreparedWeights prepared(layer.geometry, layer.weights);
  layer.prepared = prepared.data;
  const Outputs out(layer.args);
  return calls_of([&] { cpu::run(layer.layer(), record); });
}

}  // namespace

TEST(a_workspace_is_a_stack_of_aligned_memory) {
  cpu::Workspace outer;
  const auto take = [](cpu::Workspace& from, int64_t size, uint8_t value) {
    auto* bytes = from.take<uint8_t>(size);
    CHECK(reinterpret_cast<uintptr_t>(bytes) % 64 == 0, "%ld bytes are aligned", long(size));
    std::fill_n(bytes, size, value);
    return bytes;
  };
  for (int64_t size : {0, 1, 64, 1000, 1 << 17, 3 << 20}) {
    const uint8_t* first = take(outer, size, 1);
    const uint8_t* again = nullptr;
    for (int call = 0; call < 3; ++call) {
      cpu::Workspace inner(outer);
      const uint8_t* second = take(inner, 1 << 16, 2);
      CHECK(call == 0 || second == again, "the memory of a scope that has ended is taken again");
      take(inner, size, 3);
      CHECK(std::count(second, second + (1 << 16), 2) == 1 << 16, "what was taken is apart");
      again = second;
    }
    CHECK(std::count(first, first + size, 1) == size, "what an outer scope took stays");
  }
}

TEST(scans_and_bits_by_thousands_of_neurons) {
  constexpr int64_t blocks = 1000, neurons = 64 * blocks;
  std::vector<float> floats(neurons);
  std::vector<uint8_t> planes(neurons);
  Neuron a = neurons_of(neurons, 1, 1, 1.f);
  a.stored = planes.data();
  const auto scan = [&] { cpu::if_scan(floats.data(), DType::kFloat32, Source::kTrain, a, record); };
  CHECK(divides(calls_of(scan)[0], blocks, 64, 16384), "scan");
  for (int64_t n : {neurons, neurons - 63}) {
    const auto pack = [&] { cpu::pack(floats.data(), 4, true, 1, n, planes.data(), record); };
    CHECK(divides(calls_of(pack)[0], blocks, 64, 16384), "pack %ld", long(n));
  }
}

TEST(windows_by_bytes) {
  for (int64_t channels : {16, 64, 100000}) {
    Geometry g = image(8, 2, 0, channels, channels);
    g.batch = 8;
    g.stride[0] = g.stride[1] = 2;
    std::vector<uint8_t> in(8 * 8 * 8 * channels), out(in.size());
    const Call pool = calls_of([&] { cpu::max_pool(g, Timing::kStep, in.data(), out.data(), record); })[0];
    const Call first = calls_of([&] { cpu::to_channels_first(in.data(), 8, 64, channels, out.data(), record); })[0];
    if (channels == 100000) {
      CHECK(divides(pool, 32) && divides(first, 8), "large lines and images");
    } else {
      CHECK(divides(pool, 32, 4 * 4 * channels, 65536), "%ld channels", long(channels));
      CHECK(divides(first, 8, 64 * channels, 32768), "%ld channels", long(channels));
    }
  }
}

TEST(weights_by_tiles) {
  ProductLayer layer(linear(256, 640), 8, 0.2, 1);
  layer.finish();
  const Call call = calls_of([&] { PreparedWeights(layer.geometry, layer.weights, record); })[0];
  const int64_t width = cpu::Tiling(layer.geometry).width();
  CHECK(divides(call, 640 / width, width * 256, 65536), "%ld of %ld", long(call.grain), long(call.pieces));
}

TEST(products_by_blocks_of_rows_or_within_one) {
  const std::vector<Call> one_block = calls_of_product(linear(1024, 96, 64), 8);
  CHECK(one_block.size() == 2, "%zu", one_block.size());
  CHECK(divides(one_block[0], 64, 1024, 32768), "lists");
  CHECK(divides(one_block[1], 96 / cpu::Tiling(linear(1024, 96)).width(), 64 * 1024, 65536), "tiles");
  CHECK(calls_of_product(linear(8, 96, 256 * 7), 1)[0].pieces == 256, "seven blocks");
  CHECK(divides(calls_of_product(linear(1024, 96, 256 * 8), 1)[0], 8), "eight blocks");
  const int64_t bytes_and_tiles = 256 * 2 * 96 / cpu::Tiling(linear(2, 96)).width();
  CHECK(divides(calls_of_product(linear(2, 96, 256 * 8), 1)[0], 8, bytes_and_tiles, 65536), "eight small blocks");
}

TEST(depthwise_products_by_rows) {
  Geometry shape = image(64, 3, 1, 16, 16, 16);
  shape.batch = 1;
  CHECK(divides(calls_of_product(shape, 9)[0], 64, 64 * 2 * 9, 65536), "depthwise");
}

TEST(gradients_by_rows) {
  constexpr int64_t rows = 100, channels = 4;
  std::vector<float> floats(rows * channels, 1), out(rows * channels);
  std::vector<uint8_t> mask(rows * channels / 8);
  float *in = floats.data(), *to = out.data();
  const std::vector<Call> both = calls_of([&] {
    cpu::batch_norm_grad({rows, channels, in, mask.data(), in, in, in, {}, 1.f, DType::kFloat32, to, to, to}, record);
  });
  CHECK(divides(both[0], 16), "sums");
  CHECK(both[1].pieces == 13 && both[1].grain == 8, "rows");
}
