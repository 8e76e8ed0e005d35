#include "choose.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "../cpu/vectors.h"
#include "../product/digits/digits.h"
#include "../product/filter.h"
#include "../product/lists.h"
#include "../weights/tiling.h"

namespace tandem::cpu {

namespace {

Algorithm read_path() {
  const char* wish = std::getenv("TANDEM_PATH");
  if (wish == nullptr || *wish == '\0') return Algorithm::kFastest;
  const std::string path = wish, start = "TANDEM_PATH=" + path + ": ";
  if (path == "lists") return Algorithm::kLists;
  if (path != "digits") throw std::runtime_error(start + "allowed are lists, digits");
  if (byte_products() != ByteProducts::kNone) return Algorithm::kDigits;
  throw std::runtime_error(start + "this processor has no products of bytes at capability \"" +
                           capability_name(capability()) + "\"");
}

int usual_digits(DType dtype) { return dtype == DType::kInt8 ? 1 : dtype == DType::kFloat32 ? 3 : 2; }

}  // namespace

Algorithm fixed_algorithm() {
  static const Algorithm fixed = read_path();
  return fixed;
}

Way choose(const Layer& layer, const Density& density) {
  const Geometry& in = layer.geometry;
  if (in.is_depthwise() || in.taps() > kMaxInputs) return {Algorithm::kPlain, 0};
  const Algorithm wish = layer.way.algorithm == Algorithm::kFastest ? fixed_algorithm() : layer.way.algorithm;
  if (wish == Algorithm::kPlain && layer.weights.dtype != DType::kInt8) return layer.way;
  if ((wish == Algorithm::kFilter || wish == Algorithm::kFastest) && can_filter(layer)) return {Algorithm::kFilter, 0};

  // Weights of one digit may take less time as bytes than by lists even for steps: for K inputs and 16 outputs VNNI has
  // 2 K products, lists have up to 4 K additions in many short runs.
  const bool unit = byte_products() == ByteProducts::kAmx;
  const bool can_digits =
      has_digits(in) && (layer.timing() == Timing::kWindow || unit || layer.weights.dtype == DType::kInt8);
  const Way digits{Algorithm::kDigits, 0};
  if (can_digits && wish == Algorithm::kDigits) return digits;

  const Way lists{Algorithm::kLists, layer.way.steps > 0 ? layer.way.steps : cheapest_steps(in, density)};
  if (!can_digits || wish != Algorithm::kFastest) return lists;
  const bool prepared = layer.prepared != nullptr;
  const double cost = layer.timing() == Timing::kWindow
                          ? counts_cost(in, prepared, byte_products(), usual_digits(layer.weights.dtype))
                          : steps_cost(in, prepared, byte_products());
  return cost < lists_cost(in, lists.steps, density) ? digits : lists;
}

namespace {

// Counts bits, nonzero pairs and nonzero nibbles of sampled words. Multiversioned for its popcounts. The samples are at
// multiples of the golden ratio: with a regular distance they would meet the same channels again and again.
TANDEM_CPU_KERNEL(count_patterns, (const uint8_t* bytes, uint64_t words, int64_t samples, int64_t* counts),
                  (bytes, words, samples, counts)) {
  for (int64_t i = 0; i < samples; ++i) {
    const uint64_t fraction = static_cast<uint32_t>(i) * 2654435769u;
    uint64_t word;
    std::memcpy(&word, bytes + 8 * (fraction * words >> 32), sizeof(word));
    const uint64_t pair = (word | word >> 1) & 0x5555555555555555ull;
    counts[0] += __builtin_popcountll(word);
    counts[1] += __builtin_popcountll(pair);
    counts[2] += __builtin_popcountll((pair | pair >> 2) & 0x1111111111111111ull);
  }
}

}  // namespace

Density Density::measure(const uint8_t* bytes, int64_t size) {
  constexpr int64_t kSamples = 512;
  const int64_t words = std::min<int64_t>(size / 8, UINT32_MAX), samples = std::min(words, kSamples);
  int64_t counts[3] = {};
  count_patterns(bytes, words, samples, counts);
  const double seen = 8.0 * static_cast<double>(std::max<int64_t>(samples, 1));
  return {{counts[0] / seen, counts[1] / seen, counts[2] / seen}};
}

Density Density::measure(const Layer& layer) {
  return measure(layer.stored, layer.geometry.sheet_size() * layer.sheets());
}

const ListCosts& ListCosts::of_processor() {
  static const ListCosts costs = [] {
    ListCosts found = capability() == Capability::kV4 ? kCompressedLists : kAvx2Lists;
    found.compressed = can_compress();
    return found;
  }();
  return costs;
}

double lists_cost(const Geometry& geometry, int steps, const Density& density, const ListCosts& costs) {
  const int index = steps == 4 ? 2 : steps - 1;
  const int64_t channels = geometry.group_channels();
  const bool columns = has_columns(geometry);
  const int64_t pixels = columns ? geometry.kernel[0] * geometry.stride[1] : geometry.taps();
  const int64_t copies = columns ? geometry.kernel[1] : 0;
  const double tiles = static_cast<double>(geometry.group_outputs()) / 16,
               inputs = static_cast<double>(geometry.inputs());
  const double blocks = static_cast<double>(Tiling(geometry).blocks);
  const int64_t runs = runs_per_plane(steps);
  const int64_t compares = 8 * runs * pixels * ((channels + 63) / 64),
                look_ups = 8 * 8 / steps * pixels * ((channels + 15) / 16);
  const double sorting = steps == 1 ? 0 : 6 * density.adds[index] * static_cast<double>(pixels * channels);
  return tiles *
             (costs.addition * density.adds[index] * inputs + costs.fold_and_fire[index] + costs.block * (blocks - 1)) +
         static_cast<double>(8 * runs * copies) +
         (costs.compressed ? static_cast<double>(compares) : static_cast<double>(look_ups) + sorting);
}

int cheapest_steps(const Geometry& geometry, const Density& density, const ListCosts& costs) {
  int best = 1;
  for (const int steps : {2, 4}) {
    if (lists_cost(geometry, steps, density, costs) < lists_cost(geometry, best, density, costs)) best = steps;
  }
  return best;
}

namespace {

// Of a weight, shared by all rows: all are read, where lists read those of active inputs. What is not prepared is made
// for lists too; digits cost so much more.
constexpr double kRead = 0.02, kPrepare = 0.3;

// chunk, fire: of 16 outputs; expand: of an input channel.
double digits_cost(const Geometry& geometry, bool prepared, double chunk, double fire, double expand) {
  const double tiles = static_cast<double>(geometry.group_outputs()) / 16;
  const auto weights = static_cast<double>(geometry.inputs() * geometry.group_outputs());
  const auto pixels = static_cast<double>(ExpandedRows(geometry).pixels * geometry.group_channels());
  return tiles * (chunk * static_cast<double>(ChunkShape(geometry).chunks()) + fire) + expand * pixels +
         (prepared ? kRead : kPrepare) * weights / static_cast<double>(geometry.rows());
}

}  // namespace

double steps_cost(const Geometry& geometry, bool prepared, ByteProducts kind) {
  if (kind != ByteProducts::kAmx) return digits_cost(geometry, prepared, 140, 130, 1.9);
  return digits_cost(geometry, prepared, 31 * ExpandedRows(geometry).idle(kTileRows), 190, 1.9);
}

double counts_cost(const Geometry& geometry, bool prepared, ByteProducts kind, int digits) {
  const int64_t at_once = kind == ByteProducts::kAmx ? kTileRows : kind == ByteProducts::kAvx512Vnni ? 8 : 4;
  const double chunk = kind == ByteProducts::kAmx ? 6 : 32.0 / 3 * digits;
  return digits_cost(geometry, prepared, chunk * ExpandedRows(geometry).idle(at_once), 50, 0.2);
}

}  // namespace tandem::cpu
