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

Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  return call("aten::linear", "", input, weight, bias);
}

Tensor convolution(const Tensor& input, const Tensor& weight, const Shape& stride, const Shape& padding,
                   const Shape& dilation, int64_t groups) {
  return call("aten::convolution", "", input, weight, OptionalTensor(), stride, padding, dilation, false,
              Shape(stride.size(), 0), groups);
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

Tensor pad(const Tensor& tensor, const Shape& sides) {
  return call("aten::pad", "", tensor, sides, std::string("constant"), std::optional<double>());
}

// The stable ABI boxes no Scalar, which add() wants for its alpha; a - (-b) is the same sum, rounded the same way.
Tensor add(const Tensor& a, const Tensor& b) { return sub(a, call("aten::neg", "", b)); }
Tensor sub(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b); }
Tensor mul(const Tensor& a, const Tensor& b) { return call("aten::mul", "Tensor", a, b); }
Tensor div(const Tensor& a, const Tensor& b) { return call("aten::div", "Tensor", a, b); }
Tensor sqrt(const Tensor& a) { return call("aten::sqrt", "", a); }

Tensor relu(const Tensor& a) { return call("aten::relu", "", a); }

Tensor gate_grad(const Tensor& grad, const Tensor& mask, double threshold) {
  return call("tandem::gate_grad", "", grad, mask, threshold);
}

Tensor sum(const Tensor& a, const Shape& dims) {
  return call("aten::sum", "dim_IntList", a, std::optional<Shape>(dims), false, std::optional<ScalarType>());
}

}  // namespace tandem::ops::aten
