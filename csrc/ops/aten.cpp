#include "aten.h"

#include <torch/csrc/stable/library.h>

#include <array>

namespace tandem::ops::aten {

namespace {

// Calls an operator with one result through the dispatcher.
template <class... Args>
Tensor call(const char* name, const char* overload, const Args&... args) {
  std::array<StableIValue, sizeof...(Args)> stack{torch::stable::detail::from(args)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace

Tensor to_type(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// Under autocast products have another type.
Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  return to_type(call("aten::linear", "", input, weight, bias), input.scalar_type());
}

Tensor convolution(const Tensor& input, const Tensor& weight, const Shape& stride, const Shape& padding,
                   const Shape& dilation, int64_t groups) {
  const Tensor result = call("aten::convolution", "", input, weight, OptionalTensor(), stride, padding, dilation, false,
                             Shape(stride.size(), 0), groups);
  return to_type(result, input.scalar_type());
}

Tensor avg_pool(const Tensor& images, const Shape& kernel, const Shape& stride, const Shape& padding) {
  return call("aten::avg_pool2d", "", images, kernel, stride, padding, false, true, std::optional<int64_t>());
}
Tensor adaptive_avg_pool(const Tensor& images, const Shape& output_size) {
  return call("aten::adaptive_avg_pool2d", "", images, output_size);
}
Tensor max_pool(const Tensor& images, const Shape& kernel, const Shape& stride, const Shape& padding,
                const Shape& dilation, bool ceil_mode) {
  return call("aten::max_pool2d", "", images, kernel, stride, padding, dilation, ceil_mode);
}

}  // namespace tandem::ops::aten
