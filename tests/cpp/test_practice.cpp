// Layers of shapes that networks have, by every path, against the plain loop: by lists and by digits of each kind, with
// weights that the call prepares, as in training, or that the caller has, as in a frozen network. TANDEM_LAYERS sets
// how many layers, then of up to 20 million products, and prints how many each path had. The v3 level has AVX2, the
// default SSE2.
#include <map>

#include "kernels/dispatch/choose.h"
#include "product_layer.h"

using namespace tandem;
using namespace tandem::test;

namespace {

const char* kind_name(cpu::ByteProducts kind) {
  const char* names[] = {"none", "AVX2", "AVX-VNNI", "VNNI", "AMX"};
  return names[static_cast<int>(kind)];
}

std::string path_of(const Way& way) {
  const std::string level = cpu::capability() == cpu::Capability::kDefault ? "SSE2 " : "";
  switch (way.algorithm) {
    case Algorithm::kDigits:
      return kind_name(cpu::byte_products());
    case Algorithm::kPlain:
      return level + "plain";
    default:
      return level + "lists";
  }
}

// Compares a layer by each path that it has, and adds them to `paths`.
void compare(ProductLayer& layer, Input& in, std::map<std::string, int>& paths) {
  const std::vector<PlainNeuron> want = layer.expected();
  const PreparedWeights prepared(layer.geometry, layer.weights);
  const std::string timing = layer.args.timing == Timing::kWindow ? ", window, " : ", step, ";
  const int32_t steps = in.pick({0, 1, 2, 4});
  std::map<std::string, int> seen;
  const auto check_path = [&](const std::string& path, const auto& run) {
    if (seen[path]++ > 0) return;
    const Outputs got(layer.args);
    if (!run(layer.layer())) return;
    CHECK(agree(layer.args, want), "%s: %s", path.c_str(), text(layer).c_str());
    ++paths[path];
  };
  for (const bool frozen : {false, true}) {
    layer.prepared = frozen ? prepared.data : nullptr;
    const std::string suffix = timing + (frozen ? "frozen" : "training");
    for (const Way& way : {Way{Algorithm::kLists, steps}, Way{Algorithm::kDigits, 0}, Way{Algorithm::kFastest, 0}}) {
      layer.way = way;
      const Way chosen = cpu::choose(layer.layer(), cpu::Density::measure(layer.layer()));
      check_path(path_of(chosen) + suffix, [&](const Layer& of) {
        cpu::run(of, cut_for);
        return true;
      });
    }
    for (int kind = 1; kind < static_cast<int>(cpu::byte_products()); ++kind) {
      const auto by = static_cast<cpu::ByteProducts>(kind);
      check_path(kind_name(by) + suffix, [&](Layer of) {
        layer.args.mask = of.neuron.mask = nullptr;  // whose bytes would be of two groups
        return run_digits(of, by);
      });
    }
  }
}

}  // namespace

TEST(layers_of_practice) {
  const char* wanted = std::getenv("TANDEM_LAYERS");
  const int layers = wanted != nullptr ? std::atoi(wanted) : 100;
  const int64_t most = wanted != nullptr ? 20'000'000 : 1 << 18;
  std::map<std::string, int> paths;
  double products = 0;
  for (int i = 0; i < layers && failures < 20; ++i) {
    std::mt19937 random(static_cast<unsigned>(i));
    std::vector<uint8_t> bytes(256);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    Input in(bytes.data(), bytes.size());
    const Geometry shape = practical_image(in, most >> in.range(0, 5));
    ProductLayer layer = any_options(in, shape, in.pick({1, 4, 8, 20}));
    products += static_cast<double>(shape.neurons() * shape.inputs());
    compare(layer, in, paths);
    if ((i + 1) % 1000 == 0) std::printf("%d layers, %.1f million products each\n", i + 1, products / 1e6 / (i + 1));
  }
  for (const auto& [path, count] : paths) std::printf("%6d %s\n", count, path.c_str());
}
