// Counts of a stream that change: by the spikes of a step, or towards their targets.
#pragma once

#include <cstdint>

namespace tandem::cpu {

// The neurons of a sample that moved in a step: n if the count of neuron n rose by one, ~n if it fell. Those of images
// are in ascending order.
class Moves {
 public:
  Moves() = default;
  explicit Moves(int32_t* memory) : moves_(memory) {}  // for all neurons

  void clear() { size_ = 0; }
  void add(int64_t neuron, bool falls) { moves_[size_++] = static_cast<int32_t>(neuron) ^ -int32_t{falls}; }
  int64_t size() const { return size_; }
  const int32_t* begin() const { return moves_; }
  const int32_t* end() const { return moves_ + size_; }

 private:
  int32_t* moves_ = nullptr;
  int64_t size_ = 0;
};
inline int32_t sign_of(int32_t move) { return move >> 31; }  // 0 or -1
inline int32_t neuron_of(int32_t move) { return move ^ sign_of(move); }

// Of the last T steps' planes, exchanges the oldest spikes of n neurons, a bit of `plane`, for those of this step, in
// bit 0 of `now`; `counts` change with them.
void advance(const uint8_t* now, int64_t n, uint8_t* plane, uint8_t* counts, int64_t bit);

// Moves neurons [n, end) by at most one. Returns whether a count still differs from its target.
bool follow(const uint8_t* target, int64_t n, int64_t end, uint8_t* counts, Moves& moves);

// Moves neurons by any number, which the moves do not say.
void jump(const uint8_t* target, int64_t size, uint8_t* counts, Moves& moves);

}  // namespace tandem::cpu
