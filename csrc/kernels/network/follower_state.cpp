#include "follower_state.h"

#include <algorithm>
#include <cstring>

#include "../planes/bits.h"
#include "../planes/counts.h"

namespace tandem::network {

void FollowerState::receive() {
  if (frame_.begins) begin();
  for (size_t k = 0; k < frame_.inputs.size(); ++k) {
    if (program_.inputs[k] >= 0) values_[program_.inputs[k]] = frame_.inputs[k];
    if (frame_.inputs[k] == nullptr) continue;
    program_.is_spiking(k) ? receive_spikes(k) : receive_image(k);
  }
}

void FollowerState::begin() {
  std::memset(frame_.state, 0, plan_.state);
  for (int64_t i = 0; i < program_.size(); ++i) {
    if (!program_.has_neurons(i) && !program_.derives(i)) continue;
    std::memset(all<uint8_t>(kept(i).marks), kDue, plan_.batch * rows(i));
  }
}

void FollowerState::receive_image(int64_t k) {
  const int64_t n = plan_.samples[k].features(), now = frame_.layouts.empty() ? 0 : frame_.layouts[k];
  const auto* image = static_cast<const float*>(frame_.inputs[k]);
  auto* before = all<float>(plan_.images[k]);
  int64_t& layout = *all<int64_t>(plan_.layouts[k]);
  const bool anew = frame_.begins || layout != now;
  if (!anew && std::memcmp(before, image, plan_.batch * n * sizeof(float)) == 0) return;
  for (int64_t i = 0; i < program_.size(); ++i) {
    if (program_.values[i] == Value::kReal && program_.roots[i] == k) execute(i);
    const int64_t from = instruction(i).input;
    if (!program_.has_neurons(i) || program_.value(from) != Value::kReal || program_.root(from) != k) continue;
    const float* product = direct_product(i);
    for (int64_t b = 0; b < plan_.batch; ++b) {
      if (update_product(i, b, product + b * features(i))) rests_[b] = 0;
      const bool changed = anew || std::memcmp(before + b * n, image + b * n, n * sizeof(float)) != 0;
      if (changed) frame_.synapses[b] += synapses(i);
    }
  }
  layout = now;
  std::copy_n(image, plan_.batch * n, before);
}

bool FollowerState::update_product(int64_t i, int64_t b, const float* y) const {
  const int64_t channels = plan_.steps[i].out.channels, width = plan_.steps[i].out.width;
  auto* product = all<float>(kept(i).product) + b * features(i);
  uint8_t* marks = marks_of(i, b);
  bool differs = false;
  const auto same = [&](int64_t row, int64_t n) {
    return std::memcmp(product + row * channels, y + row * channels, n * channels * sizeof(float)) == 0;
  };
  for (int64_t line = 0; line < rows(i); line += width) {
    if (same(line, width)) continue;
    for (int64_t row = line; row < line + width; ++row) {
      if (same(row, 1)) continue;
      marks[row] |= kDue;
      std::copy_n(y + row * channels, channels, product + row * channels);
      differs = true;
    }
  }
  return differs;
}

void FollowerState::receive_spikes(int64_t k) {
  planes_ = frame_.advances ? 1 : plan_.planes;
  for (int64_t i = 0; i < program_.size(); ++i) {
    if (program_.values[i] == Value::kStepTrain && program_.roots[i] == k) execute(i);
    if (program_.kind(i) != Kind::popcount || program_.root(instruction(i).input) != k) continue;
    const int64_t n = plan_.batch * features(i);
    auto *planes = all<uint8_t>(kept(i).planes), *target = all<uint8_t>(kept(i).target);
    const uint8_t *now = train(instruction(i).input), *counts = counts_of(i, 0);
    int64_t& oldest = *all<int64_t>(kept(i).oldest);
    if (program_.is_pixels(k)) {
      std::copy_n(now, n, target);
    } else if (frame_.advances) {
      cpu::advance(now, n, planes + oldest / 8 * n, target, oldest % 8);
      oldest = (oldest + 1) % plan_.T;
    } else {
      oldest = 0;
      std::copy_n(now, plan_.planes * n, planes);
      cpu::count_bytes(now, static_cast<int32_t>(plan_.planes), n, target, frame_.parallel);
    }
    for (int64_t b = 0; b < plan_.batch; ++b) {
      if (std::memcmp(target + b * features(i), counts + b * features(i), features(i)) != 0) rests_[b] = 0;
    }
  }
}

}  // namespace tandem::network
