// The file that FrozenNetwork.save() writes: safetensors, with a program, its numbers and the names of its layers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct FrozenFile {
  std::vector<int64_t> program;
  std::vector<double> storage;  // of the numbers, aligned as the executor wants it
  int64_t bytes = 0;
  std::vector<std::string> names;  // of the program's instructions

  const uint8_t* numbers() const { return reinterpret_cast<const uint8_t*>(storage.data()); }

  // Throws std::runtime_error unless the content is what was written, to the last byte.
  static FrozenFile read(const std::string& content);
};
