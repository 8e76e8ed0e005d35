#include "lists.h"

#include <algorithm>
#include <vector>

#include "collect.h"

namespace tandem::cpu {

namespace {

struct ListJob {
  const Geometry& geometry;
  const uint8_t* spikes;  // the layer's planes
  int planes, bits;
  int64_t first, last;  // input channels
  const Strip* strips;
  const int64_t* row;  // number of the first row of each strip
  int64_t capacity;    // most entries of the list of one row and plane
  uint16_t* entries;
  int64_t* start;

  int64_t channels() const { return last - first; }
  uint16_t entry(int64_t ky, int64_t kx) const {
    return static_cast<uint16_t>((ky * geometry.kernel[1] + kx) * channels() * kEntryScale);
  }
  uint16_t zero() const { return static_cast<uint16_t>(geometry.taps() * channels() * kEntryScale); }
  int64_t in_y(int64_t y, int64_t ky) const {
    return y * geometry.stride[0] - geometry.padding[0] + ky * geometry.dilation[0];
  }
  int64_t in_x(int64_t x, int64_t kx) const {
    return x * geometry.stride[1] - geometry.padding[1] + kx * geometry.dilation[1];
  }
  bool has_line(int64_t y) const { return y >= 0 && y < geometry.height; }
  bool has_column(int64_t x) const { return x >= 0 && x < geometry.width; }
  const uint8_t* pixel(int64_t p, int64_t b, int64_t y, int64_t x) const {
    return spikes + (((p * geometry.batch + b) * geometry.height + y) * geometry.width + x) * geometry.channels + first;
  }
};

// The runs of a column or pixel, and the entry with which it begins in a receptive field.
struct Piece {
  const uint16_t* entries;
  const uint16_t* ends;
  uint16_t shift;
};

// Scratch of a thread.
template <class Collector>
struct ListMemory {
  typename Collector::Memory collector;
  Scratch<InputBlock> blocks;
  Scratch<Piece> pieces;
  Scratch<uint16_t> entries, ends;  // of the pieces of some lines
  std::vector<int64_t> lines;       // which they are
  int64_t columns;                  // of the widest strip
};

TANDEM_INLINE int append_blocks(const uint8_t* bytes, int64_t size, uint16_t entry, InputBlock* blocks, int count) {
  for (int64_t i = 0; i < size; i += 64) {
    blocks[count++] = {bytes + i, static_cast<int32_t>(std::min<int64_t>(64, size - i)),
                       static_cast<uint16_t>(entry + i * kEntryScale)};
  }
  return count;
}

// The inputs of output (b, y, x): line by line where pixels are contiguous in memory, else pixel by pixel.
TANDEM_INLINE int window_blocks(const ListJob& job, int64_t p, const Strip& s, int64_t x, InputBlock* blocks) {
  const Geometry& geometry = job.geometry;
  const bool adjoin = job.channels() == geometry.channels && geometry.dilation[1] == 1;
  int count = 0;
  for (int64_t ky = 0; ky < geometry.kernel[0]; ++ky) {
    const int64_t y = job.in_y(s.y, ky);
    if (!job.has_line(y)) continue;
    if (adjoin) {
      const int64_t left = job.in_x(x, 0), begin = std::max<int64_t>(left, 0);
      const int64_t end = std::min(left + geometry.kernel[1], geometry.width);
      if (begin < end) {
        count = append_blocks(job.pixel(p, s.b, y, begin), (end - begin) * geometry.channels,
                              job.entry(ky, begin - left), blocks, count);
      }
    } else {
      for (int64_t kx = 0; kx < geometry.kernel[1]; ++kx) {
        const int64_t column = job.in_x(x, kx);
        if (!job.has_column(column)) continue;
        count = append_blocks(job.pixel(p, s.b, y, column), job.channels(), job.entry(ky, kx), blocks, count);
      }
    }
  }
  return count;
}

// Builds the lists of a strip, row by row.
template <int G, class Collector>
TANDEM_INLINE uint16_t* list_rows(const ListJob& job, const Strip& strip, int64_t row, ListMemory<Collector>& memory,
                                  uint16_t* out) {
  InputBlock* blocks = memory.blocks.reserve(job.geometry.taps() * (job.channels() / 64 + 1));
  for (int64_t x = strip.x0; x < strip.x1; ++x, ++row) {
    for (int64_t p = 0; p < job.planes; ++p) {
      job.start[row * job.planes + p] = out - job.entries;
      const int count = window_blocks(job, p, strip, x, blocks);
      out = Collector::template collect<G, kWordEntries>(blocks, count, job.bits, job.zero(), memory.collector, out,
                                                         nullptr);
    }
  }
  return out;
}

// Copies a run of a piece into a receptive field. The first copies do not depend on its size: a mispredicted branch
// takes longer than many copies.
template <int64_t first>
TANDEM_INLINE void copy_run(const uint16_t* from, int64_t count, uint16_t shift, uint16_t* to) {
  constexpr int64_t at_once = 16;
  typedef uint16_t Entries __attribute__((vector_size(2 * at_once)));
  const auto copy = [&](int64_t i) TANDEM_INLINE_LAMBDA { store(to + i, load<Entries>(from + i) + shift); };
#pragma GCC unroll 4
  for (int64_t i = 0; i < first; i += at_once) copy(i);
  for (int64_t i = first; __builtin_expect(i < count, 0); i += at_once) copy(i);
}

// Builds the runs of a receptive field from the runs of its pieces.
template <int64_t first>
TANDEM_INLINE uint16_t* concatenate(const Piece* pieces, int count, int runs, uint16_t zero, uint16_t* out) {
  for (int run = 0; run < runs; ++run) {
    uint16_t* end = out;
    for (const Piece* piece = pieces; piece != pieces + count; ++piece) {
      const int begin = piece->ends[run], size = piece->ends[run + 1] - begin;
      copy_run<first>(piece->entries + begin, size, piece->shift, end);
      end += size;
    }
    out = end_run<kWordEntries>(out, end, zero);
  }
  return out;
}

// Builds the lists of a strip where receptive fields overlap, from pieces that are listed once: the columns of a strip,
// or pixels if looking up positions takes longer than copying them. Their lists are kept for as many lines as a
// receptive field has.
template <int G, class Collector>
TANDEM_INLINE uint16_t* list_pieces(const ListJob& job, const Strip& strip, int64_t row, ListMemory<Collector>& memory,
                                    uint16_t* out) {
  const Geometry& geometry = job.geometry;
  const int runs = runs_per_plane(G) * job.bits / 8;
  const int64_t kh = geometry.kernel[0], kw = geometry.kernel[1];
  const int64_t height = Collector::kColumns ? kh : 1, span = (kh - height) * geometry.dilation[0] + 1;
  const int64_t capacity = 8 / G * height * job.channels() + kSlack, lists = span * job.planes * memory.columns;
  InputBlock* blocks = memory.blocks.reserve(height * (job.channels() / 64 + 1));
  Piece* pieces = memory.pieces.reserve(kh / height * kw);
  uint16_t* entries = memory.entries.reserve(lists * capacity);
  uint16_t* ends = memory.ends.reserve(lists * (runs + 1));
  memory.lines.resize(span, -1);
  const int64_t begin = std::max<int64_t>(job.in_x(strip.x0, 0), 0);
  const int64_t end = std::min(job.in_x(strip.x1 - 1, kw - 1) + 1, geometry.width);
  const auto number = [&](int64_t p, int64_t y, int64_t x) {
    return ((y + span) % span * job.planes + p) * memory.columns + x - begin;
  };
  for (int64_t ky = 0; ky < kh; ky += height) {
    const int64_t y = job.in_y(strip.y, ky), line = (strip.b * geometry.height + y) * geometry.out_width() + strip.x0;
    if (height == 1) {
      if (!job.has_line(y) || memory.lines[y % span] == line) continue;
      memory.lines[y % span] = line;
    }
    for (int64_t p = 0; p < job.planes; ++p) {
      for (int64_t x = begin; x < end; ++x) {
        const int64_t i = number(p, y, x);
        int count = 0;
        for (int64_t k = 0; k < height; ++k) {
          const int64_t in_y = job.in_y(strip.y, ky + k);
          if (!job.has_line(in_y)) continue;
          count = append_blocks(job.pixel(p, strip.b, in_y, x), job.channels(), job.entry(k, 0), blocks, count);
        }
        ends[i * (runs + 1)] = 0;
        Collector::template collect<G, 0>(blocks, count, job.bits, 0, memory.collector, entries + i * capacity,
                                          ends + i * (runs + 1) + 1);
      }
    }
  }
  for (int64_t x = strip.x0; x < strip.x1; ++x, ++row) {
    for (int64_t p = 0; p < job.planes; ++p) {
      int count = 0;
      for (int64_t ky = 0; ky < kh; ky += height) {
        const int64_t y = job.in_y(strip.y, ky);
        if (height == 1 && !job.has_line(y)) continue;
        for (int64_t kx = 0; kx < kw; ++kx) {
          const int64_t in_x = job.in_x(x, kx);
          if (!job.has_column(in_x)) continue;
          const int64_t i = number(p, y, in_x);
          pieces[count++] = {entries + i * capacity, ends + i * (runs + 1), job.entry(ky, kx)};
        }
      }
      job.start[row * job.planes + p] = out - job.entries;
      constexpr int64_t kFirst = !Collector::kColumns || G == 4 ? 16 : 64;
      out = concatenate<kFirst>(pieces, count, runs, job.zero(), out);
    }
  }
  return out;
}

// Lists strips [begin, end) into one compact piece of memory.
template <int G, class Collector>
TANDEM_INLINE void list_strips(const ListJob& job, int64_t begin, int64_t end) {
  thread_local ListMemory<Collector> memory;
  memory.lines.clear();
  memory.columns = 0;
  for (int64_t i = begin; i < end; ++i) {
    const Strip& strip = job.strips[i];
    memory.columns =
        std::max(memory.columns, job.in_x(strip.x1 - strip.x0 - 1, job.geometry.kernel[1] - 1) - job.in_x(0, 0) + 1);
  }
  const bool overlap = job.geometry.kernel[1] > job.geometry.stride[1];
  uint16_t* out = job.entries + job.row[begin] * job.planes * job.capacity;
  for (int64_t i = begin; i < end; ++i) {
    out = overlap ? list_pieces<G, Collector>(job, job.strips[i], job.row[i], memory, out)
                  : list_rows<G, Collector>(job, job.strips[i], job.row[i], memory, out);
  }
}

template <class Collector>
TANDEM_INLINE void list_any(const ListJob& job, int steps, int64_t begin, int64_t end) {
  if (steps == 1) return list_strips<1, Collector>(job, begin, end);
  if (steps == 2) return list_strips<2, Collector>(job, begin, end);
  list_strips<4, Collector>(job, begin, end);
}

TANDEM_INLINE void list_by_table_body(const ListJob& job, int steps, int64_t begin, int64_t end) {
  list_any<TableCollector>(job, steps, begin, end);
}
TANDEM_CPU_KERNEL(list_by_table, (const ListJob& job, int steps, int64_t begin, int64_t end), (job, steps, begin, end))

#if TANDEM_MULTIVERSION
TANDEM_TARGET_VBMI2 void list_by_compress(const ListJob& job, int steps, int64_t begin, int64_t end) {
  list_any<CompressCollector>(job, steps, begin, end);
}
#endif

}  // namespace

bool can_compress() {
#if TANDEM_MULTIVERSION
  static const bool can = capability() == Capability::kV4 && __builtin_cpu_supports("avx512vbmi2");
  return can;
#else
  return false;
#endif
}

void build_lists(const Layer& layer, int steps, int bits, int64_t first, int64_t last, const Block& block,
                 SpikeLists& lists, ParallelFor parallel) {
  thread_local Scratch<int64_t> rows_memory;
  int64_t* row = rows_memory.reserve(block.count);
  for (int64_t i = 0, rows = 0; i < block.count; ++i) {
    row[i] = rows;
    rows += block.strips[i].x1 - block.strips[i].x0;
  }
  const int planes = layer.plane_count();
  const int64_t inputs = layer.geometry.taps() * (last - first), runs = runs_per_plane(steps);
  const int64_t capacity = 8 / steps * inputs + runs * kWordEntries + kSlack;
  const int64_t total = block.rows * planes;
  lists.steps = steps;
  lists.bits = bits;
  const ListJob job{layer.geometry,
                    layer.planes,
                    planes,
                    bits,
                    first,
                    last,
                    block.strips,
                    row,
                    capacity,
                    lists.entries.reserve(total * capacity),
                    lists.start.reserve(total)};
  constexpr int64_t kGrain = 1 << 15;  // input bytes worth a thread
  const int64_t grain = 1 + kGrain * block.count / (total * inputs + 1);
  parallel_ranges(parallel, block.count, grain, [&](int64_t begin, int64_t end) {
#if TANDEM_MULTIVERSION
    if (can_compress()) return list_by_compress(job, steps, begin, end);
#endif
    list_by_table(job, steps, begin, end);
  });
}

}  // namespace tandem::cpu
