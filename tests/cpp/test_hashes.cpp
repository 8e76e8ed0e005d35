// The bits of every kernel's outputs on data that rounds, compared with one table for all processors, hashes.txt. To
// make the table, empty it: the failures print its lines. The bits of NaN depend on the processor and are not compared.
#include <cmath>
#include <fstream>
#include <map>
#include <string>

#include "kernels/cpu/halves.h"
#include "kernels/neuron/scan.h"
#include "kernels/planes/bits.h"
#include "product_layer.h"

using namespace tandem;
using namespace tandem::test;

namespace {

class Hash {
 public:
  void add(const void* data, size_t size) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    for (size_t i = 0; i < size; ++i) value_ = (value_ ^ bytes[i]) * 0x100000001b3ull;
  }
  void add(const std::vector<uint8_t>& bytes) { add(bytes.data(), bytes.size()); }
  template <class C>
  void add(const std::vector<C>& values) {
    for (const C value : values) {
      const C canonical = std::isnan(value) ? C(1e30) : value;
      add(&canonical, sizeof(C));
    }
  }
  void add(const Outputs& out) {
    add(out.stored);
    add(out.mask);
    add(out.counts.data(), out.counts.size());
    add(out.v);
  }

  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325ull;
};

std::string table_entry(const std::string& name) {
  std::ifstream table(TANDEM_HASHES);
  std::string found, hash;
  while (table >> found >> hash) {
    if (found == name) return hash;
  }
  return "nothing";
}

void check(const std::string& name, const Hash& hash) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash.value()));
  CHECK(table_entry(name) == text, "%s %s", name.c_str(), text);
}

// Random numbers with a heavy middle and long tails, by division alone: the libraries' logarithms may differ.
template <class C>
std::vector<C> draw(std::mt19937& random, int64_t n, double scale) {
  std::vector<C> out(n);
  for (C& x : out) {
    const double a = static_cast<double>(random() % 20001) - 10000, b = static_cast<double>(random() % 10000 + 3000);
    x = static_cast<C>(scale * (a / b));
  }
  return out;
}

// Numbers among which any bit pattern may occur: infinities, NaN, subnormal numbers.
std::vector<char> strange(std::mt19937& random, int64_t n, DType dtype) {
  const std::vector<double> values = draw<double>(random, n, 0.7);
  std::vector<char> out = encode(values, dtype);
  const int64_t size = size_of(dtype);
  for (int64_t i = 0; i < n; i += 1 + random() % 9) {
    for (int64_t j = 0; j < size; ++j) out[i * size + j] = static_cast<char>(random() >> 11);
  }
  return out;
}

struct RoundingLayer : ProductLayer {
  RoundingLayer(const Geometry& g, int32_t steps, unsigned seed, DType type) : ProductLayer(g, steps, 0.15, seed) {
    std::mt19937 random(seed);
    dtype = type;
    const double unit = 1.5 / std::sqrt(static_cast<double>(geometry.inputs()));
    values = draw<double>(random, static_cast<int64_t>(values.size()), unit);
    if (type == DType::kInt8) {
      for (double& w : values) w = std::round(std::clamp(w / unit * 9, -127.0, 127.0));
    }
    scale = draw<float>(random, g.outputs, type == DType::kInt8 ? unit / 9 : 1.3);
    shift = draw<float>(random, g.outputs, 2.0);
    args.threshold = 0.7f;
    args.leak = steps % 2 == 0 ? 1.f : 0.9f;
    args.gate = seed % 3 == 1 ? Gate::kClip : Gate::kRelu;
    for (float& r : residual_scale) r *= 0.3f;
    finish();
    args.scale = scale.data();
    args.shift = shift.data();
  }
};

Geometry convolution(int64_t channels, int64_t outputs, int64_t groups, int64_t size) {
  Geometry g = image(size, 3, 1, channels, outputs, groups);
  g.stride[1] = channels % 2 + 1;
  return g;
}

constexpr DType kWeightTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kInt8};
const char* const kNames[] = {"float32", "bfloat16", "float16", "float64", "int8"};

const Geometry kShapes[] = {linear(37, 21, 9),         linear(300, 64, 9),        linear(1500, 40, 9),
                            convolution(8, 24, 1, 7),  convolution(70, 33, 1, 5), convolution(12, 20, 4, 6),
                            convolution(18, 18, 18, 6)};

}  // namespace

