// The vectorised scan against one neuron at a time: every dtype, source, gate and residual, tails of N and T.
#include "check.h"
#include "scan_layer.h"

using namespace tandem;
using namespace tandem::test;

namespace {

template <class C>
void check_neuron(const ScanLayer<C>& layer, int64_t n) {
  const Case& c = layer.c;
  CHECK(agrees(layer.args, n, layer.expected(n)),
        "dtype %d source %d gate %d residual %d T %d neurons %lld channels %lld neuron %lld", static_cast<int>(c.dtype),
        static_cast<int>(c.source), static_cast<int>(c.gate), static_cast<int>(c.residual), c.T,
        static_cast<long long>(c.neurons), static_cast<long long>(c.channels), static_cast<long long>(n));
}

template <class C>
void check_scan(const Case& c, unsigned seed) {
  ScanLayer<C> layer(c, seed);
  Outputs<C> out(layer.args);
  cpu::if_scan(layer.currents.data(), c.dtype, c.source, layer.args, serial_for);
  for (int64_t n = 0; n < c.neurons; ++n) check_neuron(layer, n);
  CHECK(mask_ends(layer.args), "unused bits of the mask, neurons %lld", static_cast<long long>(c.neurons));
}

void check_scan(const Case& c, unsigned seed) {
  c.dtype == DType::kFloat64 ? check_scan<double>(c, seed) : check_scan<float>(c, seed);
}

}  // namespace

TEST(every_shape) {
  unsigned seed = 0;
  for (DType dtype : kDTypes) {
    for (Source source : {Source::kTrain, Source::kConstant, Source::kImpulse}) {
      for (int32_t T : {1, 7, 8, 9, 33, 255, 256, 1000}) {
        for (int64_t neurons : {0, 1, 3, 63, 64, 65, 1000}) {
          Case c;
          c.dtype = c.counts_dtype = dtype;
          if (T > 256) c.counts_dtype = DType::kFloat32;  // a bfloat16 need not hold them
          c.source = source;
          c.T = c.steps = T;
          c.neurons = neurons;
          check_scan(c, ++seed);
        }
      }
    }
  }
}

TEST(every_gate_residual_and_scale) {
  unsigned seed = 0;
  for (DType dtype : kDTypes) {
    for (Gate gate : {Gate::kRelu, Gate::kClip, Gate::kResu}) {
      for (Residual residual : {Residual::kNone, Residual::kPlanes, Residual::kCurrents}) {
        for (bool scaled : {false, true}) {
          for (int64_t channels : {1, 3, 16, 65}) {
            Case c;
            c.dtype = dtype;
            c.gate = gate;
            c.residual = residual;
            c.scaled = scaled;
            c.channels = channels;
            c.neurons = 7 * channels;
            c.T = 11;
            c.steps = 5;
            check_scan(c, ++seed);
          }
        }
      }
    }
  }
}

TEST(windows_of_currents) {
  unsigned seed = 0;
  for (DType dtype : kDTypes) {
    for (Source source : {Source::kTrain, Source::kConstant, Source::kImpulse}) {
      for (Residual residual : {Residual::kNone, Residual::kPlanes, Residual::kCurrents}) {
        for (int32_t T : {1, 8, 33, 255}) {
          for (int64_t channels : {1, 3, 65}) {
            Case c;
            c.dtype = c.counts_dtype = dtype;
            c.source = source;
            c.timing = Timing::kWindow;
            c.gate = seed % 2 == 0 ? Gate::kRelu : Gate::kClip;
            c.residual = residual;
            c.scaled = seed % 3 != 0;
            c.channels = channels;
            c.neurons = 7 * channels;
            c.v_init_size = channels;
            c.T = c.steps = T;
            check_scan(c, ++seed);
          }
        }
      }
    }
  }
}

TEST(initial_potential_and_leak) {
  unsigned seed = 0;
  for (DType dtype : kDTypes) {
    for (int64_t v_init_size : {1, 39, 195}) {
      for (double leak : {1.0, 0.9, 0.5}) {
        Case c;
        c.dtype = dtype;
        c.T = 17;
        c.neurons = 195;
        c.channels = 39;
        c.v_init_size = v_init_size;
        c.leak = leak;
        check_scan(c, ++seed);
      }
    }
  }
}

TEST(every_dtype_of_the_counts) {
  for (DType counts : kDTypes) {
    Case c;
    c.counts_dtype = counts;
    c.T = 255;
    check_scan(c, 1);
  }
}

// Piece by piece as at once.
TEST(pieces_of_a_window) {
  for (Gate gate : {Gate::kRelu, Gate::kClip, Gate::kResu}) {
    for (Residual residual : {Residual::kNone, Residual::kPlanes, Residual::kCurrents}) {
      Case c;
      c.gate = gate;
      c.residual = residual;
      c.scaled = true;
      c.T = c.steps = 300;
      c.neurons = 75;
      c.channels = 3;
      c.leak = 0.9;
      ScanLayer<float> layer(c, 1);
      Outputs<float> out(layer.args);
      std::vector<float> v(c.neurons, NAN), z(c.neurons, NAN);
      std::vector<uint16_t> counts(c.neurons, 12345);
      for (int32_t first : {0, 8, 264}) {
        const int32_t steps = first == 0 ? 8 : first == 8 ? 256 : 36;
        cpu::if_scan(layer.currents.data() + first * c.neurons * sizeof(float), c.dtype, c.source,
                     piece(layer.args, first, steps, {v.data(), z.data(), counts.data()}), serial_for);
      }
      for (int64_t n = 0; n < c.neurons; ++n) check_neuron(layer, n);
    }
  }
}

TEST(the_longest_window) {
  Case c;
  c.T = c.steps = 65535;
  c.neurons = 3;
  c.gate = Gate::kClip;
  check_scan(c, 1);
}

TEST(nan_never_fires) {
  Case c;
  ScanLayer<float> layer(c, 1);
  for (int64_t i = 0; i < c.T * c.neurons; i += 3) {
    const float nan = std::nanf("");
    std::memcpy(layer.currents.data() + i * sizeof(float), &nan, sizeof(nan));
  }
  Outputs<float> out(layer.args);
  cpu::if_scan(layer.currents.data(), c.dtype, c.source, layer.args, serial_for);
  for (int64_t n = 0; n < c.neurons; ++n) check_neuron(layer, n);
}

TEST(threads_do_not_change_the_result) {
  Case c;
  c.neurons = 100003;
  c.channels = 1;
  ScanLayer<float> layer(c, 1);
  Outputs<float> serial(layer.args);
  cpu::if_scan(layer.currents.data(), c.dtype, c.source, layer.args, serial_for);
  Outputs<float> threaded(layer.args);
  cpu::if_scan(layer.currents.data(), c.dtype, c.source, layer.args, threads_for);
  CHECK(serial == threaded, "planes, mask, counts or potentials");
}

TEST(unwanted_outputs_are_not_written) {
  Case c;
  ScanLayer<float> layer(c, 1);
  Outputs<float> all(layer.args);
  cpu::if_scan(layer.currents.data(), c.dtype, c.source, layer.args, serial_for);
  std::vector<uint8_t> planes(all.planes.size());
  layer.args.planes = planes.data();
  layer.args.mask = nullptr;
  layer.args.counts = nullptr;
  layer.args.v = nullptr;
  cpu::if_scan(layer.currents.data(), c.dtype, c.source, layer.args, serial_for);
  CHECK(planes == all.planes, "planes");
}
