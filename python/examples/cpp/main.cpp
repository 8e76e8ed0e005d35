// classify NETWORK INPUT: runs a frozen network on samples and prints its layers' spike counts and each sample's class.
//
// NETWORK is what FrozenNetwork.save() or `tandem-snn export --to frozen` wrote; INPUT is raw float32, one sample of
// the network's input shape after the other. With --answers the network's outputs follow the class.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <stdexcept>

#include "network.h"

namespace {

std::vector<float> read_floats(const char* path) {
  std::ifstream stream(path, std::ios::binary | std::ios::ate);
  if (!stream.good()) throw std::runtime_error(std::string("cannot open ") + path);
  std::vector<float> values(stream.tellg() / sizeof(float));
  stream.seekg(0);
  stream.read(reinterpret_cast<char*>(values.data()), values.size() * sizeof(float));
  return values;
}

}  // namespace

int main(int argc, char** argv) {
  const bool answers = argc == 4 && std::strcmp(argv[3], "--answers") == 0;
  if (argc != 3 && !answers) {
    std::fprintf(stderr, "usage: %s NETWORK INPUT [--answers]\n", argv[0]);
    return 2;
  }
  try {
    const Network network{FrozenFile(argv[1])};
    const Answer answer = network.run(read_floats(argv[2]));
    for (size_t i = 0; i < answer.layers.size(); ++i) {
      std::printf("layer %s: %lld spikes\n", answer.layers[i].c_str(), static_cast<long long>(answer.counts[i]));
    }
    const int64_t outputs = network.outputs();
    for (size_t begin = 0; begin < answer.readout.size(); begin += outputs) {
      const auto row = answer.readout.begin() + begin;
      std::printf("sample %zu: class %td", begin / outputs, std::max_element(row, row + outputs) - row);
      for (int64_t n = 0; n < outputs && answers; ++n) std::printf(" %.9g", row[n]);
      std::printf("\n");
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "classify: %s\n", error.what());
    return 1;
  }
  return 0;
}
