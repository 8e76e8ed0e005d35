// The scan, for other ops.
#pragma once

#include "../kernels/neuron/scan.h"
#include "neuron.h"

namespace tandem::ops {

// Runs the neurons of `layer` on channels-last currents and fills the layer's outputs.
void run_scan(const Tensor& currents, Source source, const NeuronLayer& layer);

}  // namespace tandem::ops
