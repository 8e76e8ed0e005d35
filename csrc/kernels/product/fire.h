// The last stage of products: from sums to spikes, in registers.
#pragma once

#include <algorithm>

#include "../neuron/lanes.h"
#include "../weights/tiling.h"
#include "sums.h"

namespace tandem::cpu {

// Calls f(R) for the registers of the tile, a constant. There are two only with AVX-512 (weights/tiling.h).
template <int L, class F>
TANDEM_INLINE void with_registers(const Tile& tile, const F& f) {
  if constexpr (L == kLanes) {
    if (tile.registers == 2) return f(std::integral_constant<int, 2>());
  }
  f(std::integral_constant<int, 1>());
}

// L sums, rounded to float.
template <int L>
TANDEM_INLINE Vec<float, L> narrow(const double* sums) {
  constexpr int H = L / 2;
  const auto half = [&](int i) TANDEM_INLINE_LAMBDA {
    return __builtin_convertvector(load<Vec<double, H>>(sums + i), Vec<float, H>);
  };
  return join<float, L>(half(0), half(H));
}
template <int L>
TANDEM_INLINE Vec<float, L> narrow(const float* sums) {
  return load<Vec<float, L>>(sums);
}

template <int L, int R, bool whole, class Run>
TANDEM_INLINE void run_rows(const Tile& tile, const Neuron& layer, const Run& run) {
  NeuronLanes<L, whole> neurons[R];
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
    neurons[r].begin(layer, tile.channel + r * kLanes,
                     static_cast<int>(std::clamp<int64_t>(tile.channels - r * kLanes, 0, kLanes)));
  }
  for (int64_t row = 0; row < tile.rows; ++row) {
    const int64_t n = (tile.first_row + row) * layer.channels + tile.channel;
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) neurons[r].start(layer, n + r * kLanes);
    run(row, n, neurons);
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) neurons[r].end(layer, n + r * kLanes);
  }
}

// Runs the neurons of a tile row by row: run(row, n, neurons) runs the neurons from n on through their window.
template <int L, int R, class Run>
TANDEM_INLINE void run_tile(const Tile& tile, const Neuron& layer, const Run& run) {
  if (tile.channels == 16 * R) return run_rows<L, R, true>(tile, layer, run);
  run_rows<L, R, false>(tile, layer, run);
}

// Sums of up to 65,535 int32 in each lane, exact: y[t] = 2^16 (y[t] >> 16) + the rest. The rests add up to less than
// 2^32, so the sums modulo 2^32 give them.
template <int L>
struct LongSums {
  typedef typename Simd<uint32_t, L>::type Words;
  Words words{};
  Int<L> high{};

  TANDEM_INLINE void add(Int<L> y) {
    words += reinterpret_cast<Words>(y);
    high += y >> 16;
  }
  TANDEM_INLINE void write(double* out) const {
    typedef Vec<double, L> Wide;
    const Words rest = words - (reinterpret_cast<Words>(high) << 16);
    store(out, __builtin_convertvector(high, Wide) * 65536.0 + __builtin_convertvector(rest, Wide));
  }
};

// Adds the sums of the earlier pieces of a window, and keeps them for the later ones. A call of memmove here, which may
// change anything, made the caller take 1.08 of its time.
[[gnu::noinline]] inline void add_pieces(const Neuron& layer, int64_t n, int lanes, double* window) {
  double* sums = layer.carried.u + n;
  for (int i = 0; layer.before > 0 && i < lanes; ++i) window[i] += sums[i];
  for (int i = 0; layer.after > 0 && i < lanes; ++i) sums[i] = window[i];
}

// Computes z of sixteen neurons from the sums of their window.
template <int L, bool whole>
TANDEM_INLINE void sum_up(const Neuron& layer, NeuronLanes<L, whole>& neurons, int64_t n, const LongSums<L>* u,
                          const float* unit) {
  double window[kLanes];
#pragma GCC unroll 4
  for (int i = 0; i < kLanes / L; ++i) u[i].write(window + i * L);
  if (__builtin_expect(layer.before > 0 || layer.after > 0, 0)) add_pieces(layer, n, neurons.lanes(), window);
#pragma GCC unroll 4
  for (int i = 0; i < kLanes / L; ++i) {
    neurons.sum_up(layer, i, rounded_mul(narrow<L>(window + i * L), load<Vec<float, L>>(unit + i * L)));
  }
}

// Groups of neurons at once: as many as there are registers for.
template <int L, int R>
constexpr int kGroupsAtOnce = L == kLanes ? R : 1;

