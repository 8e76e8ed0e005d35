// bn_if: layers with batch normalisation by the statistics of the batch. bn_grad: their backward pass.
#include "../kernels/norm/batch_norm.h"

#include <torch/csrc/stable/library.h>

#include <limits>

#include "aten.h"
#include "product.h"

namespace tandem::ops {

namespace {

// The parameters of a batch norm.
struct NormInputs {
  TANDEM_NORM_FIELDS(TANDEM_MEMBER)
  double unit = 1;    // of the neurons' potentials
  double number = 1;  // the gain, where that is no tensor
  float rounded = 1;

  // Checks them for `product`, [B, N, *], converts them to float32, and divides gamma and beta by the unit.
  void prepare(const Tensor& product) {
    kernel_dtype(product, "product");
    TANDEM_CHECK(unit > 0, "unit must be positive, got ", unit);
    TANDEM_CHECK(eps >= 0 && eps <= std::numeric_limits<float>::max(), "eps must be a float32, 0 or more, got ", eps);
    const auto take = [&](OptionalTensor& tensor, int64_t size, const char* name) {
      if (tensor.has_value()) tensor = per_channel(aten::to_type(*tensor, ScalarType::Float), size, product, name);
    };
    take(gain, gain.has_value() && gain->numel() == 1 ? 1 : product.size(1), "gain");
    TANDEM_CHECK(number == 1 || !gain.has_value(), "number is the gain where that is no tensor, got ", number);
    rounded = static_cast<float>(number);
    if (number != 1 && on_gpu(product)) {
      gain = empty(1, ScalarType::Float, product);
      torch::stable::fill_(*gain, number);
    }
    take(gamma, product.size(1), "gamma");
    take(beta, product.size(1), "beta");
    gamma = in_units(gamma, product);
    if (beta.has_value()) beta = in_units(*beta, product);
  }

  OptionalTensor in_units(const OptionalTensor& values, const Tensor& product) const {
    return combined(values, "aten::div", unit, product.size(1), product);
  }

  BatchNorm args() const {
    const float* one = number == 1 ? nullptr : &rounded;
    return {gain.has_value() ? pointer<const float>(gain) : one, gain.has_value() ? gain->numel() : 1,
            pointer<const float>(gamma), pointer<const float>(beta), static_cast<float>(eps)};
  }
};

OptionalTensor workspace([[maybe_unused]] const Tensor& product) {
#ifdef TANDEM_WITH_CUDA
  const int64_t channels = product.size(1), size = cuda::batch_norm_workspace(product.numel() / channels, channels);
  if (on_gpu(product)) return empty(size, ScalarType::Double, product);
#endif
  return std::nullopt;
}

// Statistics and affine parameters, float32 [channels].
struct Statistics {
  Tensor mean, var, scale, shift;

