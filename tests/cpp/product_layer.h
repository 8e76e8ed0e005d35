// Layers of spike products, random or from fuzzed bytes. Weights are multiples of 1/64, so all sums are exact.
#pragma once

#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <tuple>

#include "check.h"
#include "kernels/layer.h"
#include "kernels/neuron/scan.h"
#include "kernels/norm/batch_norm.h"
#include "kernels/product/product.h"
#include "kernels/product/tile.h"
#include "plain.h"

namespace tandem::test {

inline Geometry linear(int64_t inputs, int64_t outputs = 20, int64_t batch = 2) {
  return {batch, 1, 1, inputs, outputs, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}, {0, 0}};
}

inline Geometry line(int64_t width, int64_t kernel, int64_t padding, int64_t channels, int64_t outputs) {
  Geometry g = linear(channels, outputs);
  g.width = width;
  g.kernel[1] = kernel;
  g.padding[1] = padding;
  return g;
}

inline Geometry image(int64_t size, int64_t kernel, int64_t padding, int64_t channels, int64_t outputs,
                      int64_t groups = 1) {
  Geometry g = line(size, kernel, padding, channels, outputs);
  g.groups = groups;
  g.height = size;
  g.kernel[0] = kernel;
  g.padding[0] = padding;
  return g;
}

// A layer with all options of its neurons.
struct ProductLayer {
  Geometry geometry;
  int32_t T;
  DType dtype = DType::kFloat32;
  bool channels_last = false;
  bool plain = false;  // no scale, shift, residual, v_init

  Weights weights{};
  const void* prepared = nullptr;
  Way way{};
  Neuron args;
  std::vector<uint8_t> stored, residual;
  std::vector<double> values;  // the weights before encoding
  std::vector<char> encoded;
  std::vector<float> scale, shift, residual_scale, v_init;

  ProductLayer(const Geometry& g, int32_t steps, double rate, unsigned seed)
      : geometry(g), T(steps), args(neurons_of(g.neurons(), g.outputs, steps, 1.f)) {
    std::mt19937 random(seed);
    const auto dyadic = [&](int64_t n, int range, double unit) {
      std::vector<float> out(n);
      for (float& x : out) x = static_cast<float>((static_cast<int>(random() % (2 * range + 1)) - range) * unit);
      return out;
    };
    const auto trains = [&](int64_t n, double p) {
      std::bernoulli_distribution fires(p);
      std::vector<uint8_t> out((T + 7) / 8 * n);
      for (int t = 0; t < T; ++t) {
        for (int64_t i = 0; i < n; ++i) out[t / 8 * n + i] |= static_cast<uint8_t>(fires(random) << (t % 8));
      }
      return out;
    };
    stored = trains(inputs(), rate);
    const auto w = dyadic(g.outputs * g.inputs(), 64, 1.0 / 64);
    values.assign(w.begin(), w.end());
    residual = trains(args.neurons, 0.3);
    scale = dyadic(g.outputs, 8, 0.25);
    shift = dyadic(g.outputs, 16, 0.5);
    residual_scale = dyadic(g.outputs, 4, 0.5);
    v_init = dyadic(args.neurons, 4, 0.125);
  }

  void finish() {
    encoded = encode(values, dtype);
    weights = {encoded.data(), dtype, channels_last};
    if (plain) return;
    args.scale = scale.data();
    args.shift = shift.data();
    args.residual_stored = residual.data();
    args.residual_scale = residual_scale.data();
    args.v_init = v_init.data();
    args.v_init_size = args.neurons;
  }

  // Input neurons.
  int64_t inputs() const { return geometry.batch * geometry.height * geometry.width * geometry.channels; }

  // Switches to window timing: inputs are active at this rate and have 1 to `most` spikes.
  void count(double rate, int most, unsigned seed) {
    std::mt19937 random(seed);
    stored.resize(inputs());
    for (uint8_t& byte : stored) byte = static_cast<uint8_t>(random() % 1000 < 1000 * rate ? 1 + random() % most : 0);
    residual.resize(args.neurons);
    for (uint8_t& byte : residual) byte = static_cast<uint8_t>(random() % 256);
    args.timing = Timing::kWindow;
  }

