// Attention at the counts of a window: in each head q (k' v), for spikes additions of rows. All sums are integers,
// which float32 or float64 holds, so their order does not matter.
#include <algorithm>

#include "../cpu/vectors.h"
#include "../neuron/if_neuron.h"
#include "run.h"

namespace tandem::network {

namespace {

using cpu::Vec;

struct Heads {
  int64_t tokens, heads, keys, values, wide;  // channels of a head; values filled up to whole vectors
  int64_t scratch() const { return 2 * tokens * keys + (2 * tokens + keys) * wide; }
};

// R rows of out [.., wide] = sum over s of a[s * over + row * across] times b[s, wide].
template <class A, int L, int R>
TANDEM_INLINE void multiply_rows(const A* a, int64_t over, int64_t across, const A* b, int64_t sums, int64_t wide,
                                 A* out) {
  for (int64_t j = 0; j < wide; j += L) {
    Vec<A, L> rows[R] = {};
    for (int64_t s = 0; s < sums; ++s) {
      const auto added = cpu::load<Vec<A, L>>(b + s * wide + j);
      for (int r = 0; r < R; ++r) rows[r] += a[s * over + r * across] * added;
    }
    for (int r = 0; r < R; ++r) cpu::store(out + r * wide + j, rows[r]);
  }
}

template <class A, int L>
TANDEM_INLINE void multiply(const A* a, int64_t over, int64_t across, const A* b, int64_t sums, int64_t n, int64_t wide,
                            A* out) {
  int64_t row = 0;
  for (; row + 4 <= n; row += 4) {
    multiply_rows<A, L, 4>(a + row * across, over, across, b, sums, wide, out + row * wide);
  }
  for (; row < n; ++row) multiply_rows<A, L, 1>(a + row * across, over, across, b, sums, wide, out + row * wide);
}

// The counts of `channels` channels of each token as numbers, in rows that are filled up with zeros.
template <class A>
TANDEM_INLINE void widen_counts(const uint8_t* x, int64_t stride, int64_t tokens, int64_t channels, int64_t wide,
                                A* to) {
  for (int64_t t = 0; t < tokens; ++t, x += stride, to += wide) {
    for (int64_t i = 0; i < channels; ++i) to[i] = x[i];
    std::fill(to + channels, to + wide, A{});
  }
}

// x: counts of q, k and v, [tokens, heads * (2 * keys + values)].
template <class A, int L>
TANDEM_INLINE void attend_sample(const Heads& n, const uint8_t* x, float scale, A* scratch, float* y) {
  const int64_t first_v = 2 * n.heads * n.keys, all_values = n.heads * n.values, stride = first_v + all_values;
  A *q = scratch, *k = q + n.tokens * n.keys, *v = k + n.tokens * n.keys, *m = v + n.tokens * n.wide;
  A* u = m + n.keys * n.wide;
  for (int64_t h = 0; h < n.heads; ++h) {
    widen_counts(x + h * n.keys, stride, n.tokens, n.keys, n.keys, q);
    widen_counts(x + (n.heads + h) * n.keys, stride, n.tokens, n.keys, n.keys, k);
    widen_counts(x + first_v + h * n.values, stride, n.tokens, n.values, n.wide, v);
    multiply<A, L>(k, n.keys, 1, v, n.tokens, n.keys, n.wide, m);
    multiply<A, L>(q, 1, n.keys, m, n.keys, n.tokens, n.wide, u);
    for (int64_t t = 0; t < n.tokens; ++t) {
      float* to = y + t * all_values + h * n.values;
      for (int64_t j = 0; j < n.values; ++j) to[j] = rounded_mul(scale, static_cast<float>(u[t * n.wide + j]));
    }
  }
}

}  // namespace

void Run::attend(int64_t i) {
  const Instruction& in = instruction(i);
  const Shape& from = plan_.steps[i].in;
  const int64_t values = in.outputs / in.groups, wide = (values + cpu::kLanes - 1) / cpu::kLanes * cpu::kLanes;
  const Heads n{from.width, in.groups, (from.channels - in.outputs) / in.groups / 2, values, wide};
  const auto scale = static_cast<float>(network::real(in.gain));
  const bool fits = n.tokens * n.keys * own_T(i) * own_T(i) * own_T(i) <= 1 << 24;  // in float32
  const uint8_t* x = train(in.input);
  auto* y = reinterpret_cast<float*>(result(i));
  cpu::for_workers(call_.parallel, batch_, 1, [&](int64_t begin, int64_t end, cpu::Workspace& memory) {
    auto* const scratch = memory.take<double>(n.scratch());
    for (int64_t b = begin; b < end; ++b) {
      const uint8_t* sample = x + b * from.features();
      float* to = y + b * from.width * in.outputs;
      cpu::at_level([=](auto lanes) TANDEM_INLINE_LAMBDA {
        if (fits) return attend_sample<float, lanes>(n, sample, scale, reinterpret_cast<float*>(scratch), to);
        attend_sample<double, lanes>(n, sample, scale, scratch, to);
      });
    }
  });
}

}  // namespace tandem::network
