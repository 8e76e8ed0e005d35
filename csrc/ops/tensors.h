// Tensors at the border of torch: allocation, memory layout, checks. All through LibTorch's stable ABI.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "../kernels/neuron/if_neuron.h"
#include "../kernels/parallel.h"

namespace tandem::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

#define TANDEM_CHECK(condition, ...) STD_TORCH_CHECK(condition, "tandem: ", __VA_ARGS__)

std::string shape_text(const Shape& shape);
Shape shape_of(const Tensor& tensor);
Shape prepend(int64_t first, const Shape& rest);
int64_t product(const Shape& shape, size_t first = 0);

// A tensor [lead..., C, spatial...] whose memory has the channel innermost, `lead` dimensions outermost. The one
// layout of everything the ops return; with fewer than two feature dimensions it is the contiguous one.
Tensor empty_channels_last(const Shape& shape, int lead, ScalarType dtype, const Tensor& device_of);

bool is_channels_last(const Tensor& tensor, int lead);

// The same values in that layout: the tensor itself where it has it already, else a copy.
Tensor to_channels_last(const Tensor& tensor, int lead);

// The same memory under another shape, for tensors that are dense in the layout of `shape`.
Tensor view_channels_last(const Tensor& dense, const Shape& shape, int lead);

// A vector of so many elements.
Tensor empty(int64_t size, ScalarType dtype, const Tensor& device_of);

// The tensor itself where it is contiguous, else a copy. torch's own goes through the dispatcher to find that out.
Tensor to_contiguous(const Tensor& tensor);

template <class E>
E* pointer(const Tensor& tensor) {
  return static_cast<E*>(tensor.data_ptr());
}
// Null where there are no elements.
template <class E>
E* pointer(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->numel() > 0 ? pointer<E>(*tensor) : nullptr;
}

// dtype of a floating tensor, checked: float32, bfloat16, float16 or float64.
DType kernel_dtype(ScalarType type, const char* name);
inline DType kernel_dtype(const Tensor& tensor, const char* name) { return kernel_dtype(tensor.scalar_type(), name); }
inline ScalarType compute_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls body with a zero of the type that is computed in.
template <class Body>
void in_compute_type(ScalarType dtype, const Body& body) {
  dtype == ScalarType::Double ? body(double{}) : body(float{});
}

// 1..most_steps(timing).
void check_steps(int64_t T, Timing timing);
void check_planes(const Tensor& planes, int64_t T, const char* name);
void check_count_bytes(const Tensor& counts, int64_t T, const char* name);
void check_same_device(const Tensor& tensor, const Tensor& reference, const char* name);

// torch's own thread pool behind the kernels' interface.
void torch_parallel(int64_t n, int64_t grain, RangeBody body, void* context);

// Do the CUDA kernels work on the tensor? In the library of tests/cuda_host, which runs their PTX, on any.
bool on_gpu(const Tensor& tensor);

// TANDEM_RUN(tensor, kernel, arguments) runs cpu::kernel or cuda::kernel, where the tensor is.
// TANDEM_IMPLEMENT(m.impl(...); ...) registers ops for tensors of either.
#ifdef TANDEM_WITH_CUDA
// Runs a launcher, void* stream -> cudaError_t, on the tensor's device, on the stream that torch is using there.
void launch(const Tensor& tensor, const char* kernel, const std::function<int(void*)>& launcher);

#define TANDEM_RUN(tensor, kernel, ...)                                                         \
  do {                                                                                          \
    if (on_gpu(tensor)) {                                                                       \
      launch(tensor, #kernel, [&](void* stream) { return cuda::kernel(__VA_ARGS__, stream); }); \
    } else {                                                                                    \
      cpu::kernel(__VA_ARGS__, torch_parallel);                                                 \
    }                                                                                           \
  } while (false)
#define TANDEM_IMPLEMENT(...)                                \
  STABLE_TORCH_LIBRARY_IMPL(tandem, CPU, m) { __VA_ARGS__; } \
  STABLE_TORCH_LIBRARY_IMPL(tandem, CUDA, m) { __VA_ARGS__; }
#else
#define TANDEM_RUN(tensor, kernel, ...) cpu::kernel(__VA_ARGS__, torch_parallel)
#define TANDEM_IMPLEMENT(...) \
  STABLE_TORCH_LIBRARY_IMPL(tandem, CPU, m) { __VA_ARGS__; }
#endif

}  // namespace tandem::ops
