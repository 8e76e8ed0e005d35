// linear_bn_if, conv_bn_if: layers that normalise the product by the statistics of the batch; bn_grad: their backward.
#include "../kernels/norm/batch_norm.h"

#include <torch/csrc/stable/library.h>

#include <limits>

#include "aten.h"
#include "product.h"
#include "scan.h"

namespace tandem::ops {

namespace {

template <class C>
C* data(const Tensor& tensor) {
  return static_cast<C*>(tensor.data_ptr());
}
template <class C>
const C* data(const OptionalTensor& tensor) {
  return tensor.has_value() ? data<const C>(*tensor) : nullptr;
}

// The parameters of a batch norm of `channels` channels, in the type and on the device of `like`.
class NormParameters {
 public:
  NormParameters(const OptionalTensor& gain, const OptionalTensor& gamma, const OptionalTensor& beta, double eps,
                 int64_t channels, const Tensor& like)
      : channels_(channels), eps_(eps) {
    TANDEM_CHECK(eps >= 0 && eps <= std::numeric_limits<float>::max(), "eps must be a float32, 0 or more, got ", eps);
    gain_ = take(gain, like, "gain", true);
    gamma_ = take(gamma, like, "gamma");
    beta_ = take(beta, like, "beta");
  }

  template <class C>
  BatchNorm<C> args() const {
    return {data<C>(gain_), gain_.has_value() ? gain_->numel() : 1, data<C>(gamma_), data<C>(beta_),
            static_cast<C>(eps_)};
  }

 private:
  OptionalTensor take(const OptionalTensor& tensor, const Tensor& like, const char* name, bool or_one = false) const {
    if (!tensor.has_value()) return std::nullopt;
    check_same_device(*tensor, like, name);
    TANDEM_CHECK(tensor->numel() == channels_ || (or_one && tensor->numel() == 1), name,
                 " must hold one value per channel (", channels_, "), got shape ", shape_text(shape_of(*tensor)));
    return to_contiguous(aten::to_type(*tensor, like.scalar_type()));
  }

