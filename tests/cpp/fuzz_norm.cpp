// Batch normalisation, forward and backward, of products of any shape, compared with plain loops.
#include "fuzz_layer.h"
#include "kernels/batch_norm.h"

using namespace tandem;
using namespace tandem::test;

namespace {

// Statistics of the product and, from them, what the neurons are scaled and shifted by.
struct PlainNorm {
  std::vector<float> product, mean, var, scale, shift;

  PlainNorm(const ProductLayer& layer, const BatchNormForward& norm) {
    const int64_t channels = layer.shape.outputs, rows = layer.args.neurons / channels;
    for (int64_t n = 0; n < layer.args.neurons; ++n) {
      float u = 0;
      for (int t = 0; t < layer.T; ++t) u += layer.current(t, n);
      product.push_back(u);
    }
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0, squares = 0;
      for (int64_t r = 0; r < rows; ++r) {
        const double u = product[r * channels + c];
        sum += u;
        squares += u * u;
      }
      const double m = sum / static_cast<double>(rows), variance = squares / static_cast<double>(rows) - m * m;
      mean.push_back(static_cast<float>(m));
      var.push_back(static_cast<float>(std::max(variance, 0.0)));
      const float gain = norm.gain ? *norm.gain : 1.f;
      const float rstd = 1.f / std::sqrt(gain * gain * var[c] + norm.eps);
      const float slope = norm.gamma ? norm.gamma[c] * rstd : rstd;
      scale.push_back(slope * gain);
      shift.push_back((norm.beta ? norm.beta[c] : 0.f) - gain * mean[c] * slope);
    }
  }
};

std::vector<float> multiples(int64_t n, float unit, int period) {
  std::vector<float> out(n);
  for (int64_t i = 0; i < n; ++i) out[i] = unit * static_cast<float>(1 + i * 7 % period - period / 2);
  return out;
}

// All operands are small multiples of powers of two, so that no order of additions shows.
void backward(Input& in, int64_t rows, int64_t channels) {
  const auto grad = multiples(rows * channels, 0.25f, 13), product = multiples(rows * channels, 0.5f, 11);
  const auto mean = multiples(channels, 0.5f, 5), rstd = multiples(channels, 0.25f, 3);
  const auto slope = multiples(channels, 0.5f, 7), gain = multiples(channels, 1, 3);
  std::vector<uint8_t> mask((rows * channels + 7) / 8);
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = static_cast<uint8_t>(in.range(0, 255) + 37 * i);
  std::vector<float> grad_product(rows * channels, -77), grad_gamma(channels, -77), grad_beta(channels, -77);
  const BatchNormGrad<float> a{
      rows,         channels,    grad.data(), mask.data(),         product.data(),    mean.data(),     rstd.data(),
      slope.data(), gain.data(), 2,           grad_product.data(), grad_gamma.data(), grad_beta.data()};
  cpu::batch_norm_grad(a, cut_for);
  const auto gz = [&](int64_t i) { return mask[i / 8] >> (i % 8) & 1 ? grad[i] / 2 : 0.f; };
  const auto xhat = [&](int64_t i) {
    const int64_t c = i % channels;
    return (gain[c] * product[i] - gain[c] * mean[c]) * rstd[c];
  };
  for (int64_t c = 0; c < channels; ++c) {
    double beta = 0, gamma = 0;
    for (int64_t i = c; i < rows * channels; i += channels) {
      beta += gz(i);
      gamma += gz(i) * xhat(i);
    }
    REQUIRE(grad_beta[c] == static_cast<float>(beta), "channel %ld of %ld", long(c), long(channels));
    REQUIRE(grad_gamma[c] == static_cast<float>(gamma), "channel %ld of %ld", long(c), long(channels));
    const float n = static_cast<float>(rows);
    for (int64_t i = c; i < rows * channels; i += channels) {
      const float want = gain[c] * slope[c] * (gz(i) - grad_beta[c] / n - xhat(i) * grad_gamma[c] / n);
      REQUIRE(grad_product[i] == want, "row %ld of %ld", long(i / channels), long(rows));
    }
  }
  std::vector<double> sum(channels, -77), squares(channels, -77);
  cpu::channel_sums(product.data(), rows, channels, sum.data(), squares.data(), cut_for);
  for (int64_t c = 0; c < channels; ++c) {
    double want = 0, want_squares = 0;
    for (int64_t i = c; i < rows * channels; i += channels) {
      want += product[i];
      want_squares += product[i] * product[i];
    }
    REQUIRE(sum[c] == want && squares[c] == want_squares, "channel %ld of %ld", long(c), long(channels));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input in(data, size);
  std::optional<ProductLayer> layer = any_layer(in);
  if (!layer || layer->args.neurons == 0) return 0;
  NeuronArgs<float>& a = layer->args;
  const int64_t channels = layer->shape.outputs;
  const std::vector<float> gamma = multiples(channels, 0.5f, 9), beta = multiples(channels, 0.25f, 5);
  const float gain = in.pick({1.f, 0.5f, 3.f});
  std::vector<float> product(a.neurons, -77), mean(channels, -77), var(channels, -77);
  const BatchNormForward norm{
      in.maybe(&gain), in.maybe(gamma.data()), in.maybe(beta.data()), 1e-5f, product.data(), mean.data(), var.data()};
  const Outputs<float> out(a);
  REQUIRE(cpu::product_norm_if(layer->product, norm, a, cut_for), "%s", text(*layer).c_str());

  const PlainNorm want(*layer, norm);
  REQUIRE(product == want.product, "%s", text(*layer).c_str());
  REQUIRE(mean == want.mean, "%s", text(*layer).c_str());
  REQUIRE(var == want.var, "%s", text(*layer).c_str());
  a.scale = want.scale.data();
  a.shift = want.shift.data();
  REQUIRE(agree(a, layer->expected()), "%s", text(*layer).c_str());
  backward(in, a.neurons / channels, channels);
  return 0;
}
