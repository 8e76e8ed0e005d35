// The filter against the other ways and a plain statement of the rule, where float32 does not tell: hostile weights,
// sums at multiples of the threshold and at zero. TANDEM_NEURONS sets how many neurons are compared.
#include <functional>
#include <iterator>

#include "kernels/weights/units.h"
#include "product_layer.h"

using namespace tandem;
using namespace tandem::test;

namespace {

using Weight = float (*)(std::mt19937&, float random, float before);  // the weight of the input before, of the same row

constexpr struct {
  const char* name;
  Weight weight;
  float scale;
} kKinds[] = {
    {"random", [](std::mt19937&, float x, float) { return x; }, 1},
    {"sums at thresholds and zero", [](std::mt19937&, float x, float) { return std::round(x * 64) / 64; }, 1},
    {"cancelling",
     [](std::mt19937& random, float x, float before) {
       return random() % 2 == 0 ? x : random() % 4 == 0 ? std::nextafter(-before, 1.f) : -before;
     },
     1},
    {"outliers", [](std::mt19937& random, float x, float) { return random() % 50 == 0 ? x * 1e8f : x; }, 1},
    {"one outlier of a sample", [](std::mt19937& random, float x, float) { return random() % 997 == 0 ? x * 1e8f : x; },
     1},
    {"half units beside a large weight",
     [](std::mt19937& random, float, float) {
       return random() % 16 == 0 ? 1.f
                                 : static_cast<float>(random() % 8 + 0.5) * (random() % 2 == 0 ? 0x1p-15f : 0x1p-25f);
     },
     0.1f},
    {"denormal", [](std::mt19937&, float x, float) { return x * 1e-40f; }, 1},
    {"below any unit", [](std::mt19937&, float x, float) { return x * 0x1p-60f; }, 0x1p60f},
    {"small", [](std::mt19937&, float x, float) { return x * 0x1p-50f; }, 0x1p50f},
    {"large", [](std::mt19937&, float x, float) { return x * 1e37f; }, 1e-37f},
    {"not finite",
     [](std::mt19937& random, float x, float) { return random() % 500 != 0 ? x
                                                       : random() % 2 == 0 ? NAN
                                                                           : INFINITY; },
     1},
};

// The products of the neurons, from the integers that define the weights: [T + 1, neurons], of each step and, last, of
// the window; with window timing of the window alone.
std::vector<std::vector<float>> exact_products(const ProductLayer& layer) {
  const Geometry& g = layer.geometry;
  const int64_t size = g.channels;
  const int steps = layer.args.timing == Timing::kWindow ? 0 : layer.T;
  std::vector<std::vector<float>> out(steps + 1, std::vector<float>(layer.args.neurons));
  std::vector<float> row(size);
  std::vector<int32_t> integers(size);
  for (int64_t output = 0; output < g.outputs; ++output) {
    bool finite = true;
    float largest = 0;
    for (int64_t k = 0; k < size; ++k) {
      row[k] = static_cast<float>(read(layer.encoded.data(), layer.dtype, output * size + k));
      finite = finite && std::isfinite(row[k]);
      largest = std::max(largest, std::abs(row[k]));
    }
    float unit = NAN;
    if (finite) {
      const int scale = scale_of(static_cast<uint32_t>(cpu::bits_of_float(largest)));
      int64_t sum = 0;
      for (const float w : row) sum += static_cast<int32_t>(std::abs(w) * measure_of(scale));
      const int exponent = unit_exponent(largest, scale, sum, size, layer.dtype != DType::kFloat32);
      unit = power_of_two(exponent);
      for (int64_t k = 0; k < size; ++k) integers[k] = to_fixed(row[k] * power_of_two(-exponent));
    }
    for (int64_t b = 0; b < g.batch; ++b) {
      for (int t = 0; t <= steps; ++t) {
        int64_t sum = 0;
        for (int64_t k = 0; finite && k < size; ++k) {
          const int byte = layer.stored[b * size + k];
          sum += int64_t{integers[k]} * (t < steps ? byte >> t & 1 : steps == 0 ? byte : __builtin_popcount(byte));
        }
        out[t][b * g.outputs + output] = static_cast<float>(static_cast<double>(sum)) * unit;
      }
    }
  }
  return out;
}

template <class E>
std::vector<E> drawn(int64_t n, const std::function<E()>& draw) {
  std::vector<E> out(n);
  std::generate(out.begin(), out.end(), draw);
  return out;
}

ProductLayer hostile(std::mt19937& random, int kind, Timing timing, int64_t inputs, int64_t outputs, int64_t batch) {
  const auto& of = kKinds[kind];
  const bool counted = timing == Timing::kWindow;
  if (!counted) batch = 1 + batch % 8;
  ProductLayer layer(linear(inputs, outputs, batch), static_cast<int32_t>(counted ? 1 : 8 / batch), 0.2, random());
  if (counted) {
    const auto any_T = [&] { return static_cast<int32_t>(random() % 4 == 0 ? 1 + random() % 255 : 8); };
    layer.T = layer.args.T = any_T();
    layer.args.steps = any_T();
    layer.count(0.25, std::min(layer.T, 12), random());
  } else {
    layer.args.leak = random() % 2 == 0 ? 1.f : 0.9f;
  }
  std::normal_distribution<float> normal;
  const float typical = 1 / std::sqrt(static_cast<float>(inputs));
  float before = 0;
  for (double& w : layer.values) w = before = of.weight(random, typical * normal(random), before);
  const bool grid = kind == 1;
  const auto sign = [&] { return random() % 4 == 0 ? -1.f : 1.f; };
  layer.scale = drawn<float>(outputs, [&] { return of.scale * sign() * (grid ? 1.f : 1 + 0.3f * normal(random)); });
  layer.shift = drawn<float>(outputs, [&] { return grid ? std::round(4 * normal(random)) / 4 : normal(random); });
  layer.residual_scale = drawn<float>(outputs, [&] { return grid ? 0.5f : normal(random); });
  layer.v_init = drawn<float>(layer.args.neurons, [&] { return random() % 2 == 0 ? 0.5f : 0.1f * normal(random); });
  constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  layer.dtype = kTypes[random() % 4];
  layer.plain = random() % 4 == 0;
  layer.args.threshold = grid ? 1.f : 0.7f;
  layer.args.gate = random() % 2 == 0 ? Gate::kRelu : Gate::kClip;
  layer.finish();
  if (random() % 2 == 0) layer.args.residual_stored = nullptr;
  return layer;
}

// Returns the number of neurons that the filter fires unlike the plain rule; all if another way gives other bits.
int64_t differing(ProductLayer& layer) {
  const Neuron before = layer.args;
  std::vector<float> flags(layer.geometry.batch);
  const auto run = [&](Algorithm algorithm) {
    layer.args = before;
    layer.way = {algorithm, 0};
    Outputs out(layer.args);
    layer.args.v = nullptr;
    layer.args.bad = flags.data();
    layer.args.sample = layer.geometry.outputs;
    std::fill(flags.begin(), flags.end(), 0.f);
    cpu::run(layer.layer(), threads_for);
    return out;
  };
  const Outputs got = run(Algorithm::kFilter);
  const std::vector<std::vector<float>> y = exact_products(layer);
  std::vector<uint8_t> lost(flags.size());
  int64_t differing = 0;
  for (int64_t n = 0; n < layer.args.neurons; ++n) {
    const auto step = [&](int t) { return y[t][n]; };
    const PlainNeuron want =
        y.size() == 1 ? plain_burst(layer.args, n, y[0][n]) : plain_neuron(layer.args, n, y.back()[n], step);
    differing += agrees(layer.args, n, want) ? 0 : 1;
    if (!is_finite(want.v)) lost[n / layer.args.sample] = 1;
  }
  for (size_t b = 0; b < flags.size(); ++b) differing += std::isnan(flags[b]) == (lost[b] != 0) ? 0 : 1;
  for (const Algorithm other : {Algorithm::kLists, Algorithm::kDigits, Algorithm::kPlain}) {
    if (!(run(other) == got)) return layer.args.neurons;
  }
  return differing;
}

}  // namespace

