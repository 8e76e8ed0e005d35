#include <kernels/neuron/scan.h>

// One neuron, threshold 1, a current of 0.5 at each of four steps: spikes at steps 1 and 3.
int main() {
  const float currents[4] = {0.5f, 0.5f, 0.5f, 0.5f};
  uint8_t plane = 0;
  tandem::Neuron<float> args{};
  args.neurons = args.channels = 1;
  args.T = args.steps = 4;
  args.threshold = args.leak = 1.0f;
  args.planes = &plane;
  tandem::cpu::if_scan(currents, tandem::DType::kFloat32, tandem::Source::kTrain, args, tandem::serial_for);
  return plane == 0b1010 ? 0 : 1;
}
