// Currents of a run: real numbers of every neuron, a sheet [batch, features] for each step or one for a window. What is
// not a product of spikes or a pooling by the host is computed here, each operation rounded once.
#include <algorithm>
#include <optional>
#include <type_traits>

#include "../neuron/if_neuron.h"
#include "../planes/bits.h"
#include "run.h"

namespace tandem::network {

namespace {

constexpr int64_t kGrain = int64_t{1} << 14;   // numbers that are worth a thread
constexpr int64_t kCached = int64_t{1} << 12;  // that stay in the nearest cache

// A sheet of currents, or of a train's counts or spikes of a step, as numbers.
struct Term {
  const float* numbers;
  const uint8_t* bytes;
  int bit;  // of a step; -1: counts

  // Where they are numbers already, or null.
  const float* values(int64_t first) const { return bytes == nullptr ? numbers + first : nullptr; }
  void read(int64_t first, int64_t n, float* to) const {
    if (bytes == nullptr) {
      std::copy_n(numbers + first, n, to);
    } else if (bit < 0) {
      for (int64_t k = 0; k < n; ++k) to[k] = static_cast<float>(bytes[first + k]);
    } else {
      for (int64_t k = 0; k < n; ++k) to[k] = static_cast<float>(bytes[first + k] >> bit & 1);
    }
  }
};

// y = scale y, then + shift / share, of rows of values of each channel. Null is neutral.
void affine(int64_t channels, const float* scale, const float* shift, float share, int64_t n, float* y) {
  for (float* const end = y + n; y < end; y += channels) {
    for (int64_t c = 0; c < channels && scale != nullptr; ++c) y[c] = rounded_mul(scale[c], y[c]);
    for (int64_t c = 0; c < channels && shift != nullptr; ++c) y[c] = rounded_add(y[c], shift[c] / share);
  }
}

}  // namespace

int64_t Run::sheets(int64_t i) const { return program_.has_window_timing(i) ? 1 : T_; }

// The currents of a layer without neurons.
void Run::currents(int64_t i) {
  const Neuron a = neurons(i);
  const int64_t n = a.neurons, steps = sheets(i);
  auto* out = reinterpret_cast<float*>(result(i));
  int64_t computed = steps;  // the others are as the last of them
  if (program_.reads_train(i)) {
    multiply_steps(layer(i, batch_, a), steps, out);
  } else if (program_.reads_currents(i)) {
    const int64_t inputs = batch_ * plan_.steps[i].in.features();
    const float* x = real(instruction(i).input);
    for (int64_t s = 0; s < steps; ++s) {
      std::copy_n(call_.host->product(real_layer(i), weights(i), nullptr, x + s * inputs), n, out + s * n);
      call_.host->forget(1);
    }
  } else {
    const float* y = now(i, n);
    const bool once = a.timing == Timing::kWindow;
    const float times = once && !program_.reads_impulse(i) ? static_cast<float>(plan_.T) : 1.f;
    std::transform(y, y + n, out, [&](float x) { return rounded_mul(times, x); });
    computed = std::min<int64_t>(steps, program_.reads_impulse(i) ? 2 : 1);
    std::fill_n(out + n, (computed - 1) * n, 0.f);
  }
  affine(a.channels, a.scale, a.shift, share(i), computed * n, out);
  for (int64_t t = computed; t < steps; ++t) std::copy_n(out + (computed - 1) * n, n, out + t * n);
}

// The number of sheets among which a shift is divided.
float Run::share(int64_t i) const { return program_.has_window_timing(i) ? 1.f : static_cast<float>(plan_.T); }

void Run::sum(int64_t i) {
  const Instruction& in = instruction(i);
  const int64_t channels = in.outputs, n = batch_ * plan_.steps[i].out.features();
  const auto term = [&](int64_t v, int64_t s) -> Term {
    if (!program_.is_train(v)) return {real(v) + s * n, nullptr, 0};
    if (program_.value(v) == Value::kWindowTrain) return {nullptr, train(v), -1};
    return {nullptr, train(v) + s / 8 * n, static_cast<int>(s % 8)};
  };
  for (int64_t s = 0; s < sheets(i); ++s) {
    auto* out = reinterpret_cast<float*>(result(i)) + s * n;
    const Term x = term(in.input, s);
    const std::optional<Term> added = in.residual == kAbsent ? std::nullopt : std::optional(term(in.residual, s));
    const int64_t grain = std::max<int64_t>(1, kGrain / channels), at_once = (kCached + channels - 1) / channels;
    cpu::for_workers(call_.parallel, n / channels, grain, [&](int64_t begin, int64_t end, cpu::Workspace& memory) {
      auto* more = added ? memory.take<float>(std::min(at_once, end - begin) * channels) : nullptr;
      for (int64_t row = begin; row < end; row += at_once) {
        const int64_t first = row * channels, size = std::min(at_once, end - row) * channels;
        float* y = out + first;
        const float* terms[2] = {x.values(first), added ? added->values(first) : nullptr};
        if (terms[0] == nullptr || !added || in.scale != kAbsent || in.shift != kAbsent) {
          x.read(first, size, y);
          affine(channels, floats(in.scale), floats(in.shift), share(i), size, y);
          terms[0] = y;
        }
        if (!added) continue;
        if (terms[1] == nullptr || in.residual_scale != kAbsent) {
          added->read(first, size, more);
          affine(channels, floats(in.residual_scale), nullptr, 1, size, more);
          terms[1] = more;
        }
        for (int64_t k = 0; k < size; ++k) y[k] = rounded_add(terms[0][k], terms[1][k]);
      }
    });
  }
}

template <class E>
void Run::gather(int64_t i, int64_t samples, const E* x, const E* joined, E* out, ParallelFor parallel) const {
  const Instruction& in = instruction(i);
  const Plan::Step& step = plan_.steps[i];
  const auto* index = reinterpret_cast<const int32_t*>(floats(in.index));
  const bool by_channel = in.by_channel != 0;
  const int64_t size = by_channel ? in.outputs : step.out.features();
  const int64_t inputs = by_channel ? step.in.channels : step.in.features(), others = in.channels - inputs;
  const int64_t rows = samples * (by_channel ? step.in.height * step.in.width : 1);
  parallel_ranges(parallel, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, size)),
                  [=](int64_t begin, int64_t end) {
                    for (int64_t row = begin; row < end; ++row) {
                      const E *from = x + row * inputs, *other = joined + row * others;
                      E* to = out + row * size;
                      if (index == nullptr) std::copy_n(other, others, std::copy_n(from, inputs, to));
                      for (int64_t k = 0; k < size && index != nullptr; ++k) {
                        const int64_t at = index[k];
                        to[k] = at < 0 ? E{} : at < inputs ? from[at] : other[at - inputs];
                      }
                    }
                  });
}

