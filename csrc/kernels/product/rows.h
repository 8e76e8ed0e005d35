// Divides the rows of a layer, its output pixels, into blocks.
#pragma once

#include <vector>

#include "../layer.h"

namespace tandem::cpu {

// Output pixels [x0, x1) of line y of sample b.
struct Strip {
  int64_t b, y, x0, x1;
};

// Consecutive strips, and the rows in them.
struct Block {
  const Strip* strips;
  int64_t count;
  int64_t first_row, rows;
};

// Cuts long output lines into strips and gathers strips into blocks of at most `rows` rows.
class Blocks {
 public:
  Blocks(const Geometry& geometry, int64_t rows);

  int64_t size() const { return static_cast<int64_t>(first_.size()) - 1; }
  Block operator[](int64_t i) const;

 private:
  std::vector<Strip> strips_;
  std::vector<int64_t> first_;      // first strip of each block, then the number of strips
  std::vector<int64_t> first_row_;  // first row of each block, then the number of rows
};

}  // namespace tandem::cpu
