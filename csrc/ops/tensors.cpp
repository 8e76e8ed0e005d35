#include "tensors.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <sstream>

#include "aten.h"
#ifdef TANDEM_WITH_CUDA
#include "../kernels/cuda/error.h"

// Only CUDA builds of torch have this symbol; it is null elsewhere. It is resolved when the module is loaded, so the
// module must link to libtorch (build_tools).
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

// Only torch from 2.13 on has it; it is null elsewhere.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace tandem::ops {

namespace {

Shape channels_last_strides(const Shape& shape, int lead) {
  const int dims = static_cast<int>(shape.size());
  lead = std::min(lead, dims);
  Shape strides(dims, 1);
  int64_t stride = 1;
  const auto put = [&](int d) {
    strides[d] = stride;
    stride *= shape[d] > 1 ? shape[d] : 1;
  };
  const bool spatial = dims - lead >= 2;
  if (spatial) put(lead);
  for (int d = dims - 1; d > (spatial ? lead : lead - 1); --d) put(d);
  for (int d = lead - 1; d >= 0; --d) put(d);
  return strides;
}

// Why there is no memory. On a GPU torch's own words and type of error are lost on the way through its stable ABI;
// tools that try a smaller batch look for these.
std::string allocation_error([[maybe_unused]] const Tensor& device_of) {
#ifdef TANDEM_WITH_CUDA
  if (device_of.is_cuda()) {
    size_t free = 0;
    size_t total = 0;
    const int status = cuda::memory(&free, &total);  // also an earlier kernel's error
    if (status != 0) return std::string(cuda::error_text(status)) + ": ";
    const torch::stable::accelerator::DeviceGuard guard(device_of.get_device_index());
    cuda::memory(&free, &total);
    return "CUDA out of memory. " + std::to_string(free >> 20) + " of " + std::to_string(total >> 20) +
           " MiB are free; ";
  }
#endif
  return "";
}

Tensor allocate(int64_t dims, const int64_t* shape, const int64_t* strides, ScalarType dtype, const Tensor& device_of) {
  AtenTensorHandle handle = nullptr;
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(device_of.get(), &device_type));
  const AOTITorchError status = aoti_torch_empty_strided(dims, shape, strides, static_cast<int32_t>(dtype), device_type,
                                                         device_of.get_device_index(), &handle);
  TANDEM_CHECK(status == 0, allocation_error(device_of), "could not allocate ", product({shape, shape + dims}),
               " elements of shape ", shape_text({shape, shape + dims}));
  return Tensor(handle);
}

}  // namespace

std::string shape_text(const Shape& shape) {
  std::ostringstream text;
  text << '[';
  for (size_t d = 0; d < shape.size(); ++d) text << (d ? ", " : "") << shape[d];
  text << ']';
  return text.str();
}

Shape shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Shape(sizes.begin(), sizes.end());
}

Shape prepend(int64_t first, const Shape& rest) {
  Shape shape(rest.size() + 1, first);
  std::copy(rest.begin(), rest.end(), shape.begin() + 1);
  return shape;
}

int64_t product(const Shape& shape) {
  int64_t out = 1;
  bool overflow = false, empty = false;
  for (const int64_t size : shape) {
    empty |= size == 0;
    overflow |= __builtin_mul_overflow(out, size, &out);
  }
  TANDEM_CHECK(empty || !overflow, "a tensor of shape ", shape_text(shape), " would not fit into memory");
  return empty ? 0 : out;
}

Tensor empty_channels_last(const Shape& shape, int lead, ScalarType dtype, const Tensor& device_of) {
  const Shape strides = channels_last_strides(shape, lead);
  return allocate(static_cast<int64_t>(shape.size()), shape.data(), strides.data(), dtype, device_of);
}

Tensor from_memory(const float* memory, const Shape& shape, int lead) {
  return torch::stable::from_blob(const_cast<float*>(memory), shape, channels_last_strides(shape, lead),
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), ScalarType::Float);
}

Tensor empty(int64_t size, ScalarType dtype, const Tensor& device_of) {
  const int64_t stride = 1;
  return allocate(1, &size, &stride, dtype, device_of);
}

Tensor to_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

bool is_channels_last(const Tensor& tensor, int lead) {
  const Shape shape = shape_of(tensor);
  const Shape wanted = channels_last_strides(shape, lead);
  const auto strides = tensor.strides();
  bool same = true;
  for (size_t d = 0; d < shape.size(); ++d) same &= shape[d] <= 1 || strides[d] == wanted[d];
  return same || product(shape) == 0;
}

Tensor to_channels_last(const Tensor& tensor, int lead) {
  if (is_channels_last(tensor, lead)) return tensor;
  Tensor out = empty_channels_last(shape_of(tensor), lead, tensor.scalar_type(), tensor);
  torch::stable::copy_(out, tensor);
  return out;
}

Tensor view_channels_last(const Tensor& dense, const Shape& shape, int lead) {
  const Shape strides = channels_last_strides(shape, lead);
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(dense.get(), static_cast<int64_t>(shape.size()), shape.data(),
                                                        strides.data(), 0, &handle));
  return Tensor(handle);
}

DType kernel_dtype(ScalarType type, const char* name) {
  if (type == ScalarType::Float) return DType::kFloat32;
  if (type == ScalarType::BFloat16) return DType::kBFloat16;
  TANDEM_CHECK(type == ScalarType::Half, name, " must be float32, bfloat16 or float16");
  return DType::kFloat16;
}

