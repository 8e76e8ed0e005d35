// The few torch operators that our ops call.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>

#include <array>

#include "tensors.h"

namespace tandem::ops::aten {

// Calls an operator with one result through the dispatcher.
template <class... Args>
Tensor call_overload(const char* name, const char* overload, const Args&... args) {
  std::array<StableIValue, sizeof...(Args)> stack{torch::stable::detail::from(args)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}
template <class... Args>
Tensor call(const char* name, const Args&... args) {
  return call_overload(name, "", args...);
}

inline Tensor to_type(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// input [B, K], weight [N, K] -> [B, N], without the dispatcher, whose ways take longer than a small product: on the
// CPU, contiguous.
inline Tensor small_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias = std::nullopt) {
  const std::array<int64_t, 2> shape{weight.size(1), weight.size(0)}, strides{1, weight.size(1)};
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(weight.get(), 2, shape.data(), strides.data(), 0, &handle));
  const Tensor columns(handle);
  Tensor out = empty_channels_last({input.size(0), weight.size(0)}, 2, input.scalar_type(), input);
  TORCH_ERROR_CODE_CHECK(bias.has_value()
                             ? aoti_torch_cpu_addmm_out(out.get(), bias->get(), input.get(), columns.get(), 1, 1)
                             : aoti_torch_cpu_mm_out(out.get(), input.get(), columns.get()));
  return out;
}

// input [B, C, spatial...], weight [N, C / groups, kernel...] -> [B, N, spatial...].
inline Tensor convolution(const Tensor& input, const Tensor& weight, const Shape& stride, const Shape& padding,
                          const Shape& dilation, int64_t groups) {
  return call("aten::convolution", input, weight, OptionalTensor(), stride, padding, dilation, false,
              Shape(stride.size(), 0), groups);
}

}  // namespace tandem::ops::aten
