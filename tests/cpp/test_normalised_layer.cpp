// The product with batch normalisation where the sums of all its tiles do not fit into the cache at once.
#include "ways.h"

using namespace tandem;
using namespace tandem::test;

namespace {

void check(const Shape& s, int32_t T, const char* name) {
  ProductLayer layer(s, T, 0.3, 1);
  check_normalised(layer, {Way::kLists1, Way::kMatrixUnit, Way::kPlain}, name);
}

}  // namespace

// 32 planes of 32 outputs take 32 KB a row: of eight rows four tiles are kept at a time, of forty not one.
TEST(a_few_tiles_at_a_time) {
  for (int64_t batch : {8, 40}) {
    check(linear(8, 9 * 32 + 5, batch), 255, "linear");
    Shape groups = linear(8, 2 * 5 * 32, batch);
    groups.groups = 2;
    check(groups, 255, "two groups");
  }
}

// Kept where there are a few rows, else multiplied twice; the product of the window in pieces either way.
TEST(long_windows) {
  for (int32_t T : {256, 300, 1000}) {
    for (int64_t batch : {2, 40}) check(linear(12, 20, batch), T, "long");
  }
}

TEST(blocks_of_an_image) { check(image(9, 3, 1, 3, 150), 33, "image"); }
