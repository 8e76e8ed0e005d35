// Layers that would leave tiles almost empty, such as depthwise convolutions, or that tiles do not support. A thread
// owns one neuron and adds four inputs at a time, digit by digit.
#include "product_launch.cuh"

namespace tandem::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 4;  // per multiprocessor: 64 registers for a thread

// A neuron's channel, and its receptive field.
struct Place {
  uint32_t channel;
  Window window;
  const int8_t* digits;
  int count;

  __device__ __forceinline__ Place(const DeviceGeometry& g, int64_t channels, int64_t n) {
    const int64_t pixel = quotient(n, channels);
    channel = static_cast<uint32_t>(n - pixel * channels);
    const int64_t group = channel / static_cast<uint32_t>(g.group_outputs);
    window = find_window(g, g.planes + group * g.group_channels, pixel);
    digits = g.digits + channel * g.digit_rows;
    count = g.digit_counts[channel];
  }

  // Calls add(bytes, k) for the inputs k ... k + 3 of each multiple k of four: their bytes of the plane.
  template <class Add>
  __device__ __forceinline__ void each_four(const DeviceGeometry& g, int plane, const Add& add) const {
    const bool whole = g.spike_bytes >= 4;  // four neighbouring channels are one load
    Tap tap{0, 0, 0};
    for (int k = 0; k < g.depth; k += 4) {
      uint32_t four = 0;
      for (int i = 0; i < (whole ? 1 : 4); ++i) {
        const Reach reach(g, tap);
        const uint8_t* at = window.corner + reach.bytes + plane * g.plane;
        if (k + i < g.depth && reach.is_inside(g, window))
          four |= whole ? load<uint32_t>(at) : static_cast<uint32_t>(*at) << 8 * i;
        advance(tap, g, {0, 0, whole ? 4 : 1});
      }
      if (four != 0) add(four, k);
    }
  }

  __device__ __forceinline__ uint32_t weights(const DeviceGeometry& g, int digit, int k) const {
    return load<uint32_t>(digits + digit * g.digit_row + k);
  }
};

__global__ void __launch_bounds__(kThreads, kBlocks)
    plain_if_kernel(const __grid_constant__ DeviceGeometry g, const __grid_constant__ Neuron<float> a) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  uint32_t gates = 0;
  if (n < a.neurons) {
    const Place at(g, a.channels, n);
    Neurons<1> neurons;
    neurons.channel = at.channel;
    neurons.load_parameters(a);
    neurons.begin(a, remainder(n, a.v_init_size));
    const float unit = g.units[at.channel];
    int64_t total = 0;
    for (int plane = 0; plane < g.P; ++plane) {
      uint32_t sums[kPlaneSteps] = {};  // modulo 2^32; the final sums fit int32
      at.each_four(g, plane, [&](uint32_t spikes, int k) {
        for (int digit = 0; digit < at.count; ++digit) {
          const uint32_t weights = at.weights(g, digit, k);
#pragma unroll
          for (int t = 0; t < kPlaneSteps; ++t) {
            sums[t] += static_cast<uint32_t>(dot(weights, spikes >> t & 0x01010101u)) << 8 * digit;
          }
        }
      });
      Vec<float, 1> current[kPlaneSteps];
#pragma unroll
      for (int t = 0; t < kPlaneSteps; ++t) {
        const auto sum = static_cast<int32_t>(sums[t]);
        total += sum;
        current[t].at[0] = rounded_mul(static_cast<float>(sum), unit);
      }
      const int first = plane * kPlaneSteps;
      const int steps = min(a.T - first, kPlaneSteps);
      neurons.begin_plane(a, n, plane);
      neurons.scale_products(current);
      neurons.add_residual(a, n, first, 0, steps, current);
      neurons.advance(a, 0, steps, current);
      if (plane + 1 < g.P) {
        neurons.end_plane(a, n, plane);
      } else {
        gates = neurons.end(a, n, plane, {rounded_mul(static_cast<float>(total), unit)});
      }
    }
  }
  put_gates<1>(a.mask, n, n < a.neurons ? 1 : 0, gates, 1, g.gate_bytes);
}

__global__ void __launch_bounds__(kThreads, kBlocks)
    plain_window_kernel(const __grid_constant__ DeviceGeometry g, const __grid_constant__ WindowEnd end,
                        int64_t neurons, int64_t channels) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  uint32_t channel = 0;
  float u = 0;
  if (n < neurons) {
    const Place at(g, channels, n);
    int64_t sum = 0;
    at.each_four(g, 0, [&](uint32_t counts, int k) {
      for (int digit = 0; digit < at.count; ++digit) {
        sum += static_cast<int64_t>(dot(at.weights(g, digit, k), counts)) * (int64_t{1} << 8 * digit);
      }
    });
    channel = at.channel;
    u = rounded_mul(static_cast<float>(sum), g.units[channel]);
  }
  end(end.neurons<1>(channel, n < neurons ? 1 : 0), n, {u});
}

}  // namespace

int run_plain(const Layer& layer, void* stream) {
  return launch_by_four<kThreads>(
      false, layer.geometry.neurons(), stream, [](auto) { return &plain_if_kernel; }, geometry_of(layer), layer.neuron);
}

int run_plain(const Layer& layer, const WindowEnd& end, void* stream) {
  const int64_t neurons = layer.geometry.neurons();
  WindowEnd one = end;
  one.whole = true;
  one.lanes = 1;
  return launch_by_four<kThreads>(
      false, neurons, stream, [](auto) { return &plain_window_kernel; }, geometry_of(layer), one, neurons,
      layer.geometry.outputs);
}

}  // namespace tandem::cuda