TEST(hostile_layers) {
  const char* wanted = std::getenv("TANDEM_NEURONS");
  const int64_t neurons = wanted != nullptr ? std::atoll(wanted) : 100000;
  std::mt19937 random(wanted != nullptr ? static_cast<unsigned>(neurons) : 1);
  int64_t compared = 0;
  while (compared < neurons) {
    for (int kind = 0; kind < static_cast<int>(std::size(kKinds)); ++kind) {
      const int64_t inputs = random() % 8 == 0 ? 65 + random() % 2000 : 1 + random() % 64;
      const int64_t outputs = 1 + random() % (wanted != nullptr ? 2000 : 100), batch = 1 + random() % 16;
      const Timing timing = random() % 8 == 0 ? Timing::kStep : Timing::kWindow;
      ProductLayer layer = hostile(random, kind, timing, inputs, outputs, batch);
      const int64_t differ = differing(layer);
      CHECK(differ == 0, "%s: %ld of %ld neurons, %ld inputs, T %d, %ld samples", kKinds[kind].name, long(differ),
            long(layer.args.neurons), long(inputs), layer.T, long(layer.geometry.batch));
      compared += layer.args.neurons;
    }
  }
  std::printf("%ld neurons\n", long(compared));
}

TEST(many_inputs) {
  std::mt19937 random(2);
  for (const int64_t inputs : {100000, 1 << 20}) {
    for (const int kind : {0, 1, 2}) {
      ProductLayer layer = hostile(random, kind, Timing::kWindow, inputs, 5, 2);
      CHECK(differing(layer) == 0, "%s, %ld inputs", kKinds[kind].name, long(inputs));
    }
  }
}
