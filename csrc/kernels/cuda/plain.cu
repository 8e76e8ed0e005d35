// float32 layers that would leave tiles almost empty, such as depthwise convolutions, or that tiles do not support. A
// thread owns one neuron and adds its inputs one by one, with the integer weights that digits.cu defines. It reads the
// original weights; of the prepared memory it uses only the units.
#include "../product/unit.h"
#include "product_launch.cuh"

namespace tandem::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 4;  // per multiprocessor: 64 registers for a thread

struct Synapses {
  DeviceGeometry g;
  int tap_step, channel_step;  // strides of the weights, in elements
};

// A neuron's output pixel and channel, and the corner of its receptive field in a plane.
struct Place {
  int64_t pixel;
  uint32_t channel;
  Window window;
  const float* weight;
  float per_unit;  // 1 / unit of the output

  __device__ __forceinline__ Place(const DeviceGeometry& g, int64_t channels, int64_t n)
      : pixel(quotient(n, channels)), channel(static_cast<uint32_t>(n - pixel * channels)) {
    const int64_t b = quotient(pixel, g.out_size);
    const int in_image = static_cast<int>(pixel - b * g.out_size);
    const int y = in_image / g.out_width;
    const int x = in_image - y * g.out_width;
    const int64_t group = channel / static_cast<uint32_t>(g.group_outputs);
    window = {g.planes + b * g.height * g.width * g.channels + group * g.group_channels, y * g.stride[0] - g.padding[0],
              x * g.stride[1] - g.padding[1]};
    weight = static_cast<const float*>(g.weight) + channel * static_cast<int64_t>(g.depth);
    per_unit = 1 / g.units[channel];
  }

  // Calls add(byte, weight) for each input: its byte of the plane and its integer weight.
  template <class Add>
  __device__ __forceinline__ void each_input(const Synapses& of, int plane, const Add& add) const {
    const DeviceGeometry& g = of.g;
    const float* weights = weight;
    for (int r = 0; r < g.kernel_height; ++r) {
      const int y = window.y + r * g.dilation[0];
      const uint8_t* row = window.image + plane * g.plane + static_cast<int64_t>(y) * g.width * g.channels;
      for (int s = 0; s < g.kernel_width; ++s, weights += of.tap_step) {
        const int x = window.x + s * g.dilation[1];
        if (static_cast<unsigned>(y) >= static_cast<unsigned>(g.height) ||
            static_cast<unsigned>(x) >= static_cast<unsigned>(g.width)) {
          continue;
        }
        const uint8_t* bytes = row + static_cast<int64_t>(x) * g.channels;
        for (int c = 0; c < g.group_channels; ++c) {
          add(bytes[c], to_fixed(rounded_mul(weights[c * of.channel_step], per_unit)));
        }
      }
    }
  }
};

__global__ void __launch_bounds__(kThreads, kBlocks)
    plain_if_kernel(const __grid_constant__ Synapses of, const __grid_constant__ Neuron<float> a) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  uint32_t gates = 0;
  if (n < a.neurons) {
    const Place at(of.g, a.channels, n);
    Neurons<1> neurons;
    neurons.channel = at.channel;
    neurons.load_parameters(a);
    neurons.begin(a, remainder(n, a.v_init_size));
    for (int plane = 0; plane < of.g.P; ++plane) {
      int sums[kPlaneSteps] = {};
      at.each_input(of, plane, [&](uint32_t spikes, int weight) {
#pragma unroll
        for (int t = 0; t < kPlaneSteps; ++t)
          if ((spikes & 1u << t) != 0) sums[t] += weight;
      });
      Vec<float, 1> current[kPlaneSteps];
#pragma unroll
      for (int t = 0; t < kPlaneSteps; ++t) {
        current[t].at[0] = rounded_mul(static_cast<float>(sums[t]), of.g.units[at.channel]);
      }
      const int first = plane * kPlaneSteps;
      const int steps = min(a.T - first, kPlaneSteps);
      neurons.begin_plane(a, n, plane);
      neurons.scale_products(current);
      neurons.add_residual(a, n, first, 0, steps, current);
      neurons.advance(a, 0, steps, current);
      if (plane + 1 < of.g.P) {
        neurons.end_plane(a, n, plane);
      } else {
        gates = neurons.end(a, n, plane);
      }
    }
  }
  put_gates<1>(a.mask, n, n < a.neurons, gates, 1);
}

template <class End>
__global__ void __launch_bounds__(kThreads, kBlocks)
    plain_window_kernel(const __grid_constant__ Synapses of, const __grid_constant__ End end, int64_t neurons,
                        int64_t channels) {
  Products<1> products;
  products.n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  products.live = products.n < neurons ? 1 : 0;
  if (products.live > 0) {
    const Place at(of.g, channels, products.n);
    int64_t sum = 0;
    at.each_input(of, 0, [&](uint32_t count, int weight) { sum += static_cast<int64_t>(weight) * count; });
    products.channel = at.channel;
    products.u.at[0] = rounded_mul(static_cast<float>(sum), of.g.units[at.channel]);
  }
  end(products);
}

Synapses synapses_of(const Layer& layer) {
  Synapses of{geometry_of(layer), 1, 1};
  if (layer.weights.channels_last) {
    of.tap_step = of.g.group_channels;
  } else {
    of.channel_step = of.g.taps;
  }
  of.g.units = DigitMemory(layer.geometry).units(layer.prepared);
  return of;
}

template <class End>
int launch_window(const Layer& layer, const End& end, void* stream) {
  const int64_t neurons = layer.geometry.neurons();
  return launch_by_four<kThreads>(
      false, neurons, stream, [](auto) { return &plain_window_kernel<End>; }, synapses_of(layer), end, neurons,
      layer.geometry.outputs);
}

}  // namespace

int run_plain(const Layer& layer, void* stream) {
  return launch_by_four<kThreads>(
      false, layer.geometry.neurons(), stream, [](auto) { return &plain_if_kernel; }, synapses_of(layer), layer.neuron);
}

int run_plain(const Layer& layer, const Write& end, void* stream) {
  return launch_window(layer, Write{end.u, true}, stream);
}

int run_plain(const Layer& layer, const Fire& end, void* stream) {
  return launch_window(layer, Fire{end.a, true, 1}, stream);
}

}  // namespace tandem::cuda
