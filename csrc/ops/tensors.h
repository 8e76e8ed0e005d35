// Tensors at the interface to torch: allocation, memory layout, checks. Uses only LibTorch's stable ABI.
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

// A string as an argument of an op: torch's conversion to std::string (2.10 to 2.13) leaks one in each call.
struct Text : std::string {
  using std::string::string;
};

#define TANDEM_CHECK(condition, ...) STD_TORCH_CHECK(condition, "tandem: ", __VA_ARGS__)

std::string shape_text(const Shape& shape);
Shape shape_of(const Tensor& tensor);
Shape prepend(int64_t first, const Shape& rest);
int64_t product(const Shape& shape);

// A tensor [lead..., C, spatial...] whose memory has the channel innermost and the `lead` dimensions outermost. All
// outputs of ops have this layout. With fewer than two feature dimensions it is contiguous.
constexpr int kContiguous = 64;  // as `lead`, of any tensor
Tensor empty_channels_last(const Shape& shape, int lead, ScalarType dtype, const Tensor& device_of);

bool is_channels_last(const Tensor& tensor, int lead);

// The tensor in the channels-last layout: itself if it has it already, else a copy.
Tensor to_channels_last(const Tensor& tensor, int lead);

// A view of the same memory with another shape. `dense` must be dense in the channels-last layout.
Tensor view_channels_last(const Tensor& dense, const Shape& shape, int lead);

// A tensor of that layout in memory of the caller's, on the CPU.
Tensor from_memory(const float* memory, const Shape& shape, int lead = kContiguous);

// A vector of `size` elements.
Tensor empty(int64_t size, ScalarType dtype, const Tensor& device_of);

// The tensor itself if it is contiguous, else a copy. torch's own function asks the dispatcher first.
Tensor to_contiguous(const Tensor& tensor);

template <class E>
E* pointer(const Tensor& tensor) {
  return static_cast<E*>(tensor.data_ptr());
}
// Null if there are no elements.
template <class E>
E* pointer(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->numel() > 0 ? pointer<E>(*tensor) : nullptr;
}

// The dtype for the kernels. Throws unless it is float32, bfloat16 or float16.
DType kernel_dtype(ScalarType type, const char* name);
inline DType kernel_dtype(const Tensor& tensor, const char* name) { return kernel_dtype(tensor.scalar_type(), name); }

// The timing of this name, "step" or "window".
Timing timing_of(const std::string& name);
// T must be 1..most_steps(timing).
void check_steps(int64_t T, Timing timing);
// What trains of this timing store.
void check_trains(const Tensor& bytes, int64_t T, Timing timing, const char* name);
void check_same_device(const Tensor& tensor, const Tensor& reference, const char* name);
void check_mask(const Tensor& mask, const Tensor& grad);

// The tensor, checked to hold one float32 for each of `channels` channels, contiguous.
OptionalTensor per_channel(const OptionalTensor& tensor, int64_t channels, const Tensor& device_of, const char* name);

// The float32 of each channel, 1 if absent, times or over a number (op "aten::mul" or "aten::div"), each rounded once.
OptionalTensor combined(const OptionalTensor& values, const std::string& op, double number, int64_t channels,
                        const Tensor& device_of);

// torch's thread pool as the kernels' parallel-for.
void torch_parallel(int64_t n, int64_t grain, RangeBody body, void* context);

// Whether the CUDA kernels run on the tensor. In the library of tests/cuda_host, which executes their PTX, always.
bool on_gpu(const Tensor& tensor);

// Whether an argument of an op, a tensor, is float64, for which there are no kernels.
bool is_double(StableIValue argument);
// Runs an op by torch's operators (tandem_ext/composite.py).
void run_composite(const std::string& op, StableIValue* stack);

// TANDEM_OP(name, function, n): an op of one of the libraries below, which leaves float64 in its argument n to torch.
#define TANDEM_OP(name, function, n)                                           \
  m.impl(name, [](StableIValue* stack, uint64_t arguments, uint64_t results) { \
    if (is_double(stack[n])) return run_composite(name, stack);                \
    TORCH_BOX(function)(stack, arguments, results);                            \
  })

// TANDEM_RUN(tensor, kernel, arguments) runs cpu::kernel or cuda::kernel, by the tensor's device.
// TANDEM_IMPLEMENT(m.impl(...); ...) registers ops for both devices.
#ifdef TANDEM_WITH_CUDA
// Runs a launcher, void* stream -> cudaError_t, on the tensor's device and torch's current stream.
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

template <>
struct torch::stable::detail::ToImpl<tandem::ops::Text> {
  static tandem::ops::Text call(StableIValue value, uint64_t, bool) {
    const auto handle = to<StringHandle>(value);
    size_t length = 0;
    const char* text = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &text));
    tandem::ops::Text copy(text, length);
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return copy;
  }
};
