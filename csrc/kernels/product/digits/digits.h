// Products by bytes: every input, active or not, times every weight.
//
// Processors multiply bytes faster than floats. Integer weights are split into signed digits to the base 256, three for
// most layers; spikes of a step are bytes of 0 and 1, counts are bytes anyway. Sums of digits are exact and combine to
// the same integers that lists give.
//
//   inputs.cpp     spikes or counts of a block of rows -> bytes
//   multiply.cpp   the loop over digits and inputs, for every instruction set
//   amx, vnni, avx_vnni, avx2.cpp      the loops over rows and inputs (rows.inl, words.inl), one for each instruction
#pragma once

#include <cstdint>

#include "../../cpu/capability.h"
#include "../../cpu/workspace.h"
#include "../../weights/digit_columns.h"

namespace tandem::cpu {

constexpr int64_t kTileRows = 16;  // rows of the layer per tile

inline int64_t whole_tiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

// The layout of the inputs of a block of rows. A line of inputs stays as it is in the image, and consecutive rows
// overlap. If lines are so short that rows of a tile would often be idle, the inputs of every row are gathered instead.
struct ExpandedRows {
  bool gathered;
  int64_t pixels;  // input pixels per row
  int64_t rows;    // with one layout

  explicit ExpandedRows(const Geometry& geometry);
  // Multiplied rows per existing row, if so many are multiplied at once.
  double idle(int64_t at_once) const {
    return static_cast<double>((rows + at_once - 1) / at_once * at_once) / static_cast<double>(rows);
  }
};

// Rows of a block with one layout in the expanded inputs.
struct ExpandedPiece {
  int64_t rows;
  int64_t row_bytes, tile_bytes;  // from row to row of a tile, and from tile to tile
  int64_t step_bytes;             // from step to step; a plane has all its steps
  int64_t start;                  // offset of the first plane
  const int64_t* offsets;         // of the chunks within the spikes of a row
};

// The inputs of a block of rows, expanded to bytes; zero outside of the image.
struct ExpandedInputs {
  struct Pieces {
    ExpandedPiece* data;
    int64_t size;

    ExpandedPiece* begin() const { return data; }
    ExpandedPiece* end() const { return data + size; }
  };

  int T;      // steps; counts are one step
  int steps;  // bytes per input and plane: 8, one for each step, or 1, the count
  int most;   // an upper bound of the counts, which only AVX2 needs
  int64_t chunks;
  const int32_t* words;  // of four inputs each, in a chunk: the last one of a segment may have fewer than the others
  Pieces pieces;
  uint8_t* bytes;

  // The bytes of a row of a piece.
  const uint8_t* row(const ExpandedPiece& piece, int64_t i) const {
    return bytes + piece.start + i / kTileRows * piece.tile_bytes + i % kTileRows * piece.row_bytes;
  }
};

// Expands the inputs of a block in the workspace, from input channel `first` on.
ExpandedInputs expand(const Layer& layer, int64_t first, const Block& block, Workspace& workspace);

// Writes the sums of counts of a tile of R columns for the rows of the inputs, [rows, 16 R]: exact integers as double
// or, if rounds(), rounded to float.
template <class Sum>
void multiply_bytes(const ExpandedInputs& inputs, const DigitColumn* columns, int registers, Sum* sums,
                    ByteProducts kind = byte_products());

// Fires the neurons of a tile with step timing. `sums`: memory for [rows, sheets, 8, 16 R] sums of steps. Only AMX
// multiplies steps by more than one digit.
void fire_bytes(const ExpandedInputs& inputs, const DigitColumn* columns, const Tile& tile, const Neuron& neuron,
                int32_t* sums, ByteProducts kind = byte_products());

// Whether one pass adds all digits of so few inputs that it can round the sums.
bool rounds(const ExpandedInputs& inputs, const DigitColumn* columns, int registers);

}  // namespace tandem::cpu
