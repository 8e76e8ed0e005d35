#include "frozen_file.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace {

void require(bool truth, const std::string& what) {
  if (!truth) throw std::runtime_error(what);
}

int64_t whole(const Json& value, int64_t largest) {
  require(value.kind == Json::kNumber && value.number >= 0 && value.number <= static_cast<double>(largest) &&
              value.number == static_cast<double>(static_cast<int64_t>(value.number)),
          "a size in the header is out of range");
  return static_cast<int64_t>(value.number);
}

}  // namespace

// Every size is compared with the file's own before it is used. The checksum is for tandem_snn.load_frozen to compare.
FrozenFile::FrozenFile(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  require(stream.good(), "cannot open " + path);
  const std::string content{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  uint64_t length = 0;
  require(content.size() >= 8, path + " is too short");
  std::memcpy(&length, content.data(), 8);
  require(length <= content.size() - 8, path + " is damaged: its header is longer than the file");
  numbers_ = content.substr(8 + length);

  Json header = Json::parse(content.substr(8, length));
  const Json facts = header["__metadata__"];
  require(facts["format"].text == "tandem_snn frozen 1", path + " is not a frozen network that this program reads");
  header.members.erase("__metadata__");
  for (const auto& [name, entry] : header.members) {
    Tensor t{entry["dtype"].text, {}, 0, 0};
    double numel = 1;
    for (const Json& size : entry["shape"].items) {
      t.shape.push_back(whole(size, INT32_MAX));
      numel *= static_cast<double>(t.shape.back());
    }
    const auto& offsets = entry["data_offsets"].items;
    require(offsets.size() == 2, name + ": no offsets");
    t.begin = whole(offsets[0], static_cast<int64_t>(numbers_.size()));
    const size_t end = whole(offsets[1], static_cast<int64_t>(numbers_.size()));
    require(t.begin <= end, name + ": its end is before its beginning");
    t.size = end - t.begin;
    const double width = t.dtype == "F32" ? 4 : t.dtype == "I8" ? 1 : t.dtype == "I64" ? 8 : 0;
    require(width > 0, name + ": this program reads float32 and int8, not " + t.dtype);
    require(numel * width == static_cast<double>(t.size), name + ": its size is not that of its shape");
    tensors_.emplace(name, t);
  }

  const Json steps = Json::parse(facts["T"].text);
  require(steps.kind == Json::kNumber, "the network has no Encoder, and takes spikes");
  T = static_cast<int>(whole(steps, 255));
  for (const Json& size : Json::parse(facts["shape"].text).items) shape.push_back(whole(size, 65535));
  require(T > 0 && !shape.empty(), "the network was saved before it ran, and does not know its input's shape");
  layers = Json::parse(facts["layers"].text);
  uses = Json::parse(facts["uses"].text);
}

const FrozenFile::Tensor& FrozenFile::tensor(const std::string& name) const {
  const auto found = tensors_.find(name);
  require(found != tensors_.end(), "the file has no " + name);
  return found->second;
}

std::vector<float> FrozenFile::plain(const Tensor& tensor) const {
  require(tensor.dtype != "I64", "expected float32 or int8");
  if (tensor.dtype == "F32") {
    std::vector<float> values(tensor.size / 4);
    std::memcpy(values.data(), numbers_.data() + tensor.begin, tensor.size);
    return values;
  }
  const auto* integers = reinterpret_cast<const int8_t*>(numbers_.data() + tensor.begin);
  return {integers, integers + tensor.size};
}

std::vector<float> FrozenFile::floats(const std::string& name) const {
  std::vector<float> values = plain(tensor(name));
  if (has(name + ".step")) {
    const std::vector<float> step = plain(tensor(name + ".step"));
    require(!step.empty() && values.size() % step.size() == 0, name + ": its steps do not fit");
    const size_t row = values.size() / step.size();
    for (size_t i = 0; i < values.size(); ++i) values[i] *= step[i / row];
  }
  return values;
}
