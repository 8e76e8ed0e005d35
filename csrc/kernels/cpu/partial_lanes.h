// Sixteen or fewer channels of a layer whose neurons do not fill whole vectors and mask bytes: they are computed in a
// block of their own, which is copied in and out, so that the kernels know only whole vectors.
#pragma once

#include <algorithm>
#include <cstring>

#include "lanes.h"

namespace tandem::cpu {

class PartialLanes {
 public:
  // Channels [channel, channel + lanes) of `layer`. `gates`, one byte per neuron, takes the place of the layer's mask
  // where channels do not fill its bytes.
  PartialLanes(const NeuronArgs<float>& layer, int64_t channel, int lanes, uint8_t* gates)
      : layer_(layer), lanes_(lanes), gates_(gates), block_(layer) {
    block_.neurons = block_.channels = block_.v_init_size = kLanes;
    block_.scale = per_channel(layer.scale, channel, scale_);
    block_.shift = per_channel(layer.shift, channel, shift_);
    block_.residual_scale = per_channel(layer.residual_scale, channel, residual_scale_);
    if (layer.v_init != nullptr) block_.v_init = v_init_;
    if (layer.residual_planes != nullptr) block_.residual_planes = residual_planes_;
    if (layer.residual_currents != nullptr) block_.residual_currents = residual_currents_;
    block_.planes = planes_;
    if (layer.counts != nullptr) block_.counts = counts_;
    if (layer.mask != nullptr) block_.mask = mask_;
    if (layer.v != nullptr) block_.v = v_;
  }

  // The neurons in a layer of sixteen; valid until the next load().
  const NeuronArgs<float>& block() const { return block_; }

  // Takes neurons [n, n + lanes) of the layer in.
  void load(int64_t n) {
    if (layer_.v_init != nullptr) {
      for (int i = 0; i < lanes_; ++i) v_init_[i] = layer_.v_init[(n + i) % layer_.v_init_size];
    }
    if (layer_.residual_planes != nullptr) {
      copy_rows(layer_.residual_planes + n, layer_.neurons, residual_planes_, kLanes, planes());
    }
    if (layer_.residual_currents != nullptr) {
      copy_rows(layer_.residual_currents + n, layer_.neurons, residual_currents_, kLanes, layer_.T);
    }
  }

  // Puts their outputs back.
  void store(int64_t n) const {
    copy_rows(planes_, kLanes, layer_.planes + n, layer_.neurons, planes());
    if (layer_.counts != nullptr) {
      const int64_t size = size_of(layer_.counts_dtype);
      std::memcpy(static_cast<char*>(layer_.counts) + n * size, counts_, lanes_ * size);
    }
    if (layer_.mask != nullptr) {
      if (gates_ == nullptr) {
        std::memcpy(layer_.mask + n / 8, mask_, lanes_ / 8);
      } else {
        for (int i = 0; i < lanes_; ++i) gates_[n + i] = mask_[i / 8] >> (i % 8) & 1;
      }
    }
    if (layer_.v != nullptr) std::copy_n(v_, lanes_, layer_.v + n);
  }

 private:
  static constexpr int kMaxSteps = 255, kMaxPlanes = 32;

  int planes() const { return (layer_.T + 7) / 8; }

  const float* per_channel(const float* source, int64_t channel, float* target) const {
    if (source == nullptr) return nullptr;
    std::copy_n(source + channel, lanes_, target);
    return target;
  }

  template <class E>
  void copy_rows(const E* source, int64_t source_stride, E* target, int64_t target_stride, int count) const {
    for (int i = 0; i < count; ++i) std::copy_n(source + i * source_stride, lanes_, target + i * target_stride);
  }

  const NeuronArgs<float>& layer_;
  int lanes_;
  uint8_t* gates_;
  NeuronArgs<float> block_;
  float scale_[kLanes] = {}, shift_[kLanes] = {}, residual_scale_[kLanes] = {}, v_init_[kLanes] = {}, v_[kLanes];
  float residual_currents_[kMaxSteps * kLanes] = {};
  uint8_t residual_planes_[kMaxPlanes * kLanes] = {}, planes_[kMaxPlanes * kLanes], mask_[kLanes / 8];
  alignas(8) char counts_[kLanes * sizeof(double)];
};

}  // namespace tandem::cpu