  // Makes the weights int8, up to `largest`; with 127 two of them are -128.
  void make_integers(double largest) {
    dtype = DType::kInt8;
    for (double& w : values) w = std::round(w * largest);
    if (largest == 127 && !values.empty()) values.front() = values.back() = -128;
  }

  Layer layer() const { return {geometry, weights, prepared, stored.data(), args, way}; }

  double weight(int64_t output, int64_t tap, int64_t channel) const {
    const int64_t within = channels_last ? tap * geometry.group_channels() + channel : channel * geometry.taps() + tap;
    return values[output * geometry.inputs() + within];
  }

  // The exact sums of the steps, [T, neurons], or with window timing of the counts, [neurons]. Those of an output with
  // a weight that is not finite are NaN, whatever spikes.
  std::vector<double> sums() const {
    const Geometry& g = geometry;
    const bool counts = args.timing == Timing::kWindow;
    const int64_t channels = g.group_channels(), outputs = g.group_outputs(), neurons = args.neurons;
    std::vector<double> by_input(values.size());  // [groups, taps, channels, outputs]
    std::vector<bool> lost(g.outputs);
    for (int64_t output = 0; output < g.outputs; ++output) {
      for (int64_t k = 0; k < g.inputs(); ++k) {
        const int64_t row = (output / outputs * g.inputs() + k) * outputs;
        by_input[row + output % outputs] = weight(output, k / channels, k % channels);
        if (!std::isfinite(values[output * g.inputs() + k])) lost[output] = true;
      }
    }
    std::vector<double> out((counts ? 1 : T) * neurons);
    for (int64_t i = 0; i < g.rows() * g.taps() * g.channels; ++i) {
      const int64_t row = i / g.channels / g.taps(), tap = i / g.channels % g.taps(), c = i % g.channels;
      const int64_t line = row / g.out_width(), b = line / g.out_height();
      const int64_t y = line % g.out_height() * g.stride[0] - g.padding[0] + tap / g.kernel[1] * g.dilation[0];
      const int64_t x = row % g.out_width() * g.stride[1] - g.padding[1] + tap % g.kernel[1] * g.dilation[1];
      if (y < 0 || y >= g.height || x < 0 || x >= g.width) continue;
      const double* w = by_input.data() + ((c / channels * g.taps() + tap) * channels + c % channels) * outputs;
      double* to = out.data() + row * g.outputs + c / channels * outputs;
      const uint8_t* byte = stored.data() + ((b * g.height + y) * g.width + x) * g.channels + c;
      for (int32_t t = 0; t < (counts ? 1 : T); ++t, to += neurons) {
        const int spikes = counts ? *byte : byte[t / 8 * inputs()] >> (t % 8) & 1;
        for (int64_t n = 0; spikes > 0 && n < outputs; ++n) to[n] += spikes * w[n];
      }
    }
    for (size_t i = 0; i < out.size(); ++i) {
      if (lost[i % g.outputs]) out[i] = NAN;
    }
    return out;
  }

  // The products of the window: exact sums, rounded once.
  std::vector<float> windows() const { return windows(sums()); }
  std::vector<float> windows(const std::vector<double>& all) const {
    std::vector<double> total(args.neurons);
    for (size_t i = 0, n = 0; i < all.size(); ++i, n = n + 1 == total.size() ? 0 : n + 1) total[n] += all[i];
    return {total.begin(), total.end()};
  }

  std::vector<PlainNeuron> expected() const {
    std::vector<PlainNeuron> out;
    const std::vector<double> all = sums();
    const std::vector<float> window = windows(all);
    for (int64_t n = 0; n < args.neurons; ++n) {
      const auto y = [&](int t) { return static_cast<float>(all[t * args.neurons + n]); };
      out.push_back(args.timing == Timing::kWindow ? plain_burst(args, n, window[n])
                                                   : plain_neuron(args, n, window[n], y));
    }
    return out;
  }
};

// The weights of a layer, prepared.
struct PreparedWeights {
  std::vector<char> memory;
  char* data;

