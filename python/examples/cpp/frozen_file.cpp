#include "frozen_file.h"

#include <cstring>
#include <stdexcept>

#include "sha256.h"

namespace {

constexpr size_t kDigits = 64;  // hexadecimal digits of the checksum

void require(bool truth, const char* what) {
  if (!truth) throw std::runtime_error(what);
}

// Reads the header, which tandem_snn writes in exactly one form. Every size is checked against the file's size before
// it is used.
class Header {
 public:
  explicit Header(const std::string& text) : text_(text) {}

  void expect(const char* words) {
    require(text_.compare(at_, std::strlen(words), words) == 0, "the file's header is not one of tandem_snn frozen 2");
    at_ += std::strlen(words);
  }
  size_t skip(size_t n) {
    require(text_.size() - at_ >= n, "the file's header is too short");
    at_ += n;
    return at_ - n;
  }
  size_t number(size_t most) {
    size_t value = 0;
    require(at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9', "the file's header is not as expected");
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      value = 10 * value + static_cast<size_t>(text_[at_] - '0');
      require(value <= most, "a size in the header is larger than the file");
    }
    return value;
  }
  // The bytes of a 1-d tensor with elements of `width` bytes.
  std::string tensor(const char* name, const char* dtype, size_t width, const std::string& body) {
    expect(("\"" + std::string(name) + "\":{\"data_offsets\":[").c_str());
    const size_t begin = number(body.size());
    expect(",");
    const size_t end = number(body.size());
    expect(("],\"dtype\":\"" + std::string(dtype) + "\",\"shape\":[").c_str());
    const size_t size = number(body.size());
    expect("]}");
    require(begin <= end && end - begin == size * width, "a tensor's place is not of its size");
    return body.substr(begin, end - begin);
  }

 private:
  const std::string& text_;
  size_t at_ = 0;
};

}  // namespace

FrozenFile FrozenFile::read(const std::string& content) {
  uint64_t length = 0;
  require(content.size() >= sizeof(length), "the file is too short");
  std::memcpy(&length, content.data(), sizeof(length));
  require(length <= content.size() - sizeof(length), "the file is damaged: its header is longer than it");
  const std::string text = content.substr(sizeof(length), length), body = content.substr(sizeof(length) + length);

  Header header(text);
  header.expect("{\"__metadata__\":{\"checksum\":\"");
  const size_t checksum = header.skip(kDigits);
  header.expect("\",\"format\":\"tandem_snn frozen 2\"},");
  std::string unsigned_content = content;
  unsigned_content.replace(sizeof(length) + checksum, kDigits, kDigits, '0');
  require(Sha256::of(unsigned_content) == text.substr(checksum, kDigits), "the file is damaged: its checksum differs");

  FrozenFile file;
  const std::string names = header.tensor("names", "U8", 1, body);
  header.expect(",");
  const std::string numbers = header.tensor("numbers", "U8", 1, body);
  header.expect(",");
  const std::string program = header.tensor("program", "I64", sizeof(int64_t), body);
  for (size_t begin = 0, end = 0; end != std::string::npos; begin = end + 1) {
    end = names.find('\n', begin);
    file.names.push_back(names.substr(begin, end - begin));
    for (const char c : file.names.back()) require(static_cast<unsigned char>(c) >= ' ', "a layer's name is no text");
  }
  file.program.resize(program.size() / sizeof(int64_t));
  if (!program.empty()) std::memcpy(file.program.data(), program.data(), program.size());
  file.bytes = static_cast<int64_t>(numbers.size());
  file.storage.resize(numbers.size() / sizeof(double) + 1);
  std::memcpy(file.storage.data(), numbers.data(), numbers.size());
  return file;
}
