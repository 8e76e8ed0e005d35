#include "filter.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "../cpu/workspace.h"
#include "../neuron/burst.h"
#include "../weights/units.h"

namespace tandem::cpu {

namespace {

// Wide vectors multiply eight rows at once, those of four floats take 1.07 of the time of lists for sixteen; with more
// steps than that, lists read fewer weights.
constexpr int64_t kMostRows = 16, kMostSteps = 8, kMostInputs = 1 << 20;
constexpr int kAtOnce = 4;        // outputs, whose weights are read side by side
constexpr int kWholeWindow = -1;  // in place of a step

// What all outputs read: rows of counts or, with step timing, of the spikes of each step of each sample.
struct Inputs {
  int64_t rows, size;   // size: inputs K
  const float* counts;  // [rows, K]
  const float* totals;  // [rows], Σc
};

// An output's weights as floats, in the workspace unless they are floats already.
const float* weights_of(const Weights& weights, int64_t output, int64_t size, Workspace& workspace) {
  if (weights.dtype == DType::kFloat32) return static_cast<const float*>(weights.data) + output * size;
  auto* floats = workspace.take<float>(size);
  const auto widen = [&](const auto* halves) {
    for (int64_t k = 0; k < size; ++k) floats[k] = to_float(halves[output * size + k]);
  };
  weights.dtype == DType::kBFloat16 ? widen(static_cast<const BFloat16*>(weights.data))
                                    : widen(static_cast<const Float16*>(weights.data));
  return floats;
}
bool are_halves(const Weights& weights) { return weights.dtype != DType::kFloat32; }

template <class V, size_t... lanes>
TANDEM_INLINE auto add_halves(V x, std::index_sequence<lanes...>) {
  return __builtin_shufflevector(x, x, lanes...) + __builtin_shufflevector(x, x, (sizeof...(lanes) + lanes)...);
}
template <class E, int L>
TANDEM_INLINE E sum_of(typename Simd<E, L>::type x) {
  if constexpr (L == 2) return x[0] + x[1];
  if constexpr (L > 2) return sum_of<E, L / 2>(add_halves(x, std::make_index_sequence<L / 2>()));
}

// fl(w c) of R outputs and S samples: products [S, 16]. `most`: the largest magnitudes, as integers.
template <int L, int R, int S>
TANDEM_INLINE void multiply_floats(const float* const* weights, const float* counts, int64_t size, float* products,
                                   Int<L>& most) {
  Vec<float, L> sums[R][S]{};
  const auto add = [&](int64_t k, int lanes) TANDEM_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch(weights[r] + kAtOnce * size + k);  // for the next outputs
      const auto w = load_first<Vec<float, L>>(weights[r] + k, lanes);
      const auto magnitudes = reinterpret_cast<Int<L>>(w) & 0x7fffffff;
      most = magnitudes > most ? magnitudes : most;
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) sums[r][s] += w * load_first<Vec<float, L>>(counts + s * size + k, lanes);
    }
  };
  int64_t k = 0;
  for (; k + L <= size; k += L) add(k, L);
  if (k < size) add(k, static_cast<int>(size - k));
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) products[s * kLanes + r] = sum_of<float, L>(sums[r][s]);
  }
}

// e / Σc for sixteen outputs (filter.h), with the additions of eight steps. By unit_exponent() h is at most K max|w| /
// 2^27 + 2^-57, or for half types, which have two digits, max|w| / 16319 if that is more. A little is added for the
// roundings of the bound itself.
template <int L>
TANDEM_INLINE float error_per_spike(const Int<L>& magnitudes, int64_t size, bool half) {
  int32_t largest = 0;
  for (int i = 0; i < L; ++i) largest = std::max<int32_t>(largest, magnitudes[i]);
  const auto inputs = static_cast<float>(size), roundings = static_cast<float>(size / L + 16);
  const float relative = roundings * 0x1.1p-24f + inputs * 0x1p-28f + (half ? 0x1.1p-15f : 0);
  return 1.001f * (relative * float_of_bits(static_cast<uint32_t>(largest)) + 0x1p-57f);
}