  static Statistics empty_of(int64_t channels, const Tensor& like) {
    const auto one = [&] { return empty(channels, ScalarType::Float, like); };
    return {one(), one(), one(), one()};
  }
};

// The statistics of factor * u.
void measure(const Tensor& u, double factor, const NormInputs& norm, const Statistics& out) {
  const OptionalTensor memory = workspace(u);
  const BatchNormStatistics args{
      .rows = u.numel() / u.size(1),
      .channels = u.size(1),
      .product = u.data_ptr(),
      .factor = static_cast<float>(factor),
      .norm = norm.args(),
      .mean = pointer<float>(out.mean),
      .var = pointer<float>(out.var),
      .scale = pointer<float>(out.scale),
      .shift = pointer<float>(out.shift),
      .workspace = pointer<double>(memory),
      .product_dtype = kernel_dtype(u, "product"),
  };
  TANDEM_RUN(u, batch_norm_statistics, args);
}

using NormOutputs = std::tuple<Tensor, Tensor, Tensor, OptionalTensor, OptionalTensor, Tensor, Tensor, Tensor>;

// A layer with batch normalisation: the statistics of the product u give the neurons' scale and shift, then the neurons
// fire. u is computed alone, from counts: to write the currents of all steps to memory until all rows are known would
// take more time.
NormOutputs bn_if(Tensor stored TANDEM_PRODUCT_FIELDS(TANDEM_PARAMETER) TANDEM_CONV_FIELDS(TANDEM_PARAMETER)
                      TANDEM_NORM_FIELDS(TANDEM_PARAMETER) TANDEM_NEURON_FIELDS(TANDEM_PARAMETER),
                  bool return_v TANDEM_TENSOR_FIELDS(TANDEM_PARAMETER), double unit, double number) {
  Synapses synapses(
      {.stored = stored,
       TANDEM_PRODUCT_FIELDS(TANDEM_ARGUMENT) TANDEM_CONV_FIELDS(TANDEM_ARGUMENT).timing = timing_of(timing)});
  const Shape shape = synapses.output_shape();
  NeuronLayer neurons({TANDEM_NEURON_FIELDS(TANDEM_ARGUMENT).train = true, .return_v = return_v,
                       TANDEM_TENSOR_FIELDS(TANDEM_ARGUMENT).gain = 1, .unit = 1},
                      shape, synapses.T(), synapses.counts_type(), synapses.stored());
  TANDEM_CHECK(neurons.neurons() > 0 || shape[1] == 0,
               "stored: batch normalisation needs at least one sample, got outputs ", shape_text(shape));
  if (synapses.timing() == Timing::kStep) synapses.prepare();  // for both products
  const Tensor u = synapses.window_product();
  NormInputs norm{TANDEM_NORM_FIELDS(TANDEM_ARGUMENT).unit = unit, .number = number};
  norm.prepare(u);
  const Statistics statistics = Statistics::empty_of(shape[1], u);
  if (neurons.neurons() > 0) {
    measure(u, 1.0, norm, statistics);
    neurons.set_affine(statistics.scale, statistics.shift);
    synapses.timing() == Timing::kWindow ? run_scan(u, Source::kImpulse, neurons) : synapses.fire(neurons);
  }
  const auto [spikes, counts, mask, v, lost] = neurons.outputs();
  return {spikes, *counts, *mask, v, u, statistics.mean, statistics.var, lost};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bn_statistics(Tensor product, double factor, OptionalTensor gain,
                                                         OptionalTensor gamma, OptionalTensor beta, double eps,
                                                         double unit, double number) {
  TANDEM_CHECK(product.dim() >= 2 && product.numel() > 0,
               "product: batch normalisation needs [B, N, *] with at least one sample, got shape ",
               shape_text(shape_of(product)));
  NormInputs norm{gain, gamma, beta, eps, unit, number};
  norm.prepare(product);
  const Statistics out = Statistics::empty_of(product.size(1), product);
  product = on_gpu(product) ? aten::to_type(product, ScalarType::Float) : product;
  measure(to_channels_last(product, 1), factor, norm, out);
  return {out.mean, out.var, out.scale, out.shift};
}

std::tuple<Tensor, Tensor, Tensor> bn_grad(Tensor grad, Tensor mask, Tensor product, Tensor mean, Tensor var,
                                           OptionalTensor gain, OptionalTensor gamma, double eps, double threshold,
                                           double unit, double number) {
  TANDEM_CHECK(shape_of(grad) == shape_of(product) && product.dim() >= 2,
               "grad and product must have one shape [B, N, *], got ", shape_text(shape_of(grad)), " and ",
               shape_text(shape_of(product)));
  NormInputs norm{gain, gamma, std::nullopt, eps, unit, number};
  norm.prepare(product);
  check_same_device(grad, product, "grad");
  check_mask(mask, grad);
  mean = *per_channel(mean, product.size(1), product, "mean");
  var = *per_channel(var, product.size(1), product, "var");
  const bool half = grad.scalar_type() == ScalarType::Half || grad.scalar_type() == ScalarType::BFloat16;
  const ScalarType out = half ? grad.scalar_type() : ScalarType::Float;
  if (on_gpu(product)) product = aten::to_type(product, ScalarType::Float);
  Tensor grad_product = empty_channels_last(shape_of(product), 1, out, product);
  const auto sums = [&] { return empty(product.size(1), ScalarType::Float, product); };
  Tensor grad_gamma = sums(), grad_beta = sums();
  if (product.numel() == 0) {
    torch::stable::zero_(grad_gamma);
    torch::stable::zero_(grad_beta);
    return {grad_product, grad_gamma, grad_beta};
  }
  grad = to_channels_last(aten::to_type(grad, out), 1);
  mask = to_contiguous(mask);
  product = to_channels_last(product, 1);
  const OptionalTensor memory = workspace(product);
  const BatchNormGrad args{
      .rows = product.numel() / product.size(1),
      .channels = product.size(1),
      .grad = grad.data_ptr(),
      .mask = pointer<uint8_t>(mask),
      .product = product.data_ptr(),
      .mean = pointer<float>(mean),
      .var = pointer<float>(var),
      .norm = norm.args(),
      .threshold = static_cast<float>(threshold),
      .grad_dtype = kernel_dtype(grad, "grad"),
      .grad_product = grad_product.data_ptr(),
      .grad_gamma = pointer<float>(grad_gamma),
      .grad_beta = pointer<float>(grad_beta),
      .workspace = pointer<double>(memory),
      .product_dtype = kernel_dtype(product, "product"),
  };
  TANDEM_RUN(product, batch_norm_grad, args);
  return {grad_product, *norm.in_units(grad_gamma, product), *norm.in_units(grad_beta, product)};
}

}  // namespace

TANDEM_IMPLEMENT(TANDEM_OP("bn_if", &bn_if, 2); TANDEM_OP("bn_statistics", &bn_statistics, 0);
                 TANDEM_OP("bn_grad", &bn_grad, 2))

}  // namespace tandem::ops
