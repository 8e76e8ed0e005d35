// The part of a network that does not depend on its input: prepared weights, and properties of the program.
#include <algorithm>

#include "../cpu/halves.h"
#include "executor.h"

namespace tandem::network {

namespace {

constexpr int64_t kAlignment = 64;  // of each instruction's prepared weights, in bytes

template <class Half>
void widen_halves(const void* from, int64_t n, float* to) {
  for (int64_t k = 0; k < n; ++k) to[k] = cpu::to_float(static_cast<const Half*>(from)[k]);
}

}  // namespace

Network::Network(const int64_t* words, int64_t count, const uint8_t* numbers, int64_t bytes)
    : program_(read(words, count, numbers, bytes)), numbers_(numbers) {
  if (program_.not_run.has_value()) throw Refusal(*program_.not_run);
  int64_t size = 0;
  for (int64_t i = 0; i < program_.size(); ++i) {
    size += -size & (kAlignment - 1);
    parts_.push_back(size);
    if (is_packed(i)) {
      size += cpu::prepared_size(program_.instructions[i].geometry(), weights_of(i));
    } else if (is_widened(i)) {
      size += program_.instructions[i].weights() * static_cast<int64_t>(sizeof(float));
    }
  }
  parts_.push_back(size);
}

const float* Network::floats(int64_t offset) const {
  return offset == kAbsent ? nullptr : reinterpret_cast<const float*>(numbers_ + offset);
}

Weights Network::weights_of(int64_t number) const {
  const Instruction& i = program_.instructions[number];
  return {numbers_ + i.weight, i.few_bits != 0 ? DType::kInt8 : program_.dtype(), false};
}

// Converts weights to float32: few-bit weights to their integers, those of a readout times their step.
void Network::widen(int64_t number, float* to) const {
  const Instruction& i = program_.instructions[number];
  const int64_t n = i.weights();
  const Weights weights = weights_of(number);
  if (weights.dtype == DType::kBFloat16) return widen_halves<cpu::BFloat16>(weights.data, n, to);
  if (weights.dtype == DType::kFloat16) return widen_halves<cpu::Float16>(weights.data, n, to);
  std::copy_n(static_cast<const int8_t*>(weights.data), n, to);
  if (program_.kind(number) != Kind::readout) return;
  const float* step = floats(i.step);
  for (int64_t k = 0; k < n; ++k) to[k] *= step[k / (n / i.outputs)];
}

void Network::prepare(uint8_t* prepared, ParallelFor parallel) const {
  for (int64_t i = 0; i < program_.size(); ++i) {
    uint8_t* part = prepared + parts_[i];
    if (is_packed(i)) {
      cpu::prepare(program_.instructions[i].geometry(), weights_of(i), part, parallel);
    } else if (is_widened(i)) {
      widen(i, reinterpret_cast<float*>(part));
    }
  }
}

Shape Network::sample(size_t k) const {
  const Header& h = program_.header;
  if (k == 0) return {h.dims, h.channels, h.height, h.width};
  const Instruction& i = program_.instructions[program_.inputs[k]];
  return {i.outputs == 0 ? 0 : i.axes + 1, i.outputs, i.kernel_h, i.kernel_w};
}

bool Network::reads_counts() const {
  for (int64_t i = 0; i < program_.size(); ++i) {
    const Instruction& instruction = program_.instructions[i];
    const auto is_input = [&](int64_t v) { return v == kNetworkInput || (v >= 0 && program_.kind(v) == Kind::input); };
    if (instruction.residual != kAbsent && is_input(instruction.residual)) return false;
    if (program_.kind(i) == Kind::input || program_.kind(i) == Kind::popcount) continue;
    if (is_input(instruction.input) && program_.reads_train(i)) return false;
  }
  return true;
}

Mode Network::stepwise() const {
  for (int64_t i = 0; i < program_.size(); ++i) {
    if (program_.fires(i) && program_.has_window_timing(i)) return Mode::kFollowing;
  }
  return Mode::kSteps;
}

}  // namespace tandem::network
