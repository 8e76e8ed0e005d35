// Batch normalisation, forward and backward, of products of any shape.
#include <cfloat>

#include "product_layer.h"

using namespace tandem;
using namespace tandem::test;

namespace {

// The statistics of the product, and the neurons' scale and shift.
struct PlainNorm {
  std::vector<float> product, mean, var, scale, shift;

  PlainNorm(std::vector<float> of, const BatchNorm& norm, int64_t channels, double factor = 1)
      : product(std::move(of)) {
    const int64_t rows = static_cast<int64_t>(product.size()) / channels;
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0, squares = 0;
      for (int64_t r = 0; r < rows; ++r) {
        const double u = factor * product[r * channels + c];
        sum += u;
        squares += u * u;
      }
      float m = 0, v = 0;
      moments(sum, squares, rows, m, v);
      const Normalised n = normalise(norm, c, m, v);
      mean.push_back(m);
      var.push_back(v);
      scale.push_back(n.scale);
      shift.push_back(n.shift);
    }
  }
};

std::vector<float> multiples(int64_t n, float unit, int period) {
  std::vector<float> out(n);
  for (int64_t i = 0; i < n; ++i) out[i] = unit * static_cast<float>(1 + i * 7 % period - period / 2);
  return out;
}

// Compares product, statistics and neurons of a layer for these ways.
void check(ProductLayer& layer, const BatchNorm& affine, const std::vector<Way>& ways,
           const std::vector<ParallelFor>& parallels, const char* name) {
  const int64_t channels = layer.geometry.outputs;
  std::vector<float> product(layer.args.neurons), mean(channels), var(channels);
  const LayerNorm norm{affine, product.data(), mean.data(), var.data()};
  const PlainNorm want(layer.windows(), norm.norm, channels);
  layer.args.scale = want.scale.data();
  layer.args.shift = want.shift.data();
  const std::vector<PlainNeuron> neurons = layer.expected();
  for (const Way& way : ways) {
    for (ParallelFor parallel : parallels) {
      layer.way = way;
      std::fill(product.begin(), product.end(), -77.f);
      const Outputs out(layer.args);
      run_normalised(layer.layer(), norm, parallel);
      CHECK(product == want.product && mean == want.mean && var == want.var, "%s, %s", name, text(way).c_str());
      CHECK(agree(layer.args, neurons), "%s, %s", name, text(way).c_str());
    }
  }
}

// All operands are small multiples of powers of two, so that the order of additions does not matter.
void backward(Input& in, int64_t rows, int64_t channels) {
  const auto grad = multiples(rows * channels, 0.25f, 13), product = multiples(rows * channels, 0.5f, 11);
  const auto mean = multiples(channels, 0.5f, 5), gamma = multiples(channels, 0.5f, 7);
  std::vector<float> gain(channels), var(channels);
  for (int64_t c = 0; c < channels; ++c) {
    gain[c] = std::ldexp(1.f, static_cast<int>(c % 3) - 1);
    var[c] = std::ldexp(1.f, 2 * static_cast<int>(c % 4) - 2);
  }
  const int64_t gain_size = in.pick({int64_t{1}, channels});
  const BatchNorm norm{in.maybe(gain.data()), gain_size, in.maybe(gamma.data()), nullptr, 0};
  std::vector<uint8_t> mask((rows * channels + 7) / 8);
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = static_cast<uint8_t>(in.range(0, 255) + 37 * i);
  std::vector<float> grad_product(rows * channels, -77), grad_gamma(channels, -77), grad_beta(channels, -77);
  cpu::batch_norm_grad({rows, channels, grad.data(), mask.data(), product.data(), mean.data(), var.data(), norm, 2.f,
                        DType::kFloat32, grad_product.data(), grad_gamma.data(), grad_beta.data()},
                       cut_for);
  for (int64_t c = 0; c < channels; ++c) {
    const Normalised of = normalise(norm, c, mean[c], var[c]);
    const auto gz = [&](int64_t i) { return mask[i / 8] >> (i % 8) & 1 ? grad[i] / 2 : 0.f; };
    const auto xhat = [&](int64_t i) { return (of.gain * product[i] - of.gain * mean[c]) * of.rstd; };
    double beta_sum = 0, gamma_sum = 0;
    for (int64_t i = c; i < rows * channels; i += channels) {
      beta_sum += gz(i);
      gamma_sum += gz(i) * xhat(i);
    }
    CHECK(grad_beta[c] == static_cast<float>(beta_sum), "channel %ld of %ld", long(c), long(channels));
    CHECK(grad_gamma[c] == static_cast<float>(gamma_sum), "channel %ld of %ld", long(c), long(channels));
    for (int64_t i = c; i < rows * channels; i += channels) {
      // Each of the three terms is rounded a few times.
      const double terms[] = {gz(i), beta_sum / rows, xhat(i) * gamma_sum / rows};
      const double want = of.scale * (terms[0] - terms[1] - terms[2]);
      const double size = std::fabs(of.scale) * (std::fabs(terms[0]) + std::fabs(terms[1]) + std::fabs(terms[2]));
      CHECK(std::fabs(grad_product[i] - want) <= 4 * FLT_EPSILON * size, "row %ld of %ld", long(i / channels),
            long(rows));
    }
  }
}

// Statistics alone, of factor times the product.
void statistics(Input& in, int64_t rows, int64_t channels) {
  const auto product = multiples(rows * channels, 0.5f, 11);
  const float factor = in.pick({1.f, 4.f});
  std::vector<float> mean(channels, -77), var(channels, -77), scale(channels, -77), shift(channels, -77);
  const BatchNorm norm{nullptr, 1, nullptr, nullptr, 1e-3f};
  cpu::batch_norm_statistics(
      {rows, channels, product.data(), factor, norm, mean.data(), var.data(), scale.data(), shift.data()}, cut_for);
  const PlainNorm want(product, norm, channels, factor);
  CHECK(mean == want.mean && var == want.var, "%ld channels", long(channels));
  CHECK(scale == want.scale && shift == want.shift, "%ld channels", long(channels));
}

}  // namespace

TEST(a_few_rows_and_many) {
  for (const int64_t batch : {8, 80}) {
    for (const int64_t groups : {1, 2}) {
      Geometry shape = linear(8, groups == 1 ? 9 * 32 + 5 : 2 * 5 * 32, batch);
      shape.groups = groups;
      ProductLayer layer(shape, 255, 0.3, 1);
      layer.finish();
      const auto gamma = multiples(shape.outputs, 0.5f, 9), beta = multiples(shape.outputs, 0.25f, 5);
      check(layer, {nullptr, 1, gamma.data(), beta.data(), 1e-5f},
            {{Algorithm::kLists, 1}, {Algorithm::kDigits, 0}, {Algorithm::kPlain, 0}}, {serial_for, threads_for},
            "rows");
    }
  }
}

FUZZ(in) {
  std::optional<ProductLayer> layer = any_layer(in);
  if (!layer || layer->args.neurons == 0) return;
  const int64_t channels = layer->geometry.outputs, rows = layer->args.neurons / channels;
  const std::vector<float> gamma = multiples(channels, 0.5f, 9), beta = multiples(channels, 0.25f, 5);
  const float gain = in.pick({1.f, 0.5f, 3.f});
  const BatchNorm affine{in.maybe(&gain), 1, in.maybe(gamma.data()), in.maybe(beta.data()), 1e-5f};
  check(*layer, affine, {layer->way}, {cut_for}, text(*layer).c_str());
  backward(in, rows, channels);
  statistics(in, rows, channels);
}
