#include "rows.h"

namespace tandem::cpu {

Blocks::Blocks(const Geometry& geometry, int64_t rows) {
  const int64_t width = geometry.out_width(), cuts = (width + rows - 1) / rows;
  int64_t row = 0;
  const auto begin_block = [&] {
    first_.push_back(static_cast<int64_t>(strips_.size()));
    first_row_.push_back(row);
  };
  for (int64_t b = 0; b < geometry.batch; ++b) {
    for (int64_t y = 0; y < geometry.out_height(); ++y) {
      for (int64_t cut = 0; cut < cuts; ++cut) {
        const Strip strip{b, y, width * cut / cuts, width * (cut + 1) / cuts};
        const int64_t size = strip.x1 - strip.x0;
        if (first_.empty() || row + size > first_row_.back() + rows) begin_block();
        row += size;
        strips_.push_back(strip);
      }
    }
  }
  begin_block();
}

Block Blocks::operator[](int64_t i) const {
  return {strips_.data() + first_[i], first_[i + 1] - first_[i], first_row_[i], first_row_[i + 1] - first_row_[i]};
}

}  // namespace tandem::cpu
