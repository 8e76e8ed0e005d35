// The plan of a layer: how its product is cut up, and which way takes the least time. Nothing here changes a result.
#pragma once

#include "../layer.h"

namespace tandem::cpu {

// How the weights of a layer are divided. It depends on their shape and the instruction set alone, for they are
// prepared accordingly.
//
// A tile is 16 R consecutive outputs of a group. R is 2 for weights of a byte, which then fill a cache line, and with
// AVX-512, where single rows, whose weights come from the L3 cache, take two thirds of the time for it. Narrower
// vectors load as often either way, and a tile of 800 inputs leaves their L1 cache. A K-block is as many input
// channels as stay in the L2 cache.
struct Tiling {
  int registers;           // R, 1 or 2
  int64_t block_channels;  // input channels per K-block
  int64_t blocks;          // K-blocks
  int64_t tiles_per_group;
  int64_t tile_size;  // weights of one prepared tile: K-blocks of [inputs + 1, 16 R]

  // `byte_blocks`: weights of a byte, in so many K-blocks; 0: weights of four.
  explicit Tiling(const Geometry& geometry, int64_t byte_blocks = 0);

  int width() const { return 16 * registers; }
  // Channels [first, last) of K-block q within a group.
  int64_t first_channel(int64_t q) const { return q * block_channels; }
  int64_t last_channel(const Geometry& geometry, int64_t q) const {
    const int64_t last = (q + 1) * block_channels;
    return last < geometry.group_channels() ? last : geometry.group_channels();
  }
  // Where K-block q starts in a tile.
  int64_t block_offset(const Geometry& geometry, int64_t q) const {
    return q * (geometry.taps() * block_channels + 1) * width();
  }
};

// Rows whose inputs are listed at a time; rows whose inputs are expanded at a time for the matrix unit.
int64_t listed_rows(const Geometry& geometry, const Tiling& tiling, int planes);
// bytes: of an input, one for each step or one count.
int64_t expanded_rows(const Geometry& geometry, int bytes);

// Steps of a window that are multiplied at a time: what is kept of each stays in the cache. On a Xeon with AMX, of
// 1,000 steps, 1,500 inputs at 10 % take 46 ms by 32, 65 by 64 and 104 by 128; those of narrow and sparse layers 1 to
// 15 % more by 128 than by 32. And those of which counts are made: whole planes whose counts fit a byte.
constexpr int kPieceSteps = 32;
constexpr int kCountedSteps = 248;

// Nonzero patterns per input byte, for patterns of 1, 2 and 4 steps.
struct Density {
  double adds[3];

  static Density measure(const uint8_t* bytes, int64_t size);
};

// What lists cost on a processor: its vectors decide, and whether it can compress bytes (AVX-512 VBMI2) or has to look
// positions up in a table and sort them by pattern. Of AVX2 from times of a linear and two 3 x 3 layers at 10% on an
// EPYC (Zen 4), of the lowest level from those of two 3 x 3 layers on the same Xeon.
struct ListCosts {
  double addition;          // of 16 weights
  double fold_and_fire[3];  // of 16 outputs, for patterns of 1, 2 and 4 steps
  double block;             // of every K-block beyond the first
  bool compressed;

  static const ListCosts& here();
};
constexpr ListCosts kCompressedLists{1, {180, 180, 260}, 80, true};  // of AVX-512
constexpr ListCosts kAvx2Lists{1.4, {150, 190, 300}, 110, false}, kNarrowLists{2.8, {240, 250, 350}, 220, false};

// The time per row and group of channels, in additions of 16 weights (1 cycle of a Xeon): additions, folding and
// firing, making the lists. The constants are rounded from times of 12 layers on an Intel processor with AVX-512
// (linear and 3 x 3, K = 576 .. 1152, N = 64 .. 800, rates 10 .. 25%), in which the cheapest way cost at most 3% more
// time than the fastest one; that of K-blocks beyond the first, later, from 3 x 3 layers of 128 channels.
double lists_cost(const Geometry& geometry, Way way, const Density& density,
                  const ListCosts& costs = ListCosts::here());

// The same of ways that multiply all inputs, kMatrixUnit or kDense, in the same unit of time. On a Xeon with AMX, for
// five layers (linear and 3 x 3, K = 288 .. 1152, N = 64 .. 800) at rates from 1 to 15%, layers go to the unit where it
// takes at most a quarter more time than lists, and not before it takes at most a fifth less. kDense is of one digit,
// by AVX-512 VNNI of an EPYC (Zen 4), which starts one of its products in a cycle; for K = 64 .. 800 it is off by 5%.
double steps_cost(const Geometry& geometry, bool prepared, Way way);

// The same of counts. On a Xeon with AMX layers as
// above, from 1 to 128 rows. kDense is by VNNI; by AVX2 it takes twice the time, and so do lists there.
double counts_cost(const Geometry& geometry, bool prepared, Way way);

// The ways of prepared weights: the lists of least cost and, where there is one, the way that multiplies all inputs.
struct Ways {
  struct One {
    Way way;
    double cost;
  };
  One lists, digits;

  bool differ() const { return digits.way != lists.way; }
  Way cheaper() const { return digits.cost < lists.cost ? digits.way : lists.way; }
};

// `digits`: the other way, kMatrixUnit or kDense; anything else stands for none. `counted`: the input is counts, whose
// bits take the place of steps in lists.
Ways compare(const Geometry& geometry, bool prepared, const Density& density, Way digits, bool counted = false,
             const ListCosts& costs = ListCosts::here());

// So few rows that tiles pay which are prepared just before they are used.
bool prefers_tile_by_tile(const Geometry& geometry, int planes);

}  // namespace tandem::cpu