// Runs the neurons of a tile by its steps: row_sums(row, plane, sums) computes the sums of a row and plane.
// `only_whole`: all outputs of the tile exist; long loops are compiled for this case alone.
template <int L, class Sum, bool only_whole, class RowSums>
TANDEM_INLINE void run_neurons(const Tile& tile, const Neuron& layer, const RowSums& row_sums) {
  constexpr int R = Sum::kOutputs / kLanes, G = kGroupsAtOnce<L, R>, kParts = kLanes / L;
  const auto run = [&](int64_t row, int64_t n, auto& neurons) TANDEM_INLINE_LAMBDA {
    LongSums<L> u[R * kParts];
    for (int p = 0; p < tile.sheets; ++p) {
      Sum sums[8];
      row_sums(row, p, sums);
      if (layer.is_gated()) {
        const int steps = std::min(8, layer.T - 8 * p);
#pragma GCC unroll 8
        for (int t = 0; t < 8; ++t) {
          if (t == steps) break;
#pragma GCC unroll 8
          for (int s = 0; s < R * kParts; ++s) u[s].add(sums[t].template lanes<L>(s * L));
        }
      }
#pragma GCC unroll 2
      for (int r = 0; r < R; r += G) {
        fire_plane<G>(layer, neurons + r, n + r * kLanes, p, [&](int t, int s) TANDEM_INLINE_LAMBDA {
          const int lane = (r * kParts + s) * L;
          const auto unit = load<Vec<float, L>>(tile.unit + lane);
          return rounded_mul(__builtin_convertvector(sums[t].template lanes<L>(lane), Vec<float, L>), unit);
        });
      }
    }
    if (!layer.is_gated()) return;
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) sum_up(layer, neurons[r], n + r * kLanes, u + r * kParts, tile.unit + r * kLanes);
  };
  if constexpr (only_whole) return run_rows<L, R, true>(tile, layer, run);
  run_tile<L, R>(tile, layer, run);
}

// Whether SteppedNeurons can run the tile.
inline bool can_step(const Tile& tile, const Neuron& layer) {
  return tile.channels % kLanes == 0 && !layer.has_residual();
}

// Sixteen rows of sixteen outputs of a tile, from its output `first` on, with step timing and a few steps at a time;
// between them their state is in memory.
template <bool gated>
class SteppedNeurons {
 public:
  TANDEM_INLINE SteppedNeurons(const Tile& tile, int first, const Neuron& layer)
      : layer_(layer), from_(tile.first_row * layer.channels + tile.channel + first), unit_(tile.unit + first) {
    lanes_.begin(layer, tile.channel + first, kLanes);
  }

  // Runs row r of the sixteen, row `row` of the tile, in Steps steps from t on, all of one plane. sums(i) are those of
  // step t + i.
  template <int Steps, class RowSums>
  TANDEM_INLINE void run(int64_t row, int64_t r, int t, const RowSums& row_sums) {
    State& state = states_[r];
    const int64_t n = from_ + row * layer_.channels;
    if (t == 0) {
      lanes_.start(layer_, n);
      state.count = lanes_.count;
    } else {
      lanes_.v[0] = state.v;
    }
    Lanes::Plane spikes{t % 8 == 0 ? Int<kLanes>{} : state.spikes};
    LongSums<kLanes> u = gated && t > 0 ? state.u : LongSums<kLanes>{};
#pragma GCC unroll 2
    for (int i = 0; i < Steps; ++i) {
      const auto sums = row_sums(i);
      if (gated) u.add(sums);
      const auto product = rounded_mul(__builtin_convertvector(sums, Vec<float>), load<Vec<float>>(unit_));
      lanes_.advance(layer_, 0, input_current(product, lanes_.scale[0], lanes_.k[0]), t + i, spikes);
    }
    const bool last = t + Steps == layer_.T;
    if (last || t % 8 + Steps == 8) {
      lanes_.count = state.count;
      lanes_.end_plane(layer_, n, t / 8, spikes);
      state.count = lanes_.count;
    }
    if (last) {
      if (gated) sum_up(layer_, lanes_, n, &u, unit_);
      return lanes_.end(layer_, n);
    }
    state.v = lanes_.v[0];
    state.spikes = spikes[0];
    if (gated) state.u = u;
  }

 private:
  typedef NeuronLanes<kLanes, true> Lanes;
  struct State {
    Vec<float> v;
    Int<kLanes> spikes;
    LongSums<kLanes> u;
    CountLanes count;
  };

  const Neuron& layer_;
  const int64_t from_;
  const float* unit_;
  Lanes lanes_;
  State states_[16];
};

}  // namespace tandem::cpu
