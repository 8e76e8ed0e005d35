// The program of a frozen network: a list of instructions, each a row of int64 in the fields below, and one blob of
// bytes that holds every number they use. Python writes both (tandem_snn/frozen), frozen_run() executes them.
#pragma once

#include <cstdint>

namespace tandem::ops {

// A value is the spike planes of one layer. Its place in the workspace is given in bytes per sample and plane; the
// workspace of B samples and P planes is B P times as large; currents take room for eight steps a plane. Offsets into
// the blob and the state are in bytes and in floats per sample.
// clang-format off
#define TANDEM_INSTRUCTION_FIELDS(X)                                                            \
  X(kind)                                                                                       \
  X(input)           /* value read */                                                           \
  X(output)          /* value written */                                                        \
  X(height) X(width) X(channels)                                                                \
  X(outputs) X(groups)                                                                          \
  X(kernel_h) X(kernel_w) X(stride_h) X(stride_w)                                               \
  X(padding_h) X(padding_w) X(dilation_h) X(dilation_w)                                         \
  X(weight)          /* blob: packed weights, or floats for kDirect and kReadout */             \
  X(scale) X(shift)  /* blob: [outputs] */                                                      \
  X(residual)        /* value added to the currents */                                          \
  X(currents)        /* the same, written by kCurrents */                                       \
  X(residual_scale)  /* blob: [outputs] */                                                      \
  X(v_init)          /* blob: [v_init_size] */                                                  \
  X(v_init_size)                                                                                \
  X(constants)       /* blob: threshold and leak; the gain of the counts for kReadout */        \
  X(gate)                                                                                       \
  X(state)           /* the layer's membrane potentials, or the readout's counts */
// clang-format on

constexpr int64_t kAbsent = -1;        // of a value or an offset
constexpr int64_t kNetworkInput = -2;  // as a value

struct Instruction {
#define TANDEM_FIELD(name) int64_t name;
  TANDEM_INSTRUCTION_FIELDS(TANDEM_FIELD)
#undef TANDEM_FIELD
};

enum InstructionKind : int64_t {
  kDirect = 0,    // the real-valued input times float weights, held constant over the window, then neurons
  kImpulse = 1,   // the same, present at the first step only
  kProduct = 2,   // spikes times packed weights, then neurons
  kMaxPool = 3,   // the OR of each window's bytes
  kFlatten = 4,   // channels-last planes to C, H, W order
  kPad = 5,       // an image with padding_h silent lines below and padding_w silent columns on the right
  kCurrents = 6,  // spikes times packed weights: the currents of every step, float32
  kReadout = 7,   // counts, averaged over space where height x width > 1, times float weights plus shift
};

}  // namespace tandem::ops
