// Batch normalisation, forward and backward, of products of any shape, compared with plain loops.
#include <cfloat>
#include <cmath>

#include "fuzz_layer.h"
#include "norm_layer.h"

using namespace tandem;
using namespace tandem::test;

namespace {

// All operands are small multiples of powers of two, so that no order of additions shows.
void backward(Input& in, int64_t rows, int64_t channels) {
  const auto grad = multiples(rows * channels, 0.25f, 13), product = multiples(rows * channels, 0.5f, 11);
  const auto mean = multiples(channels, 0.5f, 5), gamma = multiples(channels, 0.5f, 7);
  std::vector<float> gain(channels), var(channels);
  for (int64_t c = 0; c < channels; ++c) {
    gain[c] = std::ldexp(1.f, static_cast<int>(c % 3) - 1);
    var[c] = std::ldexp(1.f, 2 * static_cast<int>(c % 4) - 2);
  }
  const int64_t gain_size = in.pick({int64_t{1}, channels});
  const BatchNorm<float> norm{in.maybe(gain.data()), gain_size, in.maybe(gamma.data()), nullptr, 0};
  std::vector<uint8_t> mask((rows * channels + 7) / 8);
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = static_cast<uint8_t>(in.range(0, 255) + 37 * i);
  std::vector<float> grad_product(rows * channels, -77), grad_gamma(channels, -77), grad_beta(channels, -77);
  BatchNormGrad<float> a{};
  a.rows = rows;
  a.channels = channels;
  a.grad = grad.data();
  a.mask = mask.data();
  a.product = product.data();
  a.mean = mean.data();
  a.var = var.data();
  a.norm = norm;
  a.threshold = 2;
  a.grad_product = grad_product.data();
  a.grad_gamma = grad_gamma.data();
  a.grad_beta = grad_beta.data();
  cpu::batch_norm_grad(a, cut_for);
  for (int64_t c = 0; c < channels; ++c) {
    const Normalised<float> of = normalise(norm, c, mean[c], var[c]);
    const auto gz = [&](int64_t i) { return mask[i / 8] >> (i % 8) & 1 ? grad[i] / 2 : 0.f; };
    const auto xhat = [&](int64_t i) { return (of.gain * product[i] - of.gain * mean[c]) * of.rstd; };
    double beta_sum = 0, gamma_sum = 0;
    for (int64_t i = c; i < rows * channels; i += channels) {
      beta_sum += gz(i);
      gamma_sum += gz(i) * xhat(i);
    }
    REQUIRE(grad_beta[c] == static_cast<float>(beta_sum), "channel %ld of %ld", long(c), long(channels));
    REQUIRE(grad_gamma[c] == static_cast<float>(gamma_sum), "channel %ld of %ld", long(c), long(channels));
    for (int64_t i = c; i < rows * channels; i += channels) {
      // Of the three terms each is rounded a few times.
      const double terms[] = {gz(i), beta_sum / rows, xhat(i) * gamma_sum / rows};
      const double want = of.scale * (terms[0] - terms[1] - terms[2]);
      const double size = std::fabs(of.scale) * (std::fabs(terms[0]) + std::fabs(terms[1]) + std::fabs(terms[2]));
      REQUIRE(std::fabs(grad_product[i] - want) <= 4 * FLT_EPSILON * size, "row %ld of %ld", long(i / channels),
              long(rows));
    }
  }
}

// Statistics by themselves, of factor times the product.
void statistics(Input& in, int64_t rows, int64_t channels) {
  const auto product = multiples(rows * channels, 0.5f, 11);
  const float factor = in.pick({1.f, 4.f});
  std::vector<float> mean(channels, -77), var(channels, -77), scale(channels, -77), shift(channels, -77);
  BatchNormStatistics<float> a{};
  a.rows = rows;
  a.channels = channels;
  a.product = product.data();
  a.factor = factor;
  a.norm.eps = 1e-3f;
  a.mean = mean.data();
  a.var = var.data();
  a.scale = scale.data();
  a.shift = shift.data();
  cpu::batch_norm_statistics(a, cut_for);
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0, squares = 0;
    for (int64_t i = c; i < rows * channels; i += channels) {
      const double u = factor * product[i];
      sum += u;
      squares += u * u;
    }
    float m = 0, v = 0;
    moments(sum, squares, rows, m, v);
    const Normalised<float> n = normalise(a.norm, c, m, v);
    REQUIRE(mean[c] == m && var[c] == v, "channel %ld of %ld", long(c), long(channels));
    REQUIRE(scale[c] == n.scale && shift[c] == n.shift, "channel %ld of %ld", long(c), long(channels));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input in(data, size);
  std::optional<ProductLayer> layer = any_layer(in);
  if (!layer || layer->args.neurons == 0) return 0;
  Neuron<float>& a = layer->args;
  const int64_t channels = layer->shape.outputs;
  const std::vector<float> gamma = multiples(channels, 0.5f, 9), beta = multiples(channels, 0.25f, 5);
  const float gain = in.pick({1.f, 0.5f, 3.f});
  std::vector<float> product(a.neurons, -77), mean(channels, -77), var(channels, -77);
  const BatchNorm<float> affine{in.maybe(&gain), 1, in.maybe(gamma.data()), in.maybe(beta.data()), 1e-5f};
  const LayerNorm norm{affine, product.data(), mean.data(), var.data()};
  const Outputs<float> out(a);
  cpu::run_normalised(layer->layer(), norm, cut_for);

  const PlainNorm want(*layer, norm);
  REQUIRE(product == want.product, "%s", text(*layer).c_str());
  REQUIRE(mean == want.mean, "%s", text(*layer).c_str());
  REQUIRE(var == want.var, "%s", text(*layer).c_str());
  a.scale = want.scale.data();
  a.shift = want.shift.data();
  REQUIRE(agree(a, layer->expected()), "%s", text(*layer).c_str());
  backward(in, a.neurons / channels, channels);
  statistics(in, a.neurons / channels, channels);
  return 0;
}
