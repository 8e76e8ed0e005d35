// Layers that would leave tiles almost empty, such as depthwise convolutions, or that tiles do not support. A thread
// owns one neuron and adds four inputs at a time, digit by digit.
#include "product_launch.cuh"

namespace tandem::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 4;  // per multiprocessor: 64 registers for a thread

// A neuron's channel, and its receptive field.
struct NeuronSynapses {
  uint32_t channel;
  Patch patch;
  const int8_t* digits;
  int count;

  __device__ __forceinline__ NeuronSynapses(const DeviceGeometry& g, int64_t n) {
    const int64_t pixel = n / g.outputs;
    channel = static_cast<uint32_t>(n - pixel * g.outputs);
    const int64_t group = channel / static_cast<uint32_t>(g.group_outputs);
    patch = find_patch(g, g.stored + group * g.group_channels, pixel);
    digits = g.weights.digits + channel * g.weights.output;
    count = g.weights.counts[channel];
  }

  // Calls add(digit, weights, bytes) for each digit of four neighbouring inputs, with their bytes of the plane.
  template <class Add>
  __device__ __forceinline__ void each_four(const DeviceGeometry& g, int plane, const Add& add) const {
    const int step = g.spike_bytes > 1 ? 4 : 1;  // four neighbouring channels are one load
    Tap tap{};
    for (int k = 0; k < g.depth; k += 4) {
      uint32_t four = 0;
      for (int i = 0; i < 4; i += step) {
        const uint8_t* byte = patch.address(g, tap) + plane * g.plane;
        if (k + i < g.depth && patch.has(g, tap)) four |= step == 4 ? load<uint32_t>(byte) : uint32_t{*byte} << 8 * i;
        advance(tap, g, {0, 0, step});
      }
      for (int digit = 0; four != 0 && digit < count; ++digit) {
        add(digit, load<uint32_t>(digits + digit * g.weights.row + k), four);
      }
    }
  }
};

__global__ void __launch_bounds__(kThreads, kBlocks)
    plain_if_kernel(const __grid_constant__ DeviceGeometry g, const __grid_constant__ Neuron a) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  uint32_t gates = 0;
  if (n < a.neurons) {
    const NeuronSynapses synapses(g, n);
    Neurons<1> neurons(a, synapses.channel);
    neurons.begin(a, n);
    const float unit = g.weights.units[synapses.channel];
    int64_t total = 0;
    for (int plane = 0; plane < g.P; ++plane) {
      uint32_t sums[kPlaneSteps] = {};  // modulo 2^32; the final sums fit int32
      synapses.each_four(g, plane, [&](int digit, uint32_t weights, uint32_t spikes) {
        unroll<kPlaneSteps>(
            [&](int t) { sums[t] += static_cast<uint32_t>(dot(weights, spikes >> t & 0x01010101u)) << 8 * digit; });
      });
      Vec<float, 1> current[kPlaneSteps];
      unroll<kPlaneSteps>([&](int t) {
        const auto sum = static_cast<int32_t>(sums[t]);
        total += sum;
        current[t].at[0] = rounded_mul(static_cast<float>(sum), unit);
      });
      neurons.begin_plane(a, n, plane, min(a.T - plane * kPlaneSteps, kPlaneSteps));
      neurons.integrate(a, n, 0, current);
      if (plane + 1 < g.P) {
        neurons.end_plane(a, n);
      } else {
        gates = neurons.end(a, n, {rounded_mul(static_cast<float>(total), unit)});
      }
    }
  }
  put_gates<1>(a.mask, n, n < a.neurons ? 1 : 0, gates, 1, g.gate_bytes);
}

__global__ void __launch_bounds__(kThreads, kBlocks)
    plain_window_kernel(const __grid_constant__ DeviceGeometry g, const __grid_constant__ WindowEnd end) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const bool exists = n < g.pixels * g.outputs;
  uint32_t channel = 0;
  float u = 0;
  if (exists) {
    const NeuronSynapses synapses(g, n);
    int64_t sum = 0;
    synapses.each_four(g, 0, [&](int digit, uint32_t weights, uint32_t counts) {
      sum += static_cast<int64_t>(dot(weights, counts)) * (int64_t{1} << 8 * digit);
    });
    channel = synapses.channel;
    u = rounded_mul(static_cast<float>(sum), g.weights.units[channel]);
  }
  end(Neurons<1, false>(end.a, channel, exists), n, {u});
}

}  // namespace

int run_plain(const Layer& layer, float* u, void* stream) {
  const DeviceGeometry g = geometry_of(layer, u);
  const unsigned blocks = blocks_for(g.pixels * g.outputs, kThreads);
  if (layer.timing() == Timing::kStep) return launch(plain_if_kernel, blocks, kThreads, 0, stream, g, layer.neuron);
  return launch(plain_window_kernel, blocks, kThreads, 0, stream, g, WindowEnd{layer.neuron, u, g.gate_bytes});
}

}  // namespace tandem::cuda
