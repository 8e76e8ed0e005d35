// The file that FrozenNetwork.save() writes: safetensors, with the layers and their wiring as JSON in its metadata.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "json.h"

struct FrozenFile {
  int T = 0;
  std::vector<int64_t> shape;  // of one input
  Json layers;                 // by name: kind and settings
  Json uses;                   // [layer, input, residual, fires] in order; inputs are numbers of uses, -1 the network's

  // Throws std::runtime_error unless the file is one that this reader understands.
  explicit FrozenFile(const std::string& path);

  bool has(const std::string& name) const { return tensors_.count(name) > 0; }
  const std::vector<int64_t>& shape_of(const std::string& name) const { return tensor(name).shape; }
  // The numbers of a tensor; weights of few bits, int8 with a step per output, are multiplied out.
  std::vector<float> floats(const std::string& name) const;

 private:
  struct Tensor {
    std::string dtype;
    std::vector<int64_t> shape;
    size_t begin, size;  // in numbers_
  };
  const Tensor& tensor(const std::string& name) const;
  std::vector<float> plain(const Tensor& tensor) const;

  std::map<std::string, Tensor> tensors_;
  std::string numbers_;
};
