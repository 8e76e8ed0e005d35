// A frozen network, run by the kernels: chains of Encoder, Linear, Conv2d, AvgPool2d, MaxPool2d, Flatten, Dropout and
// Readout, with shortcuts of spikes.
#pragma once

#include <kernels/spike_product.h>
#include <kernels/spike_window.h>

#include <cstdint>
#include <string>
#include <vector>

#include "frozen_file.h"

// One result: spike planes [P, batch, height, width, channels], or real numbers [batch, channels, height, width].
struct Value {
  std::vector<uint8_t> planes;
  std::vector<float> numbers;
};

struct Answer {
  std::vector<std::string> layers;  // those with neurons
  std::vector<int64_t> counts;      // their spikes
  std::vector<float> readout;       // [batch, outputs]
};

class Network {
 public:
  // Throws std::runtime_error, naming the layer, for what this program does not run.
  explicit Network(const FrozenFile& file);

  int64_t inputs() const { return inputs_; }
  int64_t outputs() const { return outputs_; }
  // x is [batch, *shape of the file].
  Answer run(const std::vector<float>& x) const;

 private:
  struct Size {
    int64_t channels, height, width;
    int64_t numel() const { return channels * height * width; }
  };
  // What is known of a value before it is there.
  struct Known {
    Size size;
    bool spikes;
    float gain;  // what one of its spikes is worth, or one unit of the input
  };
  struct Step {
    std::string name, kind;
    int input, residual;  // numbers of values; residual -2: none
    Known in, out;
    tandem::SpikeProduct product{};  // the geometry
    std::vector<float> weight;
    std::vector<int32_t> packed;
    std::vector<float> scale, shift, residual_scale, v_init;
    float threshold = 1, leak = 1, gain = 1;
    tandem::Gate gate = tandem::Gate::kRelu;
    tandem::PoolWindow pool{};
  };

  Step prepare(const FrozenFile& file, const Json& use) const;
  void add_synapses(const FrozenFile& file, const Json& settings, Step& step) const;
  void add_neurons(const FrozenFile& file, const Json& settings, Step& step) const;
  void fire(const Step& step, const Value& x, const Value* residual, int64_t batch, Value& y, Answer& answer) const;
  std::vector<float> readout(const Step& step, const Value& x, int64_t batch) const;

  int T_, planes_;
  bool impulse_ = false;
  int64_t inputs_ = 0, outputs_ = 0;
  std::vector<Step> steps_;
};
