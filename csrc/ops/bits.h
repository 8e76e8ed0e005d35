// Conversions of spike planes that other ops use.
#pragma once

#include "tensors.h"

namespace tandem::ops {

// planes [P, B, *features] -> spikes [T, B, *features] of 0 and 1, channels-last.
Tensor unpack_spikes(const Tensor& planes, int64_t T, ScalarType dtype);

// planes [P, B, *features] -> counts uint8 [1, B, *features], channels-last.
Tensor count_bytes(Tensor planes);

// planes [P, B, *features] -> counts [B, *features], channels-last.
Tensor count_spikes(const Tensor& planes, ScalarType dtype);

// counts uint8 [1, B, *features] -> planes [P, B, *features] of bursts, channels-last.
Tensor burst_planes(Tensor counts, int64_t T);

}  // namespace tandem::ops
