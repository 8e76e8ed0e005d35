// The few torch operators that our ops call.
#pragma once

#include <torch/csrc/stable/library.h>

#include <array>

#include "tensors.h"

namespace tandem::ops::aten {

// Calls an operator with one result through the dispatcher.
template <class... Args>
Tensor call(const char* name, const Args&... args) {
  std::array<StableIValue, sizeof...(Args)> stack{torch::stable::detail::from(args)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor to_type(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// input [..., K], weight [N, K] -> [..., N].
inline Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias = std::nullopt) {
  return call("aten::linear", input, weight, bias);
}

// input [B, C, spatial...], weight [N, C / groups, kernel...] -> [B, N, spatial...].
inline Tensor convolution(const Tensor& input, const Tensor& weight, const Shape& stride, const Shape& padding,
                          const Shape& dilation, int64_t groups) {
  return call("aten::convolution", input, weight, OptionalTensor(), stride, padding, dilation, false,
              Shape(stride.size(), 0), groups);
}

}  // namespace tandem::ops::aten
