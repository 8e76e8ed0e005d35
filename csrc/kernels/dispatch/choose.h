// Chooses how a layer is multiplied. All ways give the same bits, so the choice is free.
#pragma once

#include "../cpu/capability.h"
#include "../layer.h"

namespace tandem::cpu {

// Nonzero patterns per input byte, for patterns of 1, 2 and 4 steps.
struct Density {
  double adds[3];

  static Density measure(const uint8_t* bytes, int64_t size);
  static Density measure(const Layer& layer);
};

// The way that takes the least time by the cost model below, or the one that the layer or TANDEM_PATH asks for, if the
// processor and the layer support it.
Way choose(const Layer& layer, const Density& density);

// The algorithm that TANDEM_PATH (lists | digits) sets for all layers that may choose, else kFastest. Throws
// std::runtime_error for any other value, and for digits if the processor has no products of bytes.
Algorithm fixed_algorithm();

// The costs of lists on a processor, fitted to measured times. They depend on its vectors, and on whether it can
// compress bytes (AVX-512 VBMI2) or has to look up positions in a table and sort them by pattern.
struct ListCosts {
  double addition;          // of 16 weights
  double fold_and_fire[3];  // of 16 outputs, for patterns of 1, 2 and 4 steps
  double block;             // of each K-block beyond the first
  bool compressed;

  static const ListCosts& of_processor();
};
constexpr ListCosts kCompressedLists{1, {180, 180, 260}, 80, true};  // AVX-512
constexpr ListCosts kAvx2Lists{1.4, {150, 190, 300}, 110, false};    // and of processors that have less

// The time of lists per row and group of channels, in additions of 16 weights (1 cycle of a Xeon): additions, folding
// and firing, building the lists. The constants are fitted to measured times of linear and 3 x 3 layers.
double lists_cost(const Geometry& geometry, int steps, const Density& density,
                  const ListCosts& costs = ListCosts::of_processor());

// The steps of a pattern whose lists cost the least.
int cheapest_steps(const Geometry& geometry, const Density& density,
                   const ListCosts& costs = ListCosts::of_processor());

// The time of digits in the same unit, for the steps of a plane or for counts. In vectors it is AVX-512 VNNI's; others
// take twice the time, but so do lists there. The constants are fitted as above; on a matrix unit those of counts are
// for three digits.
double steps_cost(const Geometry& geometry, bool prepared, ByteProducts kind);
double counts_cost(const Geometry& geometry, bool prepared, ByteProducts kind, int digits = 3);

}  // namespace tandem::cpu
