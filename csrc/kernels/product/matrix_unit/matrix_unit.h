// Products without lists: every input, active or not, times every weight, by the processor's matrix unit (AMX).
//
// The unit multiplies bytes. Weights, int32 in fixed point, are cut into signed digits to the base 256, three for most
// layers; a step's spikes are bytes of 0 and 1. Sums of digits are exact and add up to the very integers that lists
// give.
#pragma once

#include <cstdint>
#include <vector>

#include "../../cpu/scratch.h"
#include "../plan.h"
#include "../rows.h"

namespace tandem::cpu {

// Is there a matrix unit, does the system let us use it, and is the capability in use high enough?
bool has_matrix_unit();

// Inputs of one output as the unit takes them: `segments` runs of bytes that adjoin in memory, each filled up to whole
// chunks of 64.
struct ChunkShape {
  int64_t segments, length, chunks_per_segment;

  explicit ChunkShape(const Geometry& geometry);
  int64_t chunks() const { return segments * chunks_per_segment; }
};

// The weights of 16 outputs: digits [chunks, count, 16, 16 outputs, 4 inputs], to be shifted left by 8 d + shift.
struct DigitColumn {
  int count, shift;
  const int8_t* digits;
  const int8_t* next;  // digits of the column after it
};

// The columns of all tiles of a layer, in memory of somebody else: for each its count and shift, then all digits.
struct DigitWeights {
  std::vector<DigitColumn> columns;

  // The int32 of memory, 64-byte aligned, that DigitPacker needs for weights of this type; 0 where the unit cannot
  // multiply the layer.
  static int64_t size(const Geometry& geometry, const Tiling& tiling, DType dtype);
  // What DigitPacker wrote.
  void read(const Geometry& geometry, const Tiling& tiling, DType dtype, const int32_t* memory);
};

// Cuts the weights of tiles into digits, one tile as soon as it is packed.
class DigitPacker {
 public:
  DigitPacker(const Geometry& geometry, const Tiling& tiling, DType dtype, int32_t* memory);
  void pack(int64_t i, const int32_t* tile) const;

 private:
  std::vector<int64_t> position_;  // where each input of a column lies within a tile
  int registers_;
  int64_t column_bytes_;
  int32_t* header_;
  int8_t* digits_;
};

// How the inputs of a block of rows are laid out. Those of a line are kept as the image has them, one row shifted
// against the next. Where lines are so short that rows of a tile would often be idle, the inputs of every row are
// gathered instead.
struct ExpandedRows {
  bool gathered;
  int64_t pixels;  // input pixels laid out for a row
  double idle;     // rows that are multiplied for each one that exists

  explicit ExpandedRows(const Geometry& geometry);
};

// Rows of a block that lie in one order in the expanded inputs.
struct ExpandedPiece {
  int64_t rows;
  int64_t row_bytes, tile_bytes;  // from row to row of a tile, and from tile to tile
  int64_t step_bytes;             // from step to step; a plane has all its steps
  int64_t start;                  // of the first plane
  const int64_t* offsets;         // of the chunks within the spikes of a row
};

// What a block of rows reads, from input channel `first` on, zero outside of the image.
struct ExpandedInputs {
  int steps;  // bytes of an input: one for each of the eight steps of a plane, or its spike count
  int most;   // no count is larger; AVX2 alone has to know
  int64_t chunks;
  std::vector<ExpandedPiece> pieces;
  std::vector<int64_t> offsets;  // [pieces, chunks]
  Scratch<uint8_t> bytes;

  void expand(const Layer& layer, int64_t first, const Block& block);
  // One plane of counts: of the spikes in all planes, or what a counted layer is given.
  void count_spikes(const Layer& layer, int64_t first, const Block& block);
};

// The sums of a tile of R columns for the rows of the inputs: [rows, planes, 8, 16 R]. Those beyond step T are not
// written.
void multiply_tile(const ExpandedInputs& inputs, int T, const DigitColumn* columns, int registers, int32_t* sums);

// Their sums over all steps, from counts: [rows, 16 R], exact integers.
void multiply_counts(const ExpandedInputs& inputs, const DigitColumn* columns, int registers, double* sums);

}  // namespace tandem::cpu
