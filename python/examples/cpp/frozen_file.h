// Reads the files of FrozenNetwork.save(): safetensors with a program, its numbers and the names of its layers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct FrozenFile {
  std::vector<int64_t> program;
  std::vector<double> storage;  // the numbers, aligned as the executor needs them
  int64_t bytes = 0;
  std::vector<std::string> names;  // by instruction of the program

  const uint8_t* numbers() const { return reinterpret_cast<const uint8_t*>(storage.data()); }

  // Throws std::runtime_error if a single byte of the file has changed.
  static FrozenFile read(const std::string& content);
};
