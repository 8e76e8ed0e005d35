// The scan as other ops use it.
#pragma once

#include "../kernels/neuron/scan.h"
#include "neuron.h"

namespace tandem::ops {

// Runs the neurons of `layer` on currents that already have the channels-last layout, and fills its outputs.
void run_scan(const Tensor& currents, Source source, const NeuronLayer& layer);

}  // namespace tandem::ops
