// The few torch operators that our ops call.
#pragma once

#include "tensors.h"

namespace tandem::ops::aten {

Tensor to_type(const Tensor& tensor, ScalarType dtype);

// input [..., K], weight [N, K] -> [..., N].
Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias = std::nullopt);

// input [B, C, spatial...], weight [N, C / groups, kernel...] -> [B, N, spatial...].
Tensor convolution(const Tensor& input, const Tensor& weight, const Shape& stride, const Shape& padding,
                   const Shape& dilation, int64_t groups);

// Pooling of images [B, C, H, W].
Tensor avg_pool(const Tensor& images, const Shape& kernel, const Shape& stride, const Shape& padding);
Tensor adaptive_avg_pool(const Tensor& images, const Shape& output_size);
Tensor max_pool(const Tensor& images, const Shape& kernel, const Shape& stride, const Shape& padding,
                const Shape& dilation, bool ceil_mode);

}  // namespace tandem::ops::aten
