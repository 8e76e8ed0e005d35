// Memory that a thread keeps from call to call: aligned, uninitialised, never shrinking.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace tandem::cpu {

template <class E>
class Scratch {
 public:
  // Returns at least `size` elements. Their values are lost when the memory grows.
  E* reserve(size_t size) {
    if (size > size_) {
      data_.reset();
      size_ = 0;
      data_.reset(static_cast<E*>(::operator new[](size * sizeof(E), kAlignment)));
      size_ = size;
    }
    return data_.get();
  }
  E* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(E* p) const { ::operator delete[](p, kAlignment); }
  };
  std::unique_ptr<E[], Free> data_;
  size_t size_ = 0;
};

}  // namespace tandem::cpu
