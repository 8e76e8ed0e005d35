#include "torch_numbers.h"

#include <algorithm>
#include <optional>

#include "../kernels/cpu/halves.h"
#include "aten.h"

namespace tandem::ops {

namespace {

using network::Instruction;
using network::RealLayer;

// Both numbers, or with one axis the horizontal one.
Shape of_axes(int64_t axes, int64_t vertical, int64_t horizontal) {
  return axes == 1 ? Shape{horizontal} : Shape{vertical, horizontal};
}

// Whether torch gets the tensors of a convolution channels-last: where Product.direct of
// tandem_ext/functional/products.py gives them so, for the same bits, and never where torch would read or write foreign
// memory, whatever a file says.
bool runs_channels_last(const Instruction& i) {
  if (i.axes != 2) return false;
  const bool reads_wrong = i.channels == 1 && i.stride_h == 1 && i.stride_w > 1;
  const bool strided = std::max(i.stride_h, i.stride_w) > 1;
  const bool writes_wrong = i.channels < 16 && i.kernel_h == 1 && i.kernel_w == 1 && strided;
  return !reads_wrong && !writes_wrong;
}

Tensor laid_out(const Tensor& x, bool last) {
  const int lead = last ? 1 : kContiguous;
  return view_channels_last(to_channels_last(x, lead), shape_of(x), lead);
}

// Whether torch multiplies the patches of a single image (ConvParams::use_mkldnn in its Convolution.cpp) and takes
// longer to copy them, number by number, than to multiply.
bool copies_patches(const RealLayer& layer, const Tensor& image) {
  const Instruction& i = layer.instruction;
  return layer.batch == 1 && i.groups == 1 && i.channels <= 4 && (i.kernel_h <= 3 || i.kernel_w <= 3) &&
         image.numel() <= 20480;
}

// The numbers that each output pixel reads, [pixels, kernel_h, kernel_w, channels], of an image with its channels last.
Tensor patches(const RealLayer& layer, const Tensor& image) {
  const Instruction& i = layer.instruction;
  const int64_t height = image.size(2), width = image.size(3), channels = i.channels;
  const int64_t row_size = i.kernel_h * i.kernel_w * channels;
  const Tensor rows = empty_channels_last({layer.out.height * layer.out.width, row_size}, 2, ScalarType::Float, image);
  const int64_t step = i.stride_w * channels;
  auto* to = pointer<float>(rows);
  std::fill_n(to, rows.numel(), 0.f);
  for (int64_t k = 0; k < row_size; ++k) {
    const int64_t below = k / channels / i.kernel_w * i.dilation_h - i.padding_h;
    const int64_t right = k / channels % i.kernel_w * i.dilation_w - i.padding_w;
    const int64_t first = right < 0 ? (-right + i.stride_w - 1) / i.stride_w : 0;
    const int64_t end = std::min(layer.out.width, (width - right + i.stride_w - 1) / i.stride_w);
    for (int64_t y = 0; y < layer.out.height; ++y) {
      const int64_t line = y * i.stride_h + below;
      if (line < 0 || line >= height) continue;
      const float* from = pointer<float>(image) + (line * width + right) * channels + k % channels;
      float* out = to + y * layer.out.width * row_size + k;
      for (int64_t x = first; x < end; ++x) out[x * row_size] = from[x * step];
    }
  }
  return rows;
}

}  // namespace

Shape batched(int64_t batch, const network::Shape& s) {
  if (s.dims == 1) return {batch, s.channels};
  if (s.dims == 2) return {batch, s.channels, s.width};
  return {batch, s.channels, s.height, s.width};
}

float TorchNumbers::as_type(float x) const {
  if (type_ == ScalarType::BFloat16) return cpu::to_float(cpu::from_float<cpu::BFloat16>(x));
  return type_ == ScalarType::Half ? cpu::to_float(cpu::from_float<cpu::Float16>(x)) : x;
}

const float* TorchNumbers::product(const RealLayer& layer, const float* weight, const float* bias, const float* x) {
  const Instruction& i = layer.instruction;
  Tensor images = tensor(layer, x);
  if (i.after_h + i.after_w > 0) {
    images = torch::stable::pad(images, i.axes == 1 ? Shape{0, i.after_w} : Shape{0, i.after_w, 0, i.after_h});
  }
  if (i.axes == 0) {
    OptionalTensor shift;
    if (bias != nullptr) shift = rounded(from_memory(bias, {i.outputs}));
    return keep(layer, aten::small_linear(images, rounded(from_memory(weight, {i.outputs, i.channels})), shift));
  }
  Shape size = of_axes(i.axes, i.kernel_h, i.kernel_w);
  size.insert(size.begin(), {i.outputs, i.channels});
  const bool last = runs_channels_last(i);
  const auto wide = [&](const Tensor& x) { return laid_out(aten::to_type(x, ScalarType::Float), last); };
  images = wide(images);
  const Tensor weights = wide(rounded(from_memory(weight, size)));
  if (last && copies_patches(layer, images)) {
    const Tensor flat = view_channels_last(weights, {i.outputs, i.weights() / i.outputs}, 2);
    return keep(layer, rounded(aten::small_linear(patches(layer, images), flat)));
  }
  const Tensor y = aten::convolution(images, weights, of_axes(i.axes, i.stride_h, i.stride_w),
                                     of_axes(i.axes, i.padding_h, i.padding_w),
                                     of_axes(i.axes, i.dilation_h, i.dilation_w), i.groups);
  return keep(layer, to_channels_last(rounded(y), 1));
}

const float* TorchNumbers::mean(const RealLayer& layer, const float* x) {
  const Instruction& i = layer.instruction;
  const Tensor images = pooled(layer, x);
  const Shape kernel{i.kernel_h, i.kernel_w};
  if (static_cast<network::Kind>(i.kind) == network::Kind::adaptive_mean) {
    return keep(layer, to_contiguous(aten::call("aten::adaptive_avg_pool2d", images, kernel)));
  }
  return keep(layer, to_contiguous(aten::call("aten::avg_pool2d", images, kernel, Shape{i.stride_h, i.stride_w},
                                              Shape{i.padding_h, i.padding_w}, false, true, std::optional<int64_t>())));
}

const float* TorchNumbers::maximum(const RealLayer& layer, const float* x) {
  const Instruction& i = layer.instruction;
  return keep(layer, to_contiguous(aten::call("aten::max_pool2d", pooled(layer, x), Shape{i.kernel_h, i.kernel_w},
                                              Shape{i.stride_h, i.stride_w}, Shape{i.padding_h, i.padding_w},
                                              Shape{i.dilation_h, i.dilation_w}, i.ceil != 0)));
}

const float* TorchNumbers::upsampled(const RealLayer& layer, const float* x) {
  const Shape size{layer.out.height, layer.out.width};
  const std::optional<double> scale;
  return keep(layer, to_contiguous(aten::call("aten::upsample_bilinear2d", pooled(layer, x), size,
                                              layer.instruction.ceil != 0, scale, scale)));
}

const float* TorchNumbers::gathered(const RealLayer& layer, const int32_t* index, const float* x) {
  const Tensor images = to_contiguous(aten::to_type(tensor(layer, x), ScalarType::Float));
  const Tensor result = empty(layer.batch * layer.out.features(), ScalarType::Float, images);
  network::gather_features(layer, index, pointer<float>(images), pointer<float>(result));
  return keep(layer, result);
}

void TorchNumbers::forget(int64_t results) {
  kept_.erase(kept_.end() - std::min<int64_t>(results, kept_.size()), kept_.end());
}

Tensor TorchNumbers::pooled(const RealLayer& layer, const float* x) const {
  return layer.wide ? from_memory(x, batched(layer.batch, layer.in), 1) : tensor(layer, x);
}

Tensor TorchNumbers::tensor(const RealLayer& layer, const float* x) const {
  const Shape shape = batched(layer.batch, layer.in);
  if (layer.channels_last) return rounded(from_memory(x, shape, 1));
  const auto found = std::find(addresses_.begin(), addresses_.end(), x);
  if (found == addresses_.end()) return rounded(from_memory(x, shape));
  const Tensor& image = images_[found - addresses_.begin()];
  return rounded(shape_of(image) == shape ? image : torch::stable::reshape(image, shape));
}

Tensor TorchNumbers::rounded(const Tensor& x) const { return aten::to_type(x, type_); }
const float* TorchNumbers::keep(const RealLayer& layer, const Tensor& result) {
  TANDEM_CHECK(result.numel() == layer.batch * layer.out.features(), "the plan has another size than ",
               shape_text(shape_of(result)));
  kept_.push_back(aten::to_type(result, ScalarType::Float));
  return static_cast<const float*>(kept_.back().data_ptr());
}

}  // namespace tandem::ops