  PreparedWeights(const Geometry& geometry, const Weights& weights, ParallelFor parallel = serial_for)
      : memory(cpu::prepared_size(geometry, weights) + 64) {
    data = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    cpu::prepare(geometry, weights, data, parallel);
  }
};

// A layer with batch norm, from the kernels: the product, its statistics, and the neurons with their scale and shift.
struct LayerNorm {
  BatchNorm norm;
  float *product, *mean, *var;  // [rows, outputs], [outputs], [outputs]
};
inline void run_normalised(Layer layer, const LayerNorm& norm, ParallelFor parallel) {
  if (layer.neuron.neurons == 0) return;
  std::vector<float> scale(layer.geometry.outputs), shift(layer.geometry.outputs);
  cpu::Workspace workspace;
  if (layer.timing() == Timing::kStep && layer.prepared == nullptr) cpu::prepare_twice(layer, workspace, parallel);
  cpu::window_product(layer, norm.product, parallel);
  cpu::batch_norm_statistics({layer.geometry.rows(), layer.geometry.outputs, norm.product, 1.f, norm.norm, norm.mean,
                              norm.var, scale.data(), shift.data()},
                             parallel);
  layer.neuron.scale = scale.data();
  layer.neuron.shift = shift.data();
  if (layer.timing() == Timing::kStep) return cpu::run(layer, parallel);
  cpu::if_scan(norm.product, DType::kFloat32, Source::kImpulse, layer.neuron, parallel);
}

// Runs a layer of one piece by digits and by these instructions, if it and the processor can.
inline bool run_digits(Layer layer, cpu::ByteProducts by, ParallelFor parallel = serial_for) {
  const bool can =
      layer.timing() == Timing::kWindow || by == cpu::ByteProducts::kAmx || layer.weights.dtype == DType::kInt8;
  if (!can || !cpu::has(by) || !cpu::has_digits(layer.geometry)) return false;
  cpu::Workspace workspace;
  if (layer.prepared == nullptr) {
    layer.prepared = cpu::prepare(layer.geometry, layer.weights, Algorithm::kDigits, workspace, parallel);
  }
  const cpu::Prepared prepared(layer);
  const cpu::Digits digits(layer, prepared);
  const cpu::Tiling& tiling = prepared.tiling();
  for (const cpu::Block& block : cpu::blocks_of(layer.geometry, digits.most_rows())) {
    cpu::Workspace of_block(workspace);
    auto* windows = of_block.take<double>(block.rows * tiling.width());
    auto* rounded = of_block.take<float>(block.rows * tiling.width());
    auto* steps = of_block.take<int32_t>(block.rows * tiling.width() * 8 * layer.sheets());
    cpu::BlockInputs in{};
    for (int64_t i = 0; i < tiling.tiles(); ++i) {
      if (i % tiling.tiles_per_group == 0) in = digits.load(i / tiling.tiles_per_group, block, of_block, parallel);
      in.expanded.most = *std::max_element(layer.stored, layer.stored + layer.geometry.sheet_size());
      const cpu::Tile tile = digits.tile(i, block, of_block);
      const auto columns = prepared.columns(tile);
      if (layer.timing() == Timing::kWindow && cpu::rounds(in.expanded, columns.data(), tiling.registers)) {
        cpu::multiply_bytes(in.expanded, columns.data(), tiling.registers, rounded, by);
        cpu::fire_window_sums(tile, rounded, layer.neuron);
      } else if (layer.timing() == Timing::kWindow) {
        cpu::multiply_bytes(in.expanded, columns.data(), tiling.registers, windows, by);
        cpu::fire_window_sums(tile, windows, layer.neuron);
      } else {
        cpu::fire_bytes(in.expanded, columns.data(), tile, layer.neuron, steps, by);
      }
    }
  }
  return true;
}

// Whether kernels wrote these outputs for all neurons.
inline bool agree(const Neuron& args, const std::vector<PlainNeuron>& want) {
  for (int64_t n = 0; n < args.neurons; ++n) {
    if (!agrees(args, n, want[n])) return false;
  }
  return mask_ends(args);
}

