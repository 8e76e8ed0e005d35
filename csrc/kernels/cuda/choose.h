// Which kernel runs a layer: the only place where that is decided. docs/cuda.md says when and why.
#pragma once

#include "../layer.h"

namespace tandem::cuda {

// What decides, besides the layer.
struct Card {
  int multiprocessors;
  int shared;  // memory of a multiprocessor in bytes
};
Card current_card();

// A block shares each value that it reads among its outputs and pixels, so large tiles are best for a grid that fills
// the card. product_tile.cuh has the sizes.
enum class Choice : int32_t {
  kNone = 0,    // no kernel: a size exceeds 32-bit numbers
  kPlain = 1,   // groups that would leave tiles almost empty, sums of counts that exceed int32
  kNarrow = 2,  // step timing: up to eight pixels; window timing: the smallest
  kDeep = 3,    // step timing: smaller than wide ones, and their warps split the depth
  kWide = 4,
  kLarge = 5,  // window timing, weights of one or two digits
};
Choice choose_kernel(const Layer& layer, const Card& card);

// run() as on another card. Exported for tests/gpu, which checks and times tiles that its card would not take.
extern "C" __attribute__((visibility("default"))) int tandem_run_on(const Layer& layer, const Card& card, void* stream);

}  // namespace tandem::cuda