  int64_t channels_;
  double eps_;
  OptionalTensor gain_, gamma_, beta_;
};

#ifdef TANDEM_WITH_CUDA
Tensor workspace_for(const Tensor& u) {
  return empty(cuda::batch_norm_workspace(u.numel() / u.size(1), u.size(1)), ScalarType::Double, u);
}
#endif

struct Statistics {
  Tensor mean, var, scale, shift;  // [channels]
};

template <class C>
void measure_as(const Tensor& u, double factor, const NormParameters& norm, const Statistics& out) {
  const int64_t channels = u.size(1);
  const BatchNormStatistics<C> args{u.numel() / channels,   channels,           data<C>(u),
                                    static_cast<C>(factor), norm.args<C>(),     data<C>(out.mean),
                                    data<C>(out.var),       data<C>(out.scale), data<C>(out.shift)};
#ifdef TANDEM_WITH_CUDA
  if (on_gpu(u)) {
    const Tensor workspace = workspace_for(u);
    launch(u, "batch_norm_statistics",
           [&](void* stream) { return cuda::batch_norm_statistics(args, data<double>(workspace), stream); });
    return;
  }
#endif
  cpu::batch_norm_statistics(args, torch_parallel);
}

// Of factor u.
void measure(const Tensor& u, double factor, const NormParameters& norm, const Statistics& out) {
  const auto run = u.scalar_type() == ScalarType::Double ? &measure_as<double> : &measure_as<float>;
  run(u, factor, norm, out);
}

using NormOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Product, statistics and neurons in one go.
bool fire_on_cpu(const Synapses& synapses, const NormParameters& norm, const NeuronLayer& layer, const Tensor& product,
                 const Statistics& statistics) {
  if (on_gpu(product) || product.scalar_type() == ScalarType::Double) return false;
  FusedSynapses fused(synapses);
  const LayerNorm of{norm.args<float>(), data<float>(product), data<float>(statistics.mean),
                     data<float>(statistics.var)};
  cpu::run_normalised(fused.layer(layer.args<float>()), of, torch_parallel);
  return true;
}

// The product of the counts is a GPU's cheapest way to the statistics: currents then never are in memory. Of window
// timing it is all there is to multiply.
bool fire_on_gpu(const Synapses& synapses, const NormParameters& norm, NeuronLayer& layer, Tensor& product,
                 const Statistics& statistics) {
  if (!on_gpu(product) || synapses.counted) return false;
  FusedSynapses fused(synapses);
  if (!fused.suits(layer)) return false;
  Synapses prepared = synapses;
  prepared.digits = fused.digits();
  product = prepared.window_product();
  measure(product, 1.0, norm, statistics);
  layer.set_affine(statistics.scale, statistics.shift);
  return fused.fire(layer);
}

// By torch's own product of every step; neurons of window timing need that of the window alone, and of long windows the
// currents of all steps would not fit into memory.
void fire_by_currents(const Synapses& synapses, const NormParameters& norm, NeuronLayer& layer, Tensor& product,
                      const Statistics& statistics) {
  constexpr int64_t kKeptSteps = 255;
  if (synapses.counted || synapses.T > kKeptSteps) {
    product = synapses.window_product();
    measure(product, 1.0, norm, statistics);
    layer.set_affine(statistics.scale, statistics.shift);
    return synapses.counted ? run_scan(product, Source::kImpulse, layer) : synapses.scan(layer);
  }
  const Tensor currents = synapses.currents();
  torch::stable::copy_(product, aten::sum(currents, {0}));
  measure(product, 1.0, norm, statistics);
  layer.set_affine(statistics.scale, statistics.shift);
  run_scan(currents, Source::kTrain, layer);
}

NormOutputs layer_bn_if(Synapses synapses, const OptionalTensor& gain, const OptionalTensor& gamma,
                        const OptionalTensor& beta, double eps, const NeuronInputs& inputs) {
  synapses.counted = is_window(inputs.timing);
  synapses.check();
  const Shape shape = synapses.output_shape();
  NeuronLayer layer(inputs, shape, synapses.T, synapses.counts_type(), synapses.planes);
  const ScalarType compute = compute_type(synapses.counts_type());
  Tensor product = empty_channels_last(shape, 1, compute, synapses.planes);
  const NormParameters norm(gain, gamma, beta, eps, shape[1], product);
  const auto vector = [&] { return empty(shape[1], compute, product); };
  const Statistics statistics{vector(), vector(), vector(), vector()};
  TANDEM_CHECK(layer.neurons() > 0 || shape[1] == 0,
               "planes: batch normalisation needs at least one sample, got outputs ", shape_text(shape));
  if (layer.neurons() > 0 && !fire_on_cpu(synapses, norm, layer, product, statistics) &&
      !fire_on_gpu(synapses, norm, layer, product, statistics)) {
    fire_by_currents(synapses, norm, layer, product, statistics);
  }
  const auto [planes, counts, mask, v, bad] = layer.outputs();
  return {planes, counts, mask, v, product, statistics.mean, statistics.var, bad};
}

// In the order of NeuronInputs: scale and shift come from the statistics, and training is what this is for.
#define TANDEM_NORMALISED_INPUTS \
  {{}, {}, TANDEM_NEURON_FIELDS(TANDEM_ARGUMENT) true, return_v, TANDEM_LATER_FIELDS(TANDEM_ARGUMENT)}

NormOutputs linear_bn_if(Tensor planes TANDEM_PRODUCT_FIELDS(TANDEM_PARAMETER) TANDEM_NORM_FIELDS(TANDEM_PARAMETER)
                             TANDEM_NEURON_FIELDS(TANDEM_PARAMETER) TANDEM_RETURN_V_FIELD(TANDEM_PARAMETER)
                                 TANDEM_LATER_FIELDS(TANDEM_PARAMETER)) {
  return layer_bn_if({planes, TANDEM_PRODUCT_FIELDS(TANDEM_ARGUMENT){}, {}, {}}, gain, gamma, beta, eps,
                     TANDEM_NORMALISED_INPUTS);
}

NormOutputs conv_bn_if(Tensor planes TANDEM_PRODUCT_FIELDS(TANDEM_PARAMETER) TANDEM_WINDOW_FIELDS(TANDEM_PARAMETER)
                           TANDEM_NORM_FIELDS(TANDEM_PARAMETER) TANDEM_NEURON_FIELDS(TANDEM_PARAMETER)
                               TANDEM_RETURN_V_FIELD(TANDEM_PARAMETER) TANDEM_LATER_FIELDS(TANDEM_PARAMETER)) {
  return layer_bn_if({planes, TANDEM_PRODUCT_FIELDS(TANDEM_ARGUMENT) TANDEM_WINDOW_FIELDS(TANDEM_ARGUMENT)}, gain,
                     gamma, beta, eps, TANDEM_NORMALISED_INPUTS);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bn_statistics(Tensor product, double factor, OptionalTensor gain,
                                                         OptionalTensor gamma, OptionalTensor beta, double eps) {
  const ScalarType compute = product.scalar_type();
  TANDEM_CHECK(compute == ScalarType::Float || compute == ScalarType::Double, "product must be float32 or float64");
  TANDEM_CHECK(product.dim() >= 2 && product.numel() > 0,
               "product: batch normalisation needs [B, N, *] with at least one sample, got shape ",
               shape_text(shape_of(product)));
  const NormParameters norm(gain, gamma, beta, eps, product.size(1), product);
  const auto vector = [&] { return empty(product.size(1), compute, product); };
  const Statistics out{vector(), vector(), vector(), vector()};
  measure(to_channels_last(product, 1), factor, norm, out);
  return {out.mean, out.var, out.scale, out.shift};
}

template <class C>
void differentiate(const Tensor& grad, const Tensor& mask, const Tensor& product, const Tensor& mean, const Tensor& var,
                   const NormParameters& norm, double threshold, const Tensor& grad_product, const Tensor& grad_gamma,
                   const Tensor& grad_beta) {
  const int64_t channels = product.size(1);
  const BatchNormGrad<C> args{product.numel() / channels,
                              channels,
                              grad.data_ptr(),
                              data<uint8_t>(mask),
                              data<C>(product),
                              data<C>(mean),
                              data<C>(var),
                              norm.args<C>(),
                              static_cast<C>(threshold),
                              kernel_dtype(grad, "grad"),
                              grad_product.data_ptr(),
                              data<C>(grad_gamma),
                              data<C>(grad_beta)};
#ifdef TANDEM_WITH_CUDA
  if (on_gpu(product)) {
    const Tensor workspace = workspace_for(product);
    launch(product, "batch_norm_grad",
           [&](void* stream) { return cuda::batch_norm_grad(args, data<double>(workspace), stream); });
    return;
  }
#endif
  cpu::batch_norm_grad(args, torch_parallel);
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
  check_same_device(grad, product, "grad");
  check_same_device(mask, product, "mask");
  for (const auto& [moment, name] : {std::pair{&mean, "mean"}, std::pair{&var, "var"}}) {
    check_same_device(*moment, product, name);
    TANDEM_CHECK(moment->scalar_type() == compute && moment->dim() == 1 && moment->numel() == product.size(1), name,
                 " must hold one value per channel (", product.size(1), ") in the type of product, got shape ",
                 shape_text(shape_of(*moment)));
  }
  const NormParameters norm(gain, gamma, std::nullopt, eps, product.size(1), product);
  const bool half = grad.scalar_type() == ScalarType::Half || grad.scalar_type() == ScalarType::BFloat16;
  const ScalarType out = half && compute == ScalarType::Float ? grad.scalar_type() : compute;
  // The GPU's kernel reads and writes halves, the CPU's the type of the product.
  const ScalarType moved = on_gpu(product) ? out : compute;
  Tensor grad_product = empty_channels_last(shape_of(product), 1, moved, product);
  Tensor grad_gamma = empty(product.size(1), compute, product), grad_beta = empty(product.size(1), compute, product);
  if (product.numel() == 0) {
    torch::stable::zero_(grad_gamma);
    torch::stable::zero_(grad_beta);
    return {aten::to_type(grad_product, out), grad_gamma, grad_beta};
  }
  const auto run = compute == ScalarType::Double ? &differentiate<double> : &differentiate<float>;
  run(to_channels_last(aten::to_type(grad, moved), 1), to_contiguous(mask), to_channels_last(product, 1),
      to_contiguous(mean), to_contiguous(var), norm, threshold, grad_product, grad_gamma, grad_beta);
  return {aten::to_type(grad_product, out), grad_gamma, grad_beta};
}

}  // namespace

TANDEM_IMPLEMENT(m.impl("linear_bn_if", TORCH_BOX(&linear_bn_if)); m.impl("conv_bn_if", TORCH_BOX(&conv_bn_if));
                 m.impl("bn_statistics", TORCH_BOX(&bn_statistics)); m.impl("bn_grad", TORCH_BOX(&bn_grad)))

}  // namespace tandem::ops