constexpr Way kWays[] = {{Algorithm::kFastest, 0}, {Algorithm::kLists, 0}, {Algorithm::kLists, 1},
                         {Algorithm::kLists, 2},   {Algorithm::kLists, 4}, {Algorithm::kDigits, 0},
                         {Algorithm::kPlain, 0},   {Algorithm::kFilter, 0}};

inline std::string text(const Way& way) {
  return "algorithm " + std::to_string(static_cast<int>(way.algorithm)) + "/" + std::to_string(way.steps);
}

// Checks the neurons and, with window timing, the product alone, with one thread and with several; and every kind of
// byte product that the processor supports, not only the one that the layer would use.
inline void check(ProductLayer& layer, const char* name) {
  layer.finish();
  const std::vector<PlainNeuron> want = layer.expected();
  const bool window = layer.args.timing == Timing::kWindow;
  std::vector<float> u(layer.args.neurons);
  const std::vector<float> product = window ? layer.windows() : u;
  for (const Way& way : kWays) {
    for (ParallelFor parallel : {serial_for, threads_for}) {
      layer.way = way;
      const Outputs got(layer.args);
      if (way.algorithm == Algorithm::kFilter) layer.args.v = nullptr;  // which it cannot give
      cpu::run(layer.layer(), parallel);
      CHECK(agree(layer.args, want), "%s, T %d, %s, %s", name, layer.T, text(way).c_str(),
            parallel == serial_for ? "serial" : "threads");
      if (!window) continue;
      std::fill(u.begin(), u.end(), -77.f);
      cpu::window_product(layer.layer(), u.data(), parallel);
      CHECK(u == product, "%s: the product, %s", name, text(way).c_str());
    }
  }
  for (int kind = 1; (window || layer.T <= 32) && kind <= int(cpu::ByteProducts::kAmx); ++kind) {
    const Outputs got(layer.args);
    layer.args.mask = nullptr;  // whose bytes would be of two groups
    if (!run_digits(layer.layer(), static_cast<cpu::ByteProducts>(kind))) continue;
    CHECK(agree(layer.args, want), "%s, T %d, digits of kind %d", name, layer.T, kind);
  }
}

// --- a layer from fuzzed bytes: any shape that a plain loop computes in milliseconds ---------------------------------

constexpr int64_t kMostProducts = 1 << 16;

inline Geometry any_linear(Input& in) {
  const int64_t inputs = in.range(0, in.flag() ? 10000 : 300);  // more than a K-block, or a list entry, can hold
  const int64_t outputs = in.range(1, 70);
  return linear(inputs, outputs, in.range(0, 6));
}

inline Geometry any_image(Input& in) {
  Geometry g{};
  g.groups = in.range(1, 20);
  g.channels =
      g.groups * in.pick<int64_t>({1, 64, 128, in.range(1, 300)});  // depthwise and whole chunks have their own code
  g.outputs = g.groups * in.range(1, 40);
  g.batch = in.range(0, 3);
  int64_t* size[] = {&g.height, &g.width};
  for (int i = 0; i < 2; ++i) {
    g.kernel[i] = in.range(1, 5);
    g.stride[i] = in.range(1, 4);
    g.padding[i] = in.range(0, 6);
    g.dilation[i] = in.range(1, 4);
    g.after[i] = in.range(-1, 3);
    const int64_t least = g.dilation[i] * (g.kernel[i] - 1) + 1 - 2 * g.padding[i] - g.after[i];
    *size[i] = std::max(least, in.range(1, in.flag() ? 4 : i == 0 ? 12 : 300));  // long lines are cut into blocks
  }
  return g;
}

