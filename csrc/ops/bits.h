// Spike planes to and from dense tensors, as other ops use it.
#pragma once

#include "tensors.h"

namespace tandem::ops {

// planes [P, B, *features] -> spikes [T, B, *features] of 0 and 1, channels-last.
Tensor unpack_spikes(const Tensor& planes, int64_t T, ScalarType dtype);

// planes [P, B, *features] -> counts [B, *features], channels-last.
Tensor count_spikes(const Tensor& planes, ScalarType dtype);

// counts as bytes [1, B, *features] -> planes [P, B, *features] of bursts, channels-last.
Tensor burst_planes(Tensor counts, int64_t T);

}  // namespace tandem::ops
