#include "lists.h"

#include <algorithm>

#include "collect.h"

namespace tandem::cpu {

namespace {

struct ListJob {
  const Layer& layer;
  const Listed& listed;
  const Block& block;
  int64_t capacity;  // most entries of the list of one row and sheet
  uint16_t* entries;
  int64_t* start;
  const Geometry& geometry = layer.geometry;
  const int sheets = layer.sheets();

  int64_t channels() const { return listed.last - listed.first; }
  uint16_t entry(int64_t ky, int64_t kx) const {
    return static_cast<uint16_t>((ky * geometry.kernel[1] + kx) * channels() * kEntryScale);
  }
  uint16_t zero() const { return entry(geometry.kernel[0], 0); }
  const uint8_t* pixel(int64_t p, int64_t b, int64_t y, int64_t x) const {
    return layer.stored + geometry.pixel(p, b, y, x) + listed.first;
  }
};

TANDEM_INLINE int append_blocks(const uint8_t* bytes, int64_t size, uint16_t entry, InputBlock* blocks, int count) {
  for (int64_t i = 0; i < size; i += 64) {
    blocks[count++] = {bytes + i, static_cast<int32_t>(std::min<int64_t>(64, size - i)),
                       static_cast<uint16_t>(entry + i * kEntryScale)};
  }
  return count;
}

// The inputs of output (b, y, x): line by line where pixels are contiguous in memory, else pixel by pixel.
TANDEM_INLINE int patch_blocks(const ListJob& job, int64_t p, const Strip& s, int64_t x, InputBlock* blocks) {
  const Geometry& geometry = job.geometry;
  const bool adjoin = job.channels() == geometry.channels && geometry.dilation[1] == 1;
  int count = 0;
  for (int64_t ky = 0; ky < geometry.kernel[0]; ++ky) {
    const int64_t y = geometry.input(0, s.y, ky);
    if (!geometry.has_input(0, y)) continue;
    if (adjoin) {
      const int64_t left = geometry.input(1, x, 0), begin = std::max<int64_t>(left, 0);
      const int64_t end = std::min(left + geometry.kernel[1], geometry.width);
      if (begin < end) {
        count = append_blocks(job.pixel(p, s.b, y, begin), (end - begin) * geometry.channels,
                              job.entry(ky, begin - left), blocks, count);
      }
    } else {
      for (int64_t kx = 0; kx < geometry.kernel[1]; ++kx) {
        const int64_t column = geometry.input(1, x, kx);
        if (!geometry.has_input(1, column)) continue;
        count = append_blocks(job.pixel(p, s.b, y, column), job.channels(), job.entry(ky, kx), blocks, count);
      }
    }
  }
  return count;
}

// Builds the lists of a strip, row by row.
template <int G, class Collector>
TANDEM_INLINE uint16_t* list_rows(const ListJob& job, const Strip& strip, Workspace& workspace, uint16_t* out) {
  auto* blocks = workspace.take<InputBlock>(job.geometry.taps() * (job.channels() / 64 + 1));
  for (int64_t x = strip.x0, row = strip.row; x < strip.x1; ++x, ++row) {
    for (int64_t p = 0; p < job.sheets; ++p) {
      job.start[row * job.sheets + p] = out - job.entries;
      const int count = patch_blocks(job, p, strip, x, blocks);
      out = Collector::template collect<G, kWordEntries>(blocks, count, job.listed.bits, job.zero(), workspace, out,
                                                         nullptr);
    }
  }
  return out;
}

// Copies a run of a column's entries into a receptive field. The first copies do not depend on `count`: a mispredicted
// branch takes longer than many copies.
template <int G>
TANDEM_INLINE void copy_run(const uint16_t* from, int64_t count, uint16_t shift, uint16_t* to) {
  constexpr int64_t at_once = copied(G), unconditional = G == 4 ? at_once : 2 * at_once;
  typedef uint16_t Entries __attribute__((vector_size(2 * at_once)));
  const auto copy = [&](int64_t i) TANDEM_INLINE_LAMBDA {
    Entries entries;
    std::memcpy(&entries, from + i, sizeof(entries));
    entries += shift;
    std::memcpy(to + i, &entries, sizeof(entries));
  };
#pragma GCC unroll 2
  for (int64_t i = 0; i < unconditional; i += at_once) copy(i);
  for (int64_t i = unconditional; __builtin_expect(i < count, 0); i += at_once) copy(i);
}

// The runs of a column, and the entry with which the column begins in a receptive field.
struct Piece {
  const uint16_t* entries;
  const uint16_t* sizes;
  uint16_t shift;
};

// Builds the runs of a receptive field from the runs of its columns.
template <int G>
TANDEM_INLINE uint16_t* concatenate(Piece* pieces, int count, int runs, uint16_t zero, uint16_t* out) {
  for (int run = 0; run < runs; ++run) {
    uint16_t* end = out;
#pragma GCC unroll 3
    for (int i = 0; i < count; ++i) {
      const int64_t size = pieces[i].sizes[run];
      copy_run<G>(pieces[i].entries, size, pieces[i].shift, end);
      pieces[i].entries += size;
      end += size;
    }
    out = end_run<kWordEntries>(out, end, zero);
  }
  return out;
}

// Builds the lists of a strip where receptive fields overlap: every input column is listed once, and each receptive
// field concatenates its columns.
template <int G, class Collector>
TANDEM_INLINE uint16_t* list_columns(const ListJob& job, const Strip& strip, Workspace& workspace, uint16_t* out) {
  const int runs = runs_per_plane(G) * job.listed.bits / 8;
  const Geometry& geometry = job.geometry;
  const int64_t kw = geometry.kernel[1];
  const int64_t begin = std::max<int64_t>(geometry.input(1, strip.x0, 0), 0);
  const int64_t end = std::min(geometry.input(1, strip.x1 - 1, kw - 1) + 1, geometry.width);
  const int64_t column_capacity = 8 / G * geometry.kernel[0] * job.channels() + kSlack;
  const int64_t columns = std::max<int64_t>(end - begin, 0);
  auto* blocks = workspace.take<InputBlock>(geometry.kernel[0] * (job.channels() / 64 + 1) + kw);
  auto* entries = workspace.take<uint16_t>(columns * column_capacity);  // of the columns of one line
  auto* sizes = workspace.take<uint16_t>(columns * runs);
  auto* pieces = workspace.take<Piece>(kw);

  for (int64_t p = 0; p < job.sheets; ++p) {
    for (int64_t i = 0; i < columns; ++i) {
      int count = 0;
      for (int64_t ky = 0; ky < geometry.kernel[0]; ++ky) {
        const int64_t y = geometry.input(0, strip.y, ky);
        if (!geometry.has_input(0, y)) continue;
        count = append_blocks(job.pixel(p, strip.b, y, begin + i), job.channels(), job.entry(ky, 0), blocks, count);
      }
      Collector::template collect<G, 0>(blocks, count, job.listed.bits, 0, workspace, entries + i * column_capacity,
                                        sizes + i * runs);
    }
    for (int64_t x = strip.x0; x < strip.x1; ++x) {
      int count = 0;
      for (int64_t kx = 0; kx < kw; ++kx) {
        const int64_t column = geometry.input(1, x, kx);
        if (!geometry.has_input(1, column)) continue;
        pieces[count++] = {entries + (column - begin) * column_capacity, sizes + (column - begin) * runs,
                           job.entry(0, kx)};
      }
      job.start[(strip.row + x - strip.x0) * job.sheets + p] = out - job.entries;
      if (count == 3) {
        Piece three[3] = {pieces[0], pieces[1], pieces[2]};
        out = concatenate<G>(three, 3, runs, job.zero(), out);
      } else {
        out = concatenate<G>(pieces, count, runs, job.zero(), out);
      }
    }
  }
  return out;
}

// Lists strips [begin, end) into one compact piece of memory.
template <class Collector>
TANDEM_INLINE void list_strips(const ListJob& job, int64_t begin, int64_t end, Workspace& outer) {
  const auto list = [&](auto steps) TANDEM_INLINE_LAMBDA {
    constexpr int G = decltype(steps)::value;
    uint16_t* out = job.entries + job.block.strips[begin].row * job.sheets * job.capacity;
    const bool overlap = has_columns(job.geometry);
    for (int64_t i = begin; i < end; ++i) {
      const Strip& strip = job.block.strips[i];
      Workspace workspace(outer);
      out = overlap ? list_columns<G, Collector>(job, strip, workspace, out)
                    : list_rows<G, Collector>(job, strip, workspace, out);
    }
  };
  if (job.listed.steps == 1) return list(std::integral_constant<int, 1>());
  if (job.listed.steps == 2) return list(std::integral_constant<int, 2>());
  list(std::integral_constant<int, 4>());
}

TANDEM_CPU_KERNEL(list_by_table, (const ListJob& job, int64_t begin, int64_t end, Workspace& workspace),
                  (job, begin, end, workspace)) {
  list_strips<TableCollector>(job, begin, end, workspace);
}

#if TANDEM_MULTIVERSION
TANDEM_TARGET_VBMI2 void list_by_compress(const ListJob& job, int64_t begin, int64_t end, Workspace& workspace) {
  list_strips<CompressCollector>(job, begin, end, workspace);
}
#endif

}  // namespace

SpikeLists build_lists(const Layer& layer, const Listed& listed, const Block& block, Workspace& workspace,
                       ParallelFor parallel) {
  const int64_t inputs = layer.geometry.taps() * (listed.last - listed.first), total = block.rows * layer.sheets();
  const int64_t capacity = 8 / listed.steps * inputs + runs_per_plane(listed.steps) * kWordEntries + kSlack;
  const SpikeLists lists{listed, workspace.take<uint16_t>(total * capacity), workspace.take<int64_t>(total)};
  const ListJob job{layer, listed, block, capacity, lists.entries, lists.start};
  constexpr int64_t kGrain = 1 << 15;  // input bytes worth a thread
  const auto strips = static_cast<int64_t>(block.strips.size());
  const int64_t grain = 1 + kGrain * strips / (total * inputs + 1);
  for_workers(parallel, strips, grain, [&](int64_t begin, int64_t end, Workspace& own) {
#if TANDEM_MULTIVERSION
    if (can_compress()) return list_by_compress(job, begin, end, own);
#endif
    list_by_table(job, begin, end, own);
  });
  return lists;
}

}  // namespace tandem::cpu