TEST(layers) {
  for (const DType dtype : kWeightTypes) {
    Hash fired, windows, bursts;
    unsigned seed = 0;
    for (const Geometry& shape : kShapes) {
      for (const int32_t T : {5, 8, 17}) {
        RoundingLayer layer(shape, T, ++seed, dtype);
        const Outputs out(layer.args);
        cpu::run(layer.layer(), serial_for);
        fired.add(out);
        std::vector<float> u(layer.args.neurons);
        cpu::window_product(layer.layer(), u.data(), serial_for);
        windows.add(u);
        layer.args.leak = 1;
        layer.args.gate = Gate::kClip;
        layer.count(0.3, T, seed);
        const Outputs burst(layer.args);
        cpu::run(layer.layer(), serial_for);
        bursts.add(burst);
      }
    }
    check(std::string("layer-") + kNames[static_cast<int>(dtype)], fired);
    check(std::string("window-") + kNames[static_cast<int>(dtype)], windows);
    check(std::string("burst-") + kNames[static_cast<int>(dtype)], bursts);
  }
}

TEST(layers_with_batch_norm) {
  Hash hash;
  unsigned seed = 100;
  for (const Geometry& shape : kShapes) {
    RoundingLayer layer(shape, 8, ++seed, DType::kFloat32);
    const Outputs out(layer.args);
    std::vector<float> u(layer.args.neurons), mean(shape.outputs), var(shape.outputs);
    const LayerNorm norm{
        {nullptr, 1, layer.scale.data(), layer.shift.data(), 1e-5f}, u.data(), mean.data(), var.data()};
    run_normalised(layer.layer(), norm, serial_for);
    hash.add(out);
    std::mt19937 random(seed);
    const std::vector<float> grad = draw<float>(random, layer.args.neurons, 1.0);
    std::vector<float> grad_u(layer.args.neurons), gamma(shape.outputs), beta(shape.outputs);
    cpu::batch_norm_grad({layer.geometry.rows(), shape.outputs, grad.data(), out.mask.data(), u.data(), mean.data(),
                          var.data(), norm.norm, 0.7f, DType::kFloat32, grad_u.data(), gamma.data(), beta.data()},
                         serial_for);
    for (const auto* values : {&u, &mean, &var, &grad_u, &gamma, &beta}) hash.add(*values);
  }
  check("batch-norm", hash);
}

namespace {

void scan(DType dtype, unsigned seed, Hash& hash) {
  std::mt19937 random(seed);
  const int64_t neurons = 300, channels = 12;
  const int32_t T = 8 + static_cast<int32_t>(seed % 10);
  const Source source = static_cast<Source>(seed % 3);
  const auto currents = strange(random, (source == Source::kTrain ? T : 1) * neurons, dtype);
  const std::vector<float> scale = draw<float>(random, channels, 1.1), shift = draw<float>(random, channels, 1.0),
                           residual = draw<float>(random, T * neurons, 0.4), start = draw<float>(random, channels, 0.3);
  Neuron args = neurons_of(neurons, channels, T, 1.1f, seed % 2 == 0 ? 1.f : 0.8f);
  args.gate = seed / 3 % 3 == 1 ? Gate::kClip : Gate::kRelu;
  args.scale = scale.data();
  args.shift = shift.data();
  args.residual_currents = seed % 4 == 0 ? residual.data() : nullptr;
  args.v_init = start.data();
  args.v_init_size = channels;
  args.counts_dtype = dtype;
  const Outputs out(args);
  cpu::if_scan(currents.data(), dtype, source, args, serial_for);
  hash.add(out);
}

}  // namespace

TEST(scans) {
  for (const DType dtype : kDTypes) {
    Hash hash;
    for (unsigned seed = 0; seed < 36; ++seed) {
      scan(dtype, seed, hash);
    }
    check(std::string("scan-") + kNames[static_cast<int>(dtype)], hash);
  }
}

TEST(gradients_of_gates_for_every_half) {  // which the ops convert to float32 and back
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    std::vector<float> in(1 << 16), out(1 << 16);
    for (size_t i = 0; i < in.size(); ++i) {
      const uint16_t bits[] = {static_cast<uint16_t>(i), 0};
      in[i] = static_cast<float>(read(bits, dtype, 0));
    }
    const std::vector<uint8_t> mask(in.size() / 8, 0xfb);
    cpu::gate_grad(in.data(), DType::kFloat32, mask.data(), 0.7, static_cast<int64_t>(in.size()), out.data(),
                   serial_for);
    for (float& value : out) {
      value = dtype == DType::kBFloat16 ? cpu::to_float(cpu::from_float<cpu::BFloat16>(value))
                                        : cpu::to_float(cpu::from_float<cpu::Float16>(value));
    }
    Hash hash;
    hash.add(out);
    check(std::string("gate-") + kNames[static_cast<int>(dtype)], hash);
  }
}
