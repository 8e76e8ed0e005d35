// Multiplies a tile, column by column: in passes over the rows, each by as many digits as stay in L1.
#include <algorithm>

#include "../../weights/unit.h"
#include "../fire.h"
#include "../tile.h"
#include "loops.h"

namespace tandem::cpu {

#if TANDEM_MULTIVERSION

namespace {

const Loops& loops_of(ByteProducts kind) {
  if (kind == ByteProducts::kAmx) return kAmxLoops;
  if (kind == ByteProducts::kAvx512Vnni) return kVnniLoops;
  return kind == ByteProducts::kAvxVnni ? kAvxVnniLoops : kAvx2Loops;
}

// Calls run(pass, r, last) for the passes of each column r.
template <class Run>
void for_passes(const Loops& loops, const ExpandedInputs& inputs, const DigitColumn* columns, int registers,
                const Run& run) {
  const int64_t passes = (inputs.chunks + loops.pass_chunks - 1) / loops.pass_chunks;
  int64_t turns = 0;  // of 16 rows at two steps, in a pass
  for (const ExpandedPiece& piece : inputs.pieces) turns += whole_tiles(piece.rows) / kTileRows * ((inputs.T + 1) / 2);
  loops.begin();
  for (int r = 0; r < registers; ++r) {
    const DigitColumn& column = columns[r];
    const int groups = column.count == kMostDigits ? 2 : 1, digits = column.count / groups;
    const int64_t lines = column.count * kTileBytes / 64;
    Fetch fetch{column.next, column.next + inputs.chunks * lines * 64, (lines + turns * groups - 1) / (turns * groups)};
    for (int64_t i = 0; i < passes * groups; ++i) {
      const int64_t begin = inputs.chunks * (i / groups) / passes, end = inputs.chunks * (i / groups + 1) / passes;
      const int digit = static_cast<int>(i % groups) * digits;
      const Pass pass{begin,
                      end - begin,
                      column.digits + (begin * column.count + digit) * kTileBytes,
                      column.count * kTileBytes,
                      digits,
                      column.shift + 8 * digit,
                      i == 0,
                      16 * registers,
                      fetch};
      run(pass, r, i + 1 == passes * groups);
    }
  }
  loops.end();
}

}  // namespace

template <class Sum>
void multiply_bytes(const ExpandedInputs& inputs, const DigitColumn* columns, int registers, Sum* sums,
                    ByteProducts kind) {
  const Loops& loops = loops_of(kind);
  for_passes(loops, inputs, columns, registers,
             [&](const Pass& pass, int r, bool) { loops.run(inputs, pass, sums + r * 16); });
}

void fire_bytes(const ExpandedInputs& inputs, const DigitColumn* columns, const Tile& tile, const Neuron& neuron,
                int32_t* sums, ByteProducts kind) {
  const Loops& loops = loops_of(kind);
  const bool fires = loops.fire != nullptr && can_step(tile, neuron);
  for_passes(loops, inputs, columns, tile.registers, [&](const Pass& pass, int r, bool last) {
    int32_t* of_column = sums + r * 16;
    if (!last || !fires) return loops.steps(inputs, pass, of_column);
    if (r * 16 < tile.channels) loops.fire(inputs, pass, of_column, tile, r * 16, neuron);
  });
  if (!fires) fire_sums(tile, sums, neuron);
}

bool rounds(const ExpandedInputs& inputs, const DigitColumn* columns, int registers) {
  const bool few =
      std::all_of(columns, columns + registers, [](const DigitColumn& c) { return c.count < kMostDigits; });
  return few && inputs.chunks <= kVectorChunks;
}

#else

bool rounds(const ExpandedInputs&, const DigitColumn*, int) { return false; }

template <class Sum>
void multiply_bytes(const ExpandedInputs&, const DigitColumn*, int, Sum*, ByteProducts) {}

void fire_bytes(const ExpandedInputs&, const DigitColumn*, const Tile&, const Neuron&, int32_t*, ByteProducts) {}

#endif

template void multiply_bytes(const ExpandedInputs&, const DigitColumn*, int, double*, ByteProducts);
template void multiply_bytes(const ExpandedInputs&, const DigitColumn*, int, float*, ByteProducts);

}  // namespace tandem::cpu