// As networks have them, with as many lines and outputs as `most` products allow.
inline Geometry practical_image(Input& in, int64_t most) {
  constexpr int64_t kChannels[] = {16, 32, 48, 64, 96, 128, 192, 256};
  constexpr std::pair<int64_t, int64_t> kKernels[] = {{1, 1}, {3, 1}, {1, 3}, {3, 3}, {5, 5}};
  Geometry g{};
  g.batch = in.range(1, 2);
  g.channels = in.pick(kChannels);
  g.groups = std::gcd(g.channels, in.pick<int64_t>({1, 2, 4, 8, 32, g.channels}));
  std::tie(g.kernel[0], g.kernel[1]) = in.pick(kKernels);
  int64_t* size[] = {&g.height, &g.width};
  for (int i = 0; i < 2; ++i) {
    g.stride[i] = in.pick({1, 1, 2});
    g.dilation[i] = in.pick({1, 1, 2});
    g.padding[i] = in.flag() ? g.dilation[i] * (g.kernel[i] - 1) / 2 : 0;
    const int64_t least = g.dilation[i] * (g.kernel[i] - 1) + 1 - 2 * g.padding[i];
    *size[i] = std::max(least, i == 0 ? 1 : in.pick<int64_t>({7, 14, 16, 28, 30, 32, 48, 56}));
  }
  const auto products = [&] { return g.neurons() * (g.inputs() + 32); };  // a neuron is work too
  g.outputs = g.groups;
  g.outputs *= std::clamp<int64_t>(most / products(), 1, std::max<int64_t>(1, in.pick(kChannels) / g.groups));
  for (int64_t lines = in.range(1, g.width); lines > g.height && 2 * products() <= most;) ++g.height;
  return g;
}

inline ProductLayer any_options(Input& in, const Geometry& g, int32_t T) {
  const double rate = in.pick({0.1, 0.02, 0.0, 0.5, 1.0});
  const int64_t neurons = g.neurons();
  ProductLayer layer(g, T, rate, static_cast<unsigned>(in.range(0, 255)));
  layer.dtype = in.pick({DType::kFloat32, DType::kBFloat16, DType::kFloat16});
  layer.channels_last = in.flag();
  layer.plain = in.flag();
  layer.way = in.pick(kWays);
  if (in.range(0, 3) == 0) layer.make_integers(in.pick({7, 127}));
  layer.finish();
  Neuron& a = layer.args;
  a.steps = static_cast<int32_t>(in.range(1, 255));
  a.threshold = in.pick({1.f, 0.37f, 20.f});
  a.leak = in.pick({1.f, 0.9f});
  a.gate = in.pick({Gate::kRelu, Gate::kClip});
  a.counts_dtype = in.pick(kDTypes);
  if (T > 256) a.counts_dtype = DType::kFloat32;  // bfloat16 does not represent all counts
  if (!layer.plain) {
    a.v_init_size = in.pick({neurons, int64_t{1}, g.out_height() * g.out_width() * g.outputs});
    a.residual_stored = in.maybe(a.residual_stored);
    a.residual_scale = in.maybe(a.residual_scale);
  }
  if (T <= most_steps(Timing::kWindow) && in.flag()) {  // the bytes become counts
    a.timing = Timing::kWindow;
    a.steps = T;
    a.leak = 1;
    layer.stored.resize(layer.inputs());
    const int most = static_cast<int>(in.pick({255, 8, 15, 127, 128}));
    for (uint8_t& count : layer.stored) count = static_cast<uint8_t>(std::min<int>(count, most));
  }
  parts = in.range(1, 5);
  return layer;
}

// Returns nothing if the layer would be too large. Scale, shift and other options are present or absent.
inline std::optional<ProductLayer> any_layer(Input& in) {
  const auto T = static_cast<int32_t>(in.range(1, in.flag() ? 600 : 10));
  const int64_t most = 8 * kMostProducts / T;
  const Geometry g = in.flag() ? practical_image(in, most) : in.flag() ? any_linear(in) : any_image(in);
  if (g.inputs() * g.outputs > kMostProducts || g.neurons() * (g.inputs() + 8) > most) return {};
  return any_options(in, g, T);
}

inline std::string text(const ProductLayer& layer) {
  const Geometry& g = layer.geometry;
  std::string out = layer.args.timing == Timing::kWindow ? "window timing" : "step timing";
  out += ", T " + std::to_string(layer.T) + ", " + text(layer.way) + ", geometry";
  for (const int64_t size :
       {g.batch, g.height, g.width, g.channels, g.outputs, g.groups, g.kernel[0], g.kernel[1], g.stride[0], g.stride[1],
        g.padding[0], g.padding[1], g.dilation[0], g.dilation[1], g.after[0], g.after[1]}) {
    out += " " + std::to_string(size);
  }
  return out;
}

}  // namespace tandem::test
