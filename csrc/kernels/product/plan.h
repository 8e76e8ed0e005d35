// The plan of a layer: how its product is divided, and which way takes the least time. Nothing here changes a result.
#pragma once

#include "../layer.h"

namespace tandem::cpu {

// How the weights of a layer are divided. This depends only on their shape and the instruction set, because weights are
// prepared accordingly.
//
// A tile is 16 R consecutive outputs of a group. R is 2 for int8 weights, and with AVX-512: weights from the L3 cache
// then arrive faster. Narrower vectors gain nothing from wide tiles, which would exceed their L1 cache. A K-block is as
// many input channels as stay in the L2 cache.
struct Tiling {
  int registers;           // R, 1 or 2
  int64_t block_channels;  // input channels per K-block
  int64_t blocks;          // K-blocks
  int64_t tiles_per_group;
  int64_t tile_size;  // weights of one prepared tile: K-blocks of [inputs + 1, 16 R]

  // `byte_blocks`: the number of K-blocks of int8 weights; 0: int32 weights.
  explicit Tiling(const Geometry& geometry, int64_t byte_blocks = 0);

  int width() const { return 16 * registers; }
  // Channels [first, last) of K-block q within a group.
  int64_t first_channel(int64_t q) const { return q * block_channels; }
  int64_t last_channel(const Geometry& geometry, int64_t q) const {
    const int64_t last = (q + 1) * block_channels;
    return last < geometry.group_channels() ? last : geometry.group_channels();
  }
  // The offset of K-block q in a tile.
  int64_t block_offset(const Geometry& geometry, int64_t q) const {
    return q * (geometry.taps() * block_channels + 1) * width();
  }
};

// The number of rows whose inputs are listed at a time, and of those whose inputs are expanded for the matrix unit.
int64_t listed_rows(const Geometry& geometry, const Tiling& tiling, int planes);
// bytes: per input, one for each step or one for the count.
int64_t expanded_rows(const Geometry& geometry, int bytes);

// Steps of a window that are multiplied at a time, so that their sums stay in the cache; and steps that are counted at
// a time: whole planes whose counts fit a byte.
constexpr int kPieceSteps = 32;
constexpr int kCountedSteps = 248;

// Nonzero patterns per input byte, for patterns of 1, 2 and 4 steps.
struct Density {
  double adds[3];

  static Density measure(const uint8_t* bytes, int64_t size);
};

// The costs of lists on a processor, fitted to measured times. They depend on its vectors, and on whether it can
// compress bytes (AVX-512 VBMI2) or has to look up positions in a table and sort them by pattern.
struct ListCosts {
  double addition;          // of 16 weights
  double fold_and_fire[3];  // of 16 outputs, for patterns of 1, 2 and 4 steps
  double block;             // of each K-block beyond the first
  bool compressed;

  static const ListCosts& here();
};
constexpr ListCosts kCompressedLists{1, {180, 180, 260}, 80, true};  // AVX-512
constexpr ListCosts kAvx2Lists{1.4, {150, 190, 300}, 110, false}, kNarrowLists{2.8, {240, 250, 350}, 220, false};

// The time of lists per row and group of channels, in additions of 16 weights (1 cycle of a Xeon): additions, folding
// and firing, building the lists. The constants are fitted to measured times of linear and 3 x 3 layers.
double lists_cost(const Geometry& geometry, Way way, const Density& density,
                  const ListCosts& costs = ListCosts::here());

// The time of a way that multiplies all inputs, kMatrixUnit or kDense, in the same unit. kDense: weights of one digit,
// by AVX-512 VNNI. The constants are fitted as above.
double steps_cost(const Geometry& geometry, bool prepared, Way way);

// The same for counts. kDense is by VNNI; AVX2 takes twice the time, but so do lists there.
double counts_cost(const Geometry& geometry, bool prepared, Way way);

// The candidate ways for prepared weights: the cheapest lists and, if there is one, the way that multiplies all inputs.
struct Ways {
  struct One {
    Way way;
    double cost;
  };
  One lists, digits;

  bool differ() const { return digits.way != lists.way; }
  Way cheaper() const { return digits.cost < lists.cost ? digits.way : lists.way; }
};

// `digits`: the way that multiplies all inputs, kMatrixUnit or kDense; any other value: none. `counted`: the input is
// counts, and lists take their bits as steps.
Ways compare(const Geometry& geometry, bool prepared, const Density& density, Way digits, bool counted = false,
             const ListCosts& costs = ListCosts::here());

// Whether there are so few rows that preparing each tile just before its use pays.
bool prefers_tile_by_tile(const Geometry& geometry, int planes);

}  // namespace tandem::cpu