template void Run::gather(int64_t, int64_t, const uint8_t*, const uint8_t*, uint8_t*, ParallelFor) const;

void Run::gather(int64_t i) {
  const int64_t joined = instruction(i).residual;
  if (program_.values[i] == Value::kReal) {
    const auto* index = reinterpret_cast<const int32_t*>(floats(instruction(i).index));
    values_[i] = call_.host->gathered(real_layer(i), index, real(instruction(i).input));
    return;
  }
  const void *x = value(instruction(i).input), *other = joined == kAbsent ? nullptr : value(joined);
  const auto of = [&](auto* out, int64_t samples) {
    using E = std::remove_pointer_t<decltype(out)>;
    gather(i, samples, static_cast<const E*>(x), static_cast<const E*>(other), out, call_.parallel);
  };
  if (program_.values[i] == Value::kCurrents) return of(reinterpret_cast<float*>(result(i)), batch_ * sheets(i));
  of(result(i), images(i));
}

// A pooling, an upsampling or a Flatten of currents: the host's results have their channels first.
void Run::move_currents(int64_t i) {
  const Plan::Step& step = plan_.steps[i];
  const int64_t batch = batch_, inputs = batch * step.in.features(), n = batch * step.out.features();
  auto* out = reinterpret_cast<float*>(result(i));
  const float* x = real(instruction(i).input);
  for (int64_t s = 0; s < sheets(i); ++s, x += inputs, out += n) {
    if (program_.kind(i) == Kind::flatten) {
      transpose(x, step.in.height * step.in.width, step.in.channels, out);
    } else {
      const Kind kind = program_.kind(i);
      const float* y = kind == Kind::max_pool   ? call_.host->maximum(real_layer(i), x)
                       : kind == Kind::upsample ? call_.host->upsampled(real_layer(i), x)
                                                : call_.host->mean(real_layer(i), x);
      transpose(y, step.out.channels, step.out.height * step.out.width, out);
      call_.host->forget(1);
    }
  }
}

// Of each sample [rows, columns].
void Run::transpose(const float* x, int64_t rows, int64_t columns, float* out) const {
  const int64_t size = rows * columns;
  parallel_ranges(call_.parallel, batch_, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, size)),
                  [=](int64_t begin, int64_t end) {
                    for (int64_t b = begin; b < end; ++b) {
                      for (int64_t r = 0; r < rows; ++r) {
                        for (int64_t c = 0; c < columns; ++c)
                          out[b * size + c * rows + r] = x[b * size + r * columns + c];
                      }
                    }
                  });
}

}  // namespace tandem::network
