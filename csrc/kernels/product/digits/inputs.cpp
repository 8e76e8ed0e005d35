// Expands spikes, or spike counts, to bytes.
#include <algorithm>
#include <cstring>

#include "../../cpu/vectors.h"
#include "../../planes/bits.h"
#include "digits.h"

namespace tandem::cpu {

namespace {

int64_t whole_chunks(int64_t n) { return (n + kChunk - 1) / kChunk * kChunk; }

// Bytes from pixel to pixel. Rows of a product begin at cache lines, unless they span several pixels, which then must
// be contiguous.
int64_t pitch(const Geometry& geometry) {
  return geometry.kernel[1] == 1 ? whole_chunks(geometry.group_channels()) : geometry.group_channels();
}

}  // namespace

ExpandedRows::ExpandedRows(const Geometry& geometry)
    : gathered(false),
      pixels(geometry.kernel[0] * geometry.stride[1]),
      rows(std::max<int64_t>(geometry.out_width(), 1)) {
  // A chunk of inputs must not reach from one pixel into the next.
  const bool possible = adjoin(geometry) && (geometry.kernel[1] == 1 || geometry.group_channels() % kChunk == 0);
  constexpr double kTolerated = 1.2;
  if (!possible || idle(kTileRows) <= kTolerated) return;
  gathered = true;
  pixels = geometry.taps();
  rows = std::max<int64_t>(geometry.rows(), 1);
}

namespace {

// Splits `n` bytes into bits: a plane of bytes 0 and 1 for each step.
TANDEM_CPU_KERNEL(split_bits, (const uint8_t* in, int64_t n, uint8_t* out, int64_t step_bytes),
                  (in, n, out, step_bytes)) {
  for (int64_t i = 0; i < n; i += kChunk) {
    const int lanes = static_cast<int>(std::min<int64_t>(kChunk, n - i));
    const auto bytes = load_first<Bytes<kChunk>>(in + i, lanes);
#pragma GCC unroll 8
    for (int t = 0; t < 8; ++t) store_first(out + t * step_bytes + i, (bytes >> t) & 1, lanes);
  }
}

// Pixel (y, x) of sample b in sheet p, from input channel `first` on.
const uint8_t* pixel(const Layer& layer, int p, int64_t b, int64_t y, int64_t x, int64_t first) {
  return layer.stored + layer.geometry.pixel(p, b, y, x) + first;
}

void expand_bytes(ExpandedInputs& inputs, const uint8_t* in, int64_t n, uint8_t* out, int64_t step_bytes) {
  if (inputs.steps > 1) return split_bits(in, n, out, step_bytes);
  std::memcpy(out, in, n);
  if (inputs.most < UINT8_MAX) inputs.most = std::max<int>(inputs.most, largest_byte(in, n));
}

// Makes each strip a piece: [lines of the kernel, pixels] at each step.
void copy_lines(ExpandedInputs& inputs, const Layer& layer, int64_t first, const Block& block, Workspace& workspace) {
  const int sheets = layer.sheets();
  const Geometry& geometry = layer.geometry;
  const ChunkShape shape(geometry);
  const int64_t lines = geometry.kernel[0], channels = geometry.group_channels(), size = pitch(geometry);
  const auto pixels_for = [&](int64_t rows) {
    return (whole_tiles(rows) - 1) * geometry.stride[1] + (geometry.kernel[1] - 1) * geometry.dilation[1] + 1;
  };
  int64_t total = 0;
  const auto strips = static_cast<int64_t>(block.strips.size());
  inputs.pieces = {workspace.take<ExpandedPiece>(strips), strips};
  auto* offset = workspace.take<int64_t>(strips * shape.chunks());
  for (int64_t j = 0; j < strips; ++j) {
    const Strip& strip = block.strips[j];
    const int64_t rows = strip.x1 - strip.x0, pixels = pixels_for(rows), row_bytes = geometry.stride[1] * size;
    // The last chunk may reach beyond the last pixel.
    const int64_t step_bytes = whole_chunks(lines * pixels * size) + kChunk;
    inputs.pieces.data[j] = {rows, row_bytes, kTileRows * row_bytes, step_bytes, total, offset};
    total += sheets * inputs.steps * step_bytes;
    for (int64_t c = 0; c < shape.chunks(); ++c) {
      const int64_t segment = c / shape.chunks_per_segment;
      const int64_t line = adjoin(geometry) ? segment : segment / geometry.kernel[1];
      const int64_t column = adjoin(geometry) ? 0 : segment % geometry.kernel[1] * geometry.dilation[1];
      *offset++ = (line * pixels + column) * size + c % shape.chunks_per_segment * kChunk;
    }
  }
  inputs.bytes = workspace.take<uint8_t>(total);
  for (int64_t j = 0; j < strips; ++j) {
    const Strip& strip = block.strips[j];
    const ExpandedPiece& piece = inputs.pieces.data[j];
    const int64_t pixels = pixels_for(piece.rows), x = geometry.input(1, strip.x0, 0);
    const int64_t begin = std::clamp<int64_t>(-x, 0, pixels);
    const int64_t end = std::clamp<int64_t>(geometry.width - x, begin, pixels);
    for (int p = 0; p < sheets; ++p) {
      uint8_t* to = inputs.bytes + piece.start + p * inputs.steps * piece.step_bytes;
      for (int64_t line = 0; line < lines; ++line, to += pixels * size) {
        const int64_t y = geometry.input(0, strip.y, line);
        const bool inside = geometry.has_input(0, y);
        const int64_t from = inside ? begin : pixels, until = inside ? end : pixels;
        for (int t = 0; t < inputs.steps; ++t) {
          std::fill_n(to + t * piece.step_bytes, from * size, uint8_t{0});
          std::fill_n(to + t * piece.step_bytes + until * size, (pixels - until) * size, uint8_t{0});
        }
        if (from >= until) continue;
        if (size == channels && channels == geometry.channels) {  // pixels adjoin in the bytes and in the image
          expand_bytes(inputs, pixel(layer, p, strip.b, y, x + from, first), (until - from) * channels,
                       to + from * size, piece.step_bytes);
        } else {
          for (int64_t i = from; i < until; ++i) {
            expand_bytes(inputs, pixel(layer, p, strip.b, y, x + i, first), channels, to + i * size, piece.step_bytes);
          }
        }
      }
    }
  }
}

// Makes all rows of the block one piece, with the bytes of a tile together: [tiles, chunks, 16 rows, 64] at each step.
void gather_rows(ExpandedInputs& inputs, const Layer& layer, int64_t first, const Block& block, Workspace& workspace) {
  const int sheets = layer.sheets();
  const Geometry& geometry = layer.geometry;
  const int64_t channels = geometry.group_channels(), tile_bytes = inputs.chunks * kTileBytes;
  const int64_t step_bytes = whole_tiles(block.rows) / kTileRows * tile_bytes;
  auto* offsets = workspace.take<int64_t>(inputs.chunks);
  for (int64_t c = 0; c < inputs.chunks; ++c) offsets[c] = c * kTileBytes;
  inputs.pieces = {workspace.take<ExpandedPiece>(1), 1};
  inputs.pieces.data[0] = {block.rows, kChunk, tile_bytes, step_bytes, 0, offsets};
  uint8_t* to = inputs.bytes = workspace.take<uint8_t>(sheets * inputs.steps * step_bytes);
  for (int p = 0; p < sheets; ++p, to += inputs.steps * step_bytes) {
    int64_t row = 0;
    for (const Strip& strip : block.strips) {
      for (int64_t x = strip.x0; x < strip.x1; ++x, ++row) {
        uint8_t* out = to + row / kTileRows * tile_bytes + row % kTileRows * kChunk;
        for (int64_t tap = 0; tap < geometry.taps(); ++tap) {
          const int64_t in_y = geometry.input(0, strip.y, tap / geometry.kernel[1]);
          const int64_t in_x = geometry.input(1, x, tap % geometry.kernel[1]);
          const bool inside = geometry.has_input(0, in_y) && geometry.has_input(1, in_x);
          const uint8_t* in = inside ? pixel(layer, p, strip.b, in_y, in_x, first) : nullptr;
          for (int64_t i = 0; i < channels; i += kChunk, out += kTileBytes) {
            if (inside) expand_bytes(inputs, in + i, std::min(kChunk, channels - i), out, step_bytes);
            for (int t = 0; !inside && t < inputs.steps; ++t) std::fill_n(out + t * step_bytes, kChunk, uint8_t{0});
          }
        }
      }
    }
  }
}

}  // namespace

ExpandedInputs expand(const Layer& layer, int64_t first, const Block& block, Workspace& workspace) {
  ExpandedInputs inputs{};
  inputs.T = layer.timing() == Timing::kWindow ? 1 : layer.neuron.T;
  inputs.steps = layer.timing() == Timing::kWindow ? 1 : 8;
  inputs.most = byte_products() == ByteProducts::kAvx2 ? 0 : UINT8_MAX;
  const ChunkShape shape(layer.geometry);
  inputs.chunks = shape.chunks();
  auto* words = workspace.take<int32_t>(inputs.chunks);
  for (int64_t c = 0; c < inputs.chunks; ++c) words[c] = static_cast<int32_t>(shape.words(c));
  inputs.words = words;
  ExpandedRows(layer.geometry).gathered ? gather_rows(inputs, layer, first, block, workspace)
                                        : copy_lines(inputs, layer, first, block, workspace);
  return inputs;
}

}  // namespace tandem::cpu
