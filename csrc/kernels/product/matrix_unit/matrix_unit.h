// Dense products on the processor's matrix unit (AMX): every input, active or not, times every weight.
//
// The unit multiplies bytes. Integer weights are split into signed digits to the base 256, three for most layers;
// spikes of a step are bytes of 0 and 1. Sums of digits are exact and combine to the same integers that lists give.
#pragma once

#include <cstdint>
#include <vector>

#include "../../cpu/scratch.h"
#include "../plan.h"
#include "../rows.h"

namespace tandem::cpu {

// Whether there is a matrix unit that the system and the capability in use permit.
bool has_matrix_unit();

// The inputs of one output as the unit reads them: `segments` runs of contiguous bytes, each padded to whole chunks of
// 64.
struct ChunkShape {
  int64_t segments, length, chunks_per_segment;

  explicit ChunkShape(const Geometry& geometry);
  int64_t chunks() const { return segments * chunks_per_segment; }
};

// The weights of 16 outputs: digits [chunks, count, 16, 16 outputs, 4 inputs]. Digit d is worth 1 << (8 d + shift).
struct DigitColumn {
  int count, shift;
  const int8_t* digits;
  const int8_t* next;  // digits of the next column, to prefetch
};

// The columns of all tiles of a layer, in memory of the caller: count and shift of each column, then all digits.
struct DigitWeights {
  std::vector<DigitColumn> columns;

  // The memory that DigitPacker needs for weights of this type, in int32, 64-byte aligned. 0 if digits cannot represent
  // the layer.
  static int64_t size(const Geometry& geometry, const Tiling& tiling, DType dtype);
  // Reads what DigitPacker has written.
  void read(const Geometry& geometry, const Tiling& tiling, DType dtype, const int32_t* memory);
};

// Splits the weights of tiles into digits, each tile as soon as it is packed.
class DigitPacker {
 public:
  DigitPacker(const Geometry& geometry, const Tiling& tiling, DType dtype, int32_t* memory);
  void pack(int64_t i, const int32_t* tile) const;

 private:
  std::vector<int64_t> position_;  // position of each input of a column in a tile
  int registers_;
  int64_t column_bytes_;
  int32_t* header_;
  int8_t* digits_;
};

// The layout of the inputs of a block of rows. A line of inputs stays as it is in the image, and consecutive rows
// overlap. If lines are so short that rows of a tile would often be idle, the inputs of every row are gathered instead.
struct ExpandedRows {
  bool gathered;
  int64_t pixels;  // input pixels per row
  double idle;     // multiplied rows per existing row

  explicit ExpandedRows(const Geometry& geometry);
};

// Rows of a block with one layout in the expanded inputs.
struct ExpandedPiece {
  int64_t rows;
  int64_t row_bytes, tile_bytes;  // from row to row of a tile, and from tile to tile
  int64_t step_bytes;             // from step to step; a plane has all its steps
  int64_t start;                  // offset of the first plane
  const int64_t* offsets;         // of the chunks within the spikes of a row
};

// The inputs of a block of rows, expanded to bytes, from input channel `first` on; zero outside of the image.
struct ExpandedInputs {
  int steps;  // bytes per input and plane: 8, one for each step, or 1, the spike count
  int most;   // an upper bound of the counts, which only AVX2 needs
  int64_t chunks;
  std::vector<ExpandedPiece> pieces;
  std::vector<int64_t> offsets;  // [pieces, chunks]
  Scratch<uint8_t> bytes;

  void expand(const Layer& layer, int64_t first, const Block& block);
  // One plane of counts: of the spikes in all planes, or the counts that a layer of window timing reads.
  void count_spikes(const Layer& layer, int64_t first, const Block& block);
};

// Writes the sums of a tile of R columns for the rows of the inputs: [rows, planes, 8, 16 R]; none beyond step T.
void multiply_tile(const ExpandedInputs& inputs, int T, const DigitColumn* columns, int registers, int32_t* sums);

// Writes the sums over all steps, from counts: [rows, 16 R], exact integers.
void multiply_counts(const ExpandedInputs& inputs, const DigitColumn* columns, int registers, double* sums);

}  // namespace tandem::cpu
