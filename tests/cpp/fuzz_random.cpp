// Stands in for libFuzzer where the compiler has none, with its options: random bytes, or those of files.
//
//   fuzz_x [-runs=N] [-seed=S] [FILE ...]
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
  LLVMFuzzerInitialize(&argc, &argv);
  long runs = 1000;
  unsigned seed = 1;
  bool files = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("-runs=", 0) == 0) {
      runs = std::atol(argv[i] + 6);
    } else if (argument.rfind("-seed=", 0) == 0) {
      seed = static_cast<unsigned>(std::atol(argv[i] + 6));
    } else if (argument[0] != '-') {
      std::ifstream file(argument, std::ios::binary);
      const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
      LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
      files = true;
    }
  }
  if (files) return 0;
  std::mt19937 random(seed);
  for (long run = 0; run < runs; ++run) {
    std::vector<uint8_t> bytes(random() % 64);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%ld runs\n", runs);
}
