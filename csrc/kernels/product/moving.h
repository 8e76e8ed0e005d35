// The sums of a layer whose inputs move: u = W c is kept, and the weights of each input whose count changed are added
// to it or taken from it.
#pragma once

#include "../cpu/capability.h"
#include "../cpu/workspace.h"
#include "../planes/counts.h"
#include "../weights/prepared.h"

namespace tandem::cpu {

// Calls f(k, o) for each position k of the kernel at which output o reads input i along an axis.
template <class F>
TANDEM_INLINE void for_readers(const Geometry& g, int axis, int64_t i, int64_t outputs, const F& f) {
  const int64_t padded = i + g.padding[axis], stride = g.stride[axis], dilation = g.dilation[axis];
  int64_t o = stride == 1 ? padded : padded / stride, offset = padded - o * stride;
  for (; o >= 0 && offset <= dilation * (g.kernel[axis] - 1); --o, offset += stride) {
    if (o < outputs && (dilation == 1 || offset % dilation == 0)) f(offset / dilation, o);
  }
}

class MovingSums {
 public:
  // The layer is of one sample. Without prepared weights all of them are 1, which a depthwise layer may have.
  explicit MovingSums(const Layer& layer);

  // The number of sums of a sample, [tiles, rows, 16 R]. It does not depend on the instruction set. Depthwise layers
  // have one group.
  static int64_t size(int64_t outputs, int64_t groups, int64_t rows);

  // Adds the weights of the moves of a step to `changes`, [size()], and sets bit 0 of the bytes of the rows that they
  // reach. Returns the number of synapses they reach.
  int64_t add(const Moves& moves, int32_t* changes, uint8_t* reached, Workspace& workspace) const;

  // Adds the changes of these rows to the sums, exact integers, and makes them zero; then fires neurons of window
  // timing for these sums. `neuron` has the arrays of one sample.
  void fire(int32_t* changes, double* sums, int64_t first_row, int64_t rows, const Neuron& neuron) const;

 private:
  Tile tile(int64_t number) const;
  // Calls f(tap, row) for each output pixel that reads an input pixel.
  template <class F>
  void for_rows(int32_t pixel, const F& f) const;
  int64_t add_by_channel(const Moves& moves, int32_t* changes, uint8_t* reached) const;
  template <int L, int S, class E>
  void add_to_row(const E* rows, int32_t first, const int32_t* move, const int32_t* end, int32_t* sums) const;
  template <int L, int S, class E>
  int64_t add_as(const Moves& moves, int32_t* changes, uint8_t* reached, Workspace& outer) const;

  Layer layer_;
  Prepared prepared_;     // of weights of 1 only the tiling
  int64_t width_;         // of a tile
  int64_t lines_, line_;  // output lines, and the pixels of one
  int64_t rows_;
};

}  // namespace tandem::cpu
