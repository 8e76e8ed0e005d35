// Products and pools of real numbers in plain loops, with sums in double: the functions that the executor needs from
// its caller.
#pragma once

#include <kernels/network/executor.h>

#include <algorithm>
#include <deque>
#include <limits>
#include <vector>

class PlainNumbers : public tandem::network::Host {
 public:
  using RealLayer = tandem::network::RealLayer;

  const float* product(const RealLayer& w, const float* weight, const float* bias, const float* x) override {
    const auto& i = w.instruction;
    std::vector<float>& y = keep(w);
    float* out = y.data();
    const int64_t step = step_of(w);
    const int64_t group = i.outputs / i.groups;
    for (int64_t b = 0; b < w.batch; ++b, x += w.in.features()) {
      for (int64_t row = 0; row < w.out.height; ++row) {
        for (int64_t column = 0; column < w.out.width; ++column) {
          for (int64_t n = 0; n < i.outputs; ++n) {
            const float* taps = weight + n * i.channels * i.kernel_h * i.kernel_w;
            double sum = bias == nullptr ? 0 : bias[n];
            for (int64_t c = 0; c < i.channels; ++c, taps += i.kernel_h * i.kernel_w) {
              const float* image = plane(w, x, n / group * i.channels + c);
              over_patch(w, row, column, [&](int64_t tap, int64_t at) { sum += double{taps[tap]} * image[at * step]; });
            }
            *out++ = static_cast<float>(sum);
          }
        }
      }
    }
    return y.data();
  }

  const float* mean(const RealLayer& w, const float* x) override {
    const bool adaptive =
        static_cast<tandem::network::Kind>(w.instruction.kind) == tandem::network::Kind::adaptive_mean;
    const int64_t step = step_of(w);
    return pool(w, [&](int64_t b, int64_t c, int64_t row, int64_t column) {
      const float* image = plane(w, x + b * w.in.features(), c);
      double sum = 0, taps = static_cast<double>(w.instruction.kernel_h * w.instruction.kernel_w);
      if (!adaptive) {
        over_patch(w, row, column, [&](int64_t, int64_t at) { sum += image[at * step]; });
      } else {
        const int64_t top = row * w.in.height / w.out.height, left = column * w.in.width / w.out.width;
        const int64_t bottom = ((row + 1) * w.in.height + w.out.height - 1) / w.out.height;
        const int64_t right = ((column + 1) * w.in.width + w.out.width - 1) / w.out.width;
        for (int64_t i = top; i < bottom; ++i) {
          for (int64_t j = left; j < right; ++j) sum += image[(i * w.in.width + j) * step];
        }
        taps = static_cast<double>((bottom - top) * (right - left));
      }
      return static_cast<float>(sum / taps);
    });
  }

  const float* maximum(const RealLayer& w, const float* x) override {
    return pool(w, [&](int64_t b, int64_t c, int64_t row, int64_t column) {
      const float* image = plane(w, x + b * w.in.features(), c);
      float most = -std::numeric_limits<float>::infinity();
      over_patch(w, row, column, [&](int64_t, int64_t at) { most = std::max(most, image[at * step_of(w)]); });
      return most;
    });
  }

  const float* upsampled(const RealLayer& w, const float* x) override {
    const int64_t step = step_of(w);
    const bool corners = w.instruction.ceil != 0;
    return pool(w, [&](int64_t b, int64_t c, int64_t row, int64_t column) {
      const float* image = plane(w, x + b * w.in.features(), c);
      const Between y(row, w.out.height, w.in.height, corners), z(column, w.out.width, w.in.width, corners);
      const auto at = [&](int64_t i, int64_t j) { return double{image[(i * w.in.width + j) * step]}; };
      const double above = (1 - z.share) * at(y.first, z.first) + z.share * at(y.first, z.second);
      const double below = (1 - z.share) * at(y.second, z.first) + z.share * at(y.second, z.second);
      return static_cast<float>((1 - y.share) * above + y.share * below);
    });
  }

  const float* gathered(const RealLayer& w, const int32_t* index, const float* x) override {
    std::vector<float>& y = keep(w);
    tandem::network::gather_features(w, index, x, y.data());
    return y.data();
  }

  void forget(int64_t results) override {
    kept_.erase(kept_.end() - std::min<int64_t>(results, kept_.size()), kept_.end());
  }

 private:
  // The two places of a line of n between which place i of its upsampled line lies, and the share of the second.
  struct Between {
    int64_t first, second;
    double share;

    Between(int64_t i, int64_t upsampled, int64_t n, bool corners) {
      const double scale =
          corners ? (upsampled > 1 ? double(n - 1) / double(upsampled - 1) : 0) : double(n) / double(upsampled);
      const double at = corners ? scale * double(i) : std::max(0.0, scale * (double(i) + 0.5) - 0.5);
      first = std::min(static_cast<int64_t>(at), n - 1);
      second = std::min(first + 1, n - 1);
      share = at - double(first);
    }
  };

  // Where a channel of a sample begins, and the distance between its pixels.
  static const float* plane(const RealLayer& w, const float* x, int64_t channel) {
    return x + channel * (w.channels_last ? 1 : w.in.height * w.in.width);
  }
  static int64_t step_of(const RealLayer& w) { return w.channels_last ? w.in.channels : 1; }

  // Calls f(tap, pixel) for every tap of the kernel at this position that is inside of the image.
  template <class F>
  static void over_patch(const RealLayer& w, int64_t row, int64_t column, const F& f) {
    const auto& i = w.instruction;
    for (int64_t k = 0; k < i.kernel_h; ++k) {
      const int64_t y = row * i.stride_h - i.padding_h + k * i.dilation_h;
      if (y < 0 || y >= w.in.height) continue;
      for (int64_t l = 0; l < i.kernel_w; ++l) {
        const int64_t x = column * i.stride_w - i.padding_w + l * i.dilation_w;
        if (x >= 0 && x < w.in.width) f(k * i.kernel_w + l, y * w.in.width + x);
      }
    }
  }

  template <class F>
  const float* pool(const RealLayer& w, const F& f) {
    std::vector<float>& y = keep(w);
    float* out = y.data();
    for (int64_t b = 0; b < w.batch; ++b) {
      for (int64_t c = 0; c < w.out.channels; ++c) {
        for (int64_t row = 0; row < w.out.height; ++row) {
          for (int64_t column = 0; column < w.out.width; ++column) *out++ = f(b, c, row, column);
        }
      }
    }
    return y.data();
  }

  std::vector<float>& keep(const RealLayer& w) { return kept_.emplace_back(w.batch * w.out.features()); }

  std::deque<std::vector<float>> kept_;
};