// The sum of an output's integers over some rows of counts, rounded once; NaN if a weight is not finite.
template <int L>
TANDEM_INLINE float exact_product(const Weights& weights, int64_t output, const float* counts, int64_t size,
                                  int64_t rows, Workspace& outer) {
  Workspace workspace(outer);
  const float* floats = weights_of(weights, output, size, workspace);
  int scale = 0;
  const OutputUnit unit = measure_unit<L>(floats, size, scale, are_halves(weights));
  if (!unit.finite) return std::numeric_limits<float>::quiet_NaN();
  constexpr int H = L / 2;
  const float factor = power_of_two(-unit.exponent);
  Vec<double, H> sum{};
  for (int64_t row = 0; row < rows; ++row, counts += size) {
    for (int64_t k = 0; k < size; k += H) {
      const int lanes = static_cast<int>(std::min<int64_t>(H, size - k));
      const auto integers = to_fixed(load_first<Vec<float, H>>(floats + k, lanes) * factor);
      sum += __builtin_convertvector(integers, Vec<double, H>) *
             __builtin_convertvector(load_first<Vec<float, H>>(counts + k, lanes), Vec<double, H>);
    }
  }
  return static_cast<float>(sum_of<double, H>(sum)) * power_of_two(unit.exponent);
}

// Fires both ends of the neurons from n on: bursts, or the spikes of a plane. product(end, t, i) is that of part i at a
// step or, at t = kWholeWindow, of the window.
template <int L, class Product>
TANDEM_INLINE void fire_ends(const Neuron& a, NeuronLanes<L> (&ends)[2], int64_t n, const Product& product,
                             typename NeuronLanes<L>::Plane (&spikes)[2]) {
  constexpr int kParts = kLanes / L;
  for (auto& end : ends) end.start(a, n);
  if (a.timing == Timing::kWindow) {
    const auto window = [&](int s) TANDEM_INLINE_LAMBDA { return product(s / kParts, kWholeWindow, s % kParts); };
    return run_windows(a, ends, n, 0, window, spikes);
  }
  const auto of_step = [&](int t, int s) TANDEM_INLINE_LAMBDA { return product(s / kParts, t, s % kParts); };
  run_plane(a, ends, n, 0, 0, of_step, spikes);
  for (int s = 0; a.is_gated() && s < 2 * kParts; ++s) {
    ends[s / kParts].sum_up(a, s % kParts, of_step(kWholeWindow, s));
  }
}

// The lanes whose spikes or gates differ, or whose potentials are not finite.
template <int L, class Plane>
TANDEM_INLINE void find_doubts(const Neuron& a, const NeuronLanes<L> (&ends)[2], const Plane (&spikes)[2],
                               int32_t* doubts) {
  const float ceiling = a.ceiling();
  for (int i = 0; i < kLanes / L; ++i) {
    Int<L> found = spikes[0][i] ^ spikes[1][i];
    const auto differ = [&](const Int<L>& x, const Int<L>& y) TANDEM_INLINE_LAMBDA { found |= x ^ y; };
    differ(ends[0].z[i] > 0.f, ends[1].z[i] > 0.f);
    differ(ends[0].z[i] < ceiling, ends[1].z[i] < ceiling);
    for (const auto& end : ends) found |= reinterpret_cast<Int<L>>(end.v[i] - end.v[i]);
    store(doubts + i * L, found);
  }
}

// Multiplies sixteen outputs; of fewer the last one again and again. Returns their error per spike.
template <int L>
TANDEM_INLINE float multiply_outputs(const Layer& layer, const Inputs& in, int64_t first, int count, Workspace& outer,
                                     float* products) {
  constexpr int R = kAtOnce;
  Int<L> most{};
  for (int i = 0; i < kLanes; i += R) {
    Workspace workspace(outer);
    const float* weights[R];
    for (int r = 0; r < R; ++r) {
      weights[r] = weights_of(layer.weights, first + std::min(i + r, count - 1), in.size, workspace);
    }
    int64_t row = 0;
    const auto multiply_rows = [&](auto outputs, auto samples) TANDEM_INLINE_LAMBDA {
      constexpr int O = decltype(outputs)::value, S = decltype(samples)::value;
      for (; row + S <= in.rows; row += S) {
        for (int r = 0; r < R; r += O) {
          multiply_floats<L, O, S>(weights + r, in.counts + row * in.size, in.size, products + row * kLanes + i + r,
                                   most);
        }
      }
    };
    using Two = std::integral_constant<int, 2>;
    using Four = std::integral_constant<int, 4>;
    if (L == kLanes) multiply_rows(Two(), std::integral_constant<int, 8>());  // as many sums as there are registers for
    multiply_rows(Two(), Four());
    multiply_rows(Four(), Two());
    multiply_rows(Four(), std::integral_constant<int, 1>());
  }
  return error_per_spike<L>(most, in.size, are_halves(layer.weights));
}

