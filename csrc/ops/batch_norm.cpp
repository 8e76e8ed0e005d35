// linear_bn_if, conv_bn_if: layers that normalise the product by the statistics of the batch; bn_grad: their backward.
#include "../kernels/batch_norm.h"

#include <torch/csrc/stable/library.h>

#include <limits>

#include "aten.h"
#include "batch_norm.h"
#include "product.h"
#include "scan.h"

namespace tandem::ops {

namespace {

Tensor constant(double value, const Tensor& like) {
  Tensor out = empty({}, like.scalar_type(), like);
  torch::stable::fill_(out, value);
  return out;
}

OptionalTensor per_channel(const OptionalTensor& tensor, const Tensor& mean, const char* name, bool or_one = false) {
  if (!tensor.has_value()) return std::nullopt;
  check_same_device(*tensor, mean, name);
  TANDEM_CHECK(tensor->numel() == mean.numel() || (or_one && tensor->numel() == 1), name,
               " must hold one value per channel (", mean.numel(), "), got shape ", shape_text(shape_of(*tensor)));
  return torch::stable::contiguous(aten::to_type(*tensor, mean.scalar_type()));
}

double checked_eps(double eps) {
  TANDEM_CHECK(eps >= 0 && eps <= std::numeric_limits<float>::max(), "eps must be a float32, 0 or more, got ", eps);
  return eps;
}

// Dimensions of [B, N, spatial...] that the statistics run over.
Shape all_but_channels(const Tensor& u) {
  Shape dims{0};
  for (int64_t d = 2; d < u.dim(); ++d) dims.push_back(d);
  return dims;
}

Tensor count_of_rows(const Tensor& u) {
  return constant(u.size(1) > 0 ? static_cast<double>(u.numel() / u.size(1)) : 1.0, u);
}

// mean = S1 / n and var = max(S2 / n - mean^2, 0) of double sums, rounded once.
std::tuple<Tensor, Tensor> moments(const Tensor& u) {
  const int64_t channels = u.size(1);
  TANDEM_CHECK(u.numel() > 0 || channels == 0, "planes: batch normalisation needs at least one sample, got outputs ",
               shape_text(shape_of(u)));
  const ScalarType compute = u.scalar_type();
  if (!on_gpu(u)) {
    Tensor mean = empty({channels}, ScalarType::Double, u), var = empty({channels}, ScalarType::Double, u);
    auto* m = static_cast<double*>(mean.data_ptr());
    auto* v = static_cast<double*>(var.data_ptr());
    const int64_t rows = channels > 0 ? u.numel() / channels : 0;
    if (compute == ScalarType::Double) {
      cpu::channel_sums(static_cast<const double*>(u.data_ptr()), rows, channels, m, v, torch_parallel);
    } else {
      cpu::channel_sums(static_cast<const float*>(u.data_ptr()), rows, channels, m, v, torch_parallel);
    }
    for (int64_t c = 0; c < channels; ++c) {
      m[c] /= static_cast<double>(rows);
      const double variance = v[c] / static_cast<double>(rows) - m[c] * m[c];
      v[c] = variance > 0 ? variance : 0;
    }
    return {aten::to_type(mean, compute), aten::to_type(var, compute)};
  }
  const Tensor wide = aten::to_type(u, ScalarType::Double);
  const Shape dims = all_but_channels(u);
  const Tensor n = count_of_rows(wide);
  const Tensor mean = aten::div(aten::sum(wide, dims), n);
  const Tensor var = aten::sub(aten::div(aten::sum(aten::mul(wide, wide), dims), n), aten::mul(mean, mean));
  return {aten::to_type(mean, compute), aten::to_type(aten::relu(var), compute)};
}

using NormOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// By the fused kernel, where there is one and the weights are finite.
bool fire_fused(const Synapses& synapses, const BatchNorm& norm, const NeuronLayer& layer, const Tensor& product) {
  if (on_gpu(product) || product.scalar_type() == ScalarType::Double) return false;
  if (norm.gain.has_value() && norm.gain->numel() != 1) return false;
  const auto data = [](const OptionalTensor& t) -> const float* {
    return t.has_value() ? static_cast<const float*>(t->data_ptr()) : nullptr;
  };
  FusedSynapses fused(synapses);
  return cpu::product_norm_if(fused.product(),
                              {data(norm.gain), data(norm.gamma), data(norm.beta), static_cast<float>(norm.eps),
                               static_cast<float*>(product.data_ptr()), static_cast<float*>(norm.mean.data_ptr()),
                               static_cast<float*>(norm.var.data_ptr())},
                              layer.args<float>(), torch_parallel);
}

NormOutputs layer_bn_if(const Synapses& synapses, BatchNorm norm, const NeuronInputs& inputs) {
  synapses.check();
  const Shape shape = synapses.output_shape();
  NeuronLayer layer(inputs, shape, synapses.T, synapses.weight.scalar_type(), synapses.planes);
  const ScalarType compute = compute_type(synapses.weight.scalar_type());
  Tensor product = empty_channels_last(shape, 1, compute, synapses.planes);
  norm.mean = empty({shape[1]}, compute, product);
  norm.var = empty({shape[1]}, compute, product);
  norm.gain = per_channel(norm.gain, norm.mean, "gain", true);
  norm.gamma = per_channel(norm.gamma, norm.mean, "gamma");
  norm.beta = per_channel(norm.beta, norm.mean, "beta");
  if (layer.neurons() == 0) {
    std::tie(norm.mean, norm.var) = moments(product);
  } else if (!fire_fused(synapses, norm, layer, product)) {
    const Tensor currents = synapses.currents();
    torch::stable::copy_(product, aten::sum(currents, {0}));
    std::tie(norm.mean, norm.var) = moments(product);
    layer.set_affine(norm.scale(), norm.shift());
    run_scan(currents, Source::kTrain, layer);
  }
  const auto [planes, counts, mask, v] = layer.outputs();
  return {planes, counts, mask, v, product, norm.mean, norm.var};
}

NormOutputs linear_bn_if(Tensor planes, int64_t T, Tensor weight, std::string precision, OptionalTensor gain,
                         OptionalTensor gamma, OptionalTensor beta, double eps, OptionalTensor residual,
                         OptionalTensor residual_scale, OptionalTensor v_init, int64_t steps, double threshold,
                         double leak, std::string gate, bool return_v) {
  return layer_bn_if(
      {planes, T, weight, precision, {}, {}, {}}, {Tensor(), Tensor(), gain, gamma, beta, checked_eps(eps)},
      {std::nullopt, std::nullopt, residual, residual_scale, v_init, steps, threshold, leak, gate, true, return_v});
}

NormOutputs conv_bn_if(Tensor planes, int64_t T, Tensor weight, std::string precision, Shape stride, Shape padding,
                       Shape dilation, int64_t groups, OptionalTensor gain, OptionalTensor gamma, OptionalTensor beta,
                       double eps, OptionalTensor residual, OptionalTensor residual_scale, OptionalTensor v_init,
                       int64_t steps, double threshold, double leak, std::string gate, bool return_v) {
  return layer_bn_if(
      {planes, T, weight, precision, stride, padding, dilation, groups},
      {Tensor(), Tensor(), gain, gamma, beta, checked_eps(eps)},
      {std::nullopt, std::nullopt, residual, residual_scale, v_init, steps, threshold, leak, gate, true, return_v});
}

// The per-channel vectors reshaped to broadcast over [B, N, spatial...].
Tensor over_channels(const Tensor& vector, const Tensor& u) {
  Shape shape(static_cast<size_t>(u.dim()), 1);
  shape[1] = vector.numel();
  return torch::stable::view(torch::stable::contiguous(vector), shape);
}

template <class C>
void grad_on_cpu(const Tensor& grad, const Tensor& mask, const Tensor& product, const BatchNorm& norm, double threshold,
                 const Tensor& grad_product, const Tensor& grad_gamma, const Tensor& grad_beta) {
  const auto vector = [&](const Tensor& t) { return static_cast<C*>(t.data_ptr()); };
  const Tensor mean = torch::stable::contiguous(norm.mean), slope = norm.slope(), rstd = norm.rstd();
  const Tensor gain = norm.gain_or_one();
  cpu::batch_norm_grad(
      {product.numel() / product.size(1), product.size(1), vector(grad), static_cast<const uint8_t*>(mask.data_ptr()),
       vector(product), vector(mean), vector(rstd), vector(slope), vector(gain), static_cast<C>(threshold),
       vector(grad_product), vector(grad_gamma), vector(grad_beta)},
      torch_parallel);
}

std::tuple<Tensor, Tensor, Tensor> bn_grad(Tensor grad, Tensor mask, Tensor product, Tensor mean, Tensor var,
                                           OptionalTensor gain, OptionalTensor gamma, double eps, double threshold) {
  const ScalarType compute = product.scalar_type();
  TANDEM_CHECK(shape_of(grad) == shape_of(product) && product.dim() >= 2,
               "grad and product must have one shape [B, N, *], got ", shape_text(shape_of(grad)), " and ",
               shape_text(shape_of(product)));
  TANDEM_CHECK(mask.scalar_type() == ScalarType::Byte && mask.numel() == (grad.numel() + 7) / 8,
               "mask must be uint8 with one bit per element of grad");
  TANDEM_CHECK(compute == ScalarType::Float || compute == ScalarType::Double, "product must be float32 or float64");
  for (const auto& [moment, name] : {std::pair{&mean, "mean"}, std::pair{&var, "var"}}) {
    check_same_device(*moment, product, name);
    TANDEM_CHECK(moment->scalar_type() == compute && moment->dim() == 1 && moment->numel() == product.size(1), name,
                 " must hold one value per channel (", product.size(1), ") in the type of product, got shape ",
                 shape_text(shape_of(*moment)));
  }
  const BatchNorm norm{mean,
                       var,
                       per_channel(gain, mean, "gain", true),
                       per_channel(gamma, mean, "gamma"),
                       std::nullopt,
                       checked_eps(eps)};
  const Tensor u = to_channels_last(product, 1);
  const Tensor g = to_channels_last(aten::to_type(grad, compute), 1);
  Tensor grad_product = empty_channels_last(shape_of(product), 1, compute, product);
  Tensor grad_gamma = empty({product.size(1)}, compute, product),
         grad_beta = empty({product.size(1)}, compute, product);
  if (product.numel() == 0) {
    torch::stable::zero_(grad_gamma);
    torch::stable::zero_(grad_beta);
    return {grad_product, grad_gamma, grad_beta};
  }
  if (!on_gpu(product)) {
    const Tensor bits = torch::stable::contiguous(mask);
    if (compute == ScalarType::Double) {
      grad_on_cpu<double>(g, bits, u, norm, threshold, grad_product, grad_gamma, grad_beta);
    } else {
      grad_on_cpu<float>(g, bits, u, norm, threshold, grad_product, grad_gamma, grad_beta);
    }
    return {grad_product, grad_gamma, grad_beta};
  }
  const Tensor gz = aten::gate_grad(g, mask, threshold);
  const Shape dims = all_but_channels(u);
  const Tensor xhat = aten::mul(aten::sub(aten::mul(u, over_channels(norm.gain_or_one(), u)),
                                          over_channels(aten::mul(norm.gain_or_one(), mean), u)),
                                over_channels(norm.rstd(), u));
  const Tensor n = count_of_rows(u);
  torch::stable::copy_(grad_beta, aten::sum(gz, dims));
  torch::stable::copy_(grad_gamma, aten::sum(aten::mul(gz, xhat), dims));
  const Tensor centred = aten::sub(aten::sub(gz, over_channels(aten::div(grad_beta, n), u)),
                                   aten::mul(xhat, over_channels(aten::div(grad_gamma, n), u)));
  torch::stable::copy_(grad_product, aten::mul(centred, over_channels(norm.scale(), u)));
  return {grad_product, grad_gamma, grad_beta};
}

}  // namespace

Tensor BatchNorm::gain_or_one() const {
  Tensor one = empty({mean.numel()}, mean.scalar_type(), mean);
  torch::stable::fill_(one, 1.0);
  return gain.has_value() ? aten::mul(one, *gain) : one;
}

Tensor BatchNorm::rstd() const {
  const Tensor g = gain_or_one();
  const Tensor variance = aten::add(aten::mul(aten::mul(g, g), var), constant(eps, mean));
  // torch's float32 sqrt is not always the nearest float; its float64 one, rounded, is.
  const Tensor root = aten::to_type(aten::sqrt(aten::to_type(variance, ScalarType::Double)), mean.scalar_type());
  return aten::div(constant(1.0, mean), root);
}

Tensor BatchNorm::slope() const { return gamma.has_value() ? aten::mul(*gamma, rstd()) : rstd(); }

Tensor BatchNorm::scale() const { return aten::mul(slope(), gain_or_one()); }

Tensor BatchNorm::shift() const {
  const Tensor centre = aten::mul(aten::mul(gain_or_one(), mean), slope());
  return aten::sub(beta.has_value() ? *beta : constant(0.0, mean), centre);
}

#define TANDEM_IMPLEMENT(key)                         \
  STABLE_TORCH_LIBRARY_IMPL(tandem, key, m) {         \
    m.impl("linear_bn_if", TORCH_BOX(&linear_bn_if)); \
    m.impl("conv_bn_if", TORCH_BOX(&conv_bn_if));     \
    m.impl("bn_grad", TORCH_BOX(&bn_grad));           \
  }
TANDEM_IMPLEMENT(CPU)
#ifdef TANDEM_WITH_CUDA
TANDEM_IMPLEMENT(CUDA)
#endif

}  // namespace tandem::ops