Timing timing_of(const std::string& name) {
  TANDEM_CHECK(name == "step" || name == "window", "timing must be \"step\" or \"window\", got \"", name, "\"");
  return name == "window" ? Timing::kWindow : Timing::kStep;
}

void check_steps(int64_t T, Timing timing) {
  TANDEM_CHECK(T >= 1 && T <= most_steps(timing), "T, the number of steps, must be 1..", most_steps(timing),
               timing == Timing::kWindow ? " with timing \"window\", got " : ", got ", T);
}

void check_trains(const Tensor& bytes, int64_t T, Timing timing, const char* name) {
  TANDEM_CHECK(bytes.scalar_type() == ScalarType::Byte, name, " must be uint8");
  check_steps(T, timing);
  TANDEM_CHECK(bytes.dim() >= 2, name, " must be [P, B, *features], got ", shape_text(shape_of(bytes)));
  const int64_t P = sheets(T, timing);
  TANDEM_CHECK(bytes.size(0) == P, name, " must hold ", P, timing == Timing::kWindow ? " sheet of counts" : " planes",
               " for T = ", T, ", got ", bytes.size(0));
}

void check_same_device(const Tensor& tensor, const Tensor& reference, const char* name) {
  TANDEM_CHECK(tensor.is_cuda() == reference.is_cuda() && tensor.get_device_index() == reference.get_device_index(),
               name, " must be on the device of the layer's input");
}

void check_mask(const Tensor& mask, const Tensor& grad) {
  check_same_device(mask, grad, "mask");
  TANDEM_CHECK(mask.scalar_type() == ScalarType::Byte && mask.numel() == (grad.numel() + 7) / 8,
               "mask must be uint8 with one bit per element of grad (", (grad.numel() + 7) / 8, " bytes), got ",
               shape_text(shape_of(mask)));
}

OptionalTensor per_channel(const OptionalTensor& tensor, int64_t channels, const Tensor& device_of, const char* name) {
  if (!tensor.has_value()) return std::nullopt;
  check_same_device(*tensor, device_of, name);
  TANDEM_CHECK(tensor->scalar_type() == ScalarType::Float && tensor->numel() == channels, name,
               " must hold one float32 per channel (", channels, "), got shape ", shape_text(shape_of(*tensor)));
  return to_contiguous(*tensor);
}

OptionalTensor combined(const OptionalTensor& values, const std::string& op, double number, int64_t channels,
                        const Tensor& device_of) {
  if (number == 1) return values;
  const bool divides = op == "aten::div";
  const auto operand = static_cast<float>(number);
  Tensor out = empty(channels, ScalarType::Float, device_of);
  if (on_gpu(device_of)) {
    torch::stable::fill_(out, values.has_value() || !divides ? operand : 1 / operand);
    return values.has_value() ? aten::call_overload(op.c_str(), "Tensor", *values, out) : out;
  }
  for (int64_t c = 0; c < channels; ++c) {
    const float value = values.has_value() ? pointer<float>(*values)[c] : 1;
    pointer<float>(out)[c] = divides ? value / operand : value * operand;
  }
  return out;
}

void torch_parallel(int64_t n, int64_t grain, RangeBody body, void* context) {
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

bool is_double(StableIValue argument) {
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(torch::stable::detail::to<AtenTensorHandle>(argument), &dtype));
  return dtype == aoti_torch_dtype_float64();
}

void run_composite(const std::string& op, StableIValue* stack) {
  const bool done = torch_call_dispatcher(("tandem_composite::" + op).c_str(), "", stack, TORCH_ABI_VERSION) == 0;
  const auto why = torch_exception_get_what_without_backtrace;
  TANDEM_CHECK(done, "tandem::", op, ": ", why != nullptr ? why() : "torch refuses this call in float64");
}

#ifdef TANDEM_EMULATION  // the tests' library runs the CUDA kernels on tensors of the CPU
struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};
bool on_gpu(const Tensor&) { return true; }
#else
using torch::stable::accelerator::DeviceGuard;
bool on_gpu(const Tensor& tensor) { return tensor.is_cuda(); }
#endif

#ifdef TANDEM_WITH_CUDA
namespace {

// What a user can do about an error that a card or driver causes.
const char* remedy(int status) {
  switch (status) {
    case 35:
      return ": the driver is older than the CUDA toolkit that built the kernels: update it, or build with an older "
             "nvcc";
    case 98:
    case 209:
      return ": the kernels were built for " TANDEM_CUDA_ARCHS
             " and not for this GPU: build again with its compute capability in TORCH_CUDA_ARCH_LIST";
    case 222:
      return ": the driver cannot read PTX of the CUDA toolkit that built the kernels for " TANDEM_CUDA_ARCHS
             ": update the driver, or build again with this GPU's compute capability in TORCH_CUDA_ARCH_LIST";
    default:
      return "";
  }
}

}  // namespace

void launch(const Tensor& tensor, const char* kernel, const std::function<int(void*)>& launcher) {
  TANDEM_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch build has no CUDA");
  const DeviceGuard guard(tensor.get_device_index());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  const int status = launcher(stream);
  TANDEM_CHECK(status == 0, kernel, ": ", cuda::error_text(status), remedy(status));
}
#endif

}  // namespace tandem::ops