TANDEM_CPU_KERNEL(filter_outputs, (const Layer& layer, const Inputs& in, int64_t first, Workspace& workspace),
                  (layer, in, first, workspace)) {
  const Neuron& a = layer.neuron;
  const int count = static_cast<int>(std::min<int64_t>(kLanes, a.channels - first));
  float products[2][kMostRows][kLanes];  // of both ends
  const float error_of_spike = multiply_outputs<L>(layer, in, first, count, workspace, products[0][0]);
  for (int64_t row = 0; row < in.rows; ++row) {
    for (int i = 0; i < kLanes; ++i) {
      const float product = products[0][row][i];
      const float error = error_of_spike * in.totals[row] + 0x1p-22f * std::abs(product);
      products[0][row][i] = product - error;
      products[1][row][i] = product + error;
    }
  }
  NeuronLanes<L> ends[2];
  for (auto& end : ends) end.begin(a, first, count);
  const int64_t samples = layer.geometry.batch, steps = in.rows / samples;
  for (int64_t sample = 0; sample < samples; ++sample) {
    const int64_t n = sample * a.channels + first, row = sample * steps;
    float windows[2][kLanes] = {};
    for (int64_t t = row; t < row + steps; ++t) {
      for (int i = 0; i < 2 * kLanes; ++i) windows[i / kLanes][i % kLanes] += products[i / kLanes][t][i % kLanes];
    }
    const auto product = [&](int end, int t, int i) TANDEM_INLINE_LAMBDA {
      return load<Vec<float, L>>((t == kWholeWindow ? windows[end] : products[end][row + t]) + i * L);
    };
    typename NeuronLanes<L>::Plane spikes[2] = {};
    fire_ends(a, ends, n, product, spikes);
    int32_t doubts[kLanes];
    find_doubts(a, ends, spikes, doubts);
    if (std::any_of(doubts, doubts + count, [](int32_t doubt) { return doubt != 0; })) {
      for (int i = 0; i < count; ++i) {
        if (doubts[i] == 0) continue;
        const auto exact = [&](int64_t first_row, int64_t rows) {
          return exact_product<L>(layer.weights, first + i, in.counts + first_row * in.size, in.size, rows, workspace);
        };
        windows[0][i] = exact(row, steps);
        for (int64_t t = row; layer.timing() == Timing::kStep && t < row + steps; ++t) products[0][t][i] = exact(t, 1);
      }
      std::memset(spikes, 0, sizeof(spikes));
      fire_ends(a, ends, n, product, spikes);
    }
    layer.timing() == Timing::kWindow ? ends[0].end_window(a, n, spikes[0]) : ends[0].end_plane(a, n, 0, spikes[0]);
    ends[0].end(a, n);
  }
}

}  // namespace

bool can_filter(const Layer& layer) {
  const Geometry& geometry = layer.geometry;
  const int64_t most = capability() == Capability::kDefault ? kMostRows / 2 : kMostRows;
  const bool few =
      layer.timing() == Timing::kWindow ? geometry.batch <= most : geometry.batch * layer.neuron.T <= kMostSteps;
  return few && geometry.is_linear() && geometry.groups == 1 && geometry.channels <= kMostInputs &&
         layer.prepared == nullptr && layer.weights.dtype != DType::kInt8 && !layer.wants_sums() &&
         layer.neuron.v == nullptr;
}

void run_filter(const Layer& layer, Workspace& workspace, ParallelFor parallel) {
  const int64_t size = layer.geometry.channels, outputs = layer.geometry.outputs;
  const int64_t steps = layer.timing() == Timing::kWindow ? 1 : layer.neuron.T, rows = layer.geometry.batch * steps;
  auto* counts = workspace.take<float>(rows * (size + 1));
  float* totals = counts + rows * size;
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* bytes = layer.stored + row / steps * size;
    const auto bit = static_cast<int>(row % steps), mask = layer.timing() == Timing::kWindow ? UINT8_MAX : 1;
    int total = 0;
    for (int64_t k = 0; k < size; ++k) {
      const int spikes = bytes[k] >> bit & mask;
      counts[row * size + k] = static_cast<float>(spikes);
      total += spikes;
    }
    totals[row] = static_cast<float>(total);
  }
  const Inputs in{rows, size, counts, totals};
  constexpr int64_t kGrain = 1 << 16;  // weights worth a thread
  const int64_t grain = 1 + kGrain / (kLanes * size + 1);
  for_workers(parallel, (outputs + kLanes - 1) / kLanes, grain, [&](int64_t begin, int64_t end, Workspace& own) {
    for (int64_t i = begin; i < end; ++i) filter_outputs(layer, in, i * kLanes, own);
  });
}

}  // namespace tandem::cpu
