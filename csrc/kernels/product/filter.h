// A few samples of a linear layer whose weights are not prepared: they are read once.
//
// A spike is a decision, and few are close. So W c is computed in float32 with a bound of its error, and only the
// neurons that this leaves in doubt are computed from the integers that define the weights (weights/unit.h).
//
// The bits are those of all ways. Let q be an output's integers, h its unit, c the counts of the K inputs, and D the
// most roundings that a term of the product meets: its own, and those of the additions on its way.
//
//   |fl(W c) - W c| <= g Σ|w| c <= g max|w| Σc,  g = D 2^-24 / (1 - D 2^-24)      any tree of additions of this depth
//   |W c - h Σ q c| <= (h / 2) Σc                                                 every weight is rounded to its unit
//
// So h Σ q c lies between the ends fl(W c) -+ e, e = (g max|w| + h / 2) Σc, and u, the same rounded once, does too, as
// the ends are floats. From u on the rule has sums with constants, products with constants and comparisons; each is
// monotone, its rounding too. So potential, count and z for u lie between those for the ends. Where both ends have one
// count and lie on the same side of every bound of the gate, these are the neuron's. With step timing c are the spikes
// of a step, and the potential lies between those of the ends as long as both have fired alike. If a weight, product or
// potential is not finite, neither are the potentials of the ends, and the neuron is in doubt.
#pragma once

#include "../layer.h"

namespace tandem::cpu {

// Whether the filter can run the layer. It does not know potentials.
bool can_filter(const Layer& layer);

// Runs the layer.
void run_filter(const Layer& layer, Workspace& workspace, ParallelFor parallel);

}  // namespace tandem::cpu
