// Elementwise operations and pooling of spike planes of any size, compared with plain loops.
#include "check.h"
#include "kernels/planes/bits.h"
#include "kernels/planes/pool.h"
#include "plain.h"

using namespace tandem;
using namespace tandem::test;

namespace {

std::vector<uint8_t> any_bytes(Input& in, int64_t n) {
  std::vector<uint8_t> out(n);
  const int64_t factor = in.range(0, 255), most = in.range(0, 255);
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<uint8_t>((i * factor + in.range(0, 255)) & most);
  return out;
}

void spikes(Input& in) {
  const int64_t neurons = in.range(0, 1000);
  const auto T = static_cast<int32_t>(in.range(1, std::clamp<int64_t>((1 << 17) / (neurons + 1), 1, 1000)));
  const int32_t P = (T + 7) / 8;
  const int32_t size = in.pick({1, 2, 4, 8});
  const bool floating = size > 1 && in.flag();
  const std::vector<uint8_t> bytes = any_bytes(in, T * neurons * size);
  std::vector<uint8_t> planes(P * neurons, 255), want(P * neurons);
  for (int64_t i = 0; i < T * neurons; ++i) {
    bool spike = false;
    for (int b = 0; b < size; ++b) {  // the last byte holds the sign
      spike |= (bytes[i * size + b] & (floating && b == size - 1 ? 0x7f : 0xff)) != 0;
    }
    want[i / neurons / 8 * neurons + i % neurons] |= static_cast<uint8_t>(spike << (i / neurons % 8));
  }
  cpu::pack(bytes.data(), size, floating, T, neurons, planes.data(), cut_for);
  CHECK(planes == want, "pack T %d neurons %ld size %d", T, long(neurons), size);

  uint64_t one = 0;
  std::memcpy(&one, any_bytes(in, size).data(), size);
  std::vector<uint8_t> dense(bytes.size(), 255);
  cpu::unpack(planes.data(), T, neurons, dense.data(), size, one, cut_for);
  for (int64_t i = 0; i < T * neurons; ++i) {
    const bool spike = planes[i / neurons / 8 * neurons + i % neurons] >> (i / neurons % 8) & 1;
    uint64_t got = 0;
    std::memcpy(&got, dense.data() + i * size, size);
    CHECK(got == (spike ? one : 0), "unpack T %d neurons %ld size %d", T, long(neurons), size);
  }

  std::vector<uint8_t> steps(T * neurons, 255);
  cpu::unpack(planes.data(), T, neurons, steps.data(), 1, 1, cut_for);
  const DType dtype = in.pick(kDTypes);
  std::vector<char> counts(neurons * size_of(dtype), '\xff');
  cpu::counts(planes.data(), P, neurons, counts.data(), dtype, cut_for);
  for (int64_t n = 0; n < neurons; ++n) {
    int count = 0;
    for (int t = 0; t < T; ++t) {
      const int spike = planes[t / 8 * neurons + n] >> (t % 8) & 1;
      CHECK(steps[t * neurons + n] == spike, "step %d of neuron %ld", t, long(n));
      count += spike;
    }
    const bool held = dtype != DType::kBFloat16 || count <= 256;
    if (held) CHECK(read(counts.data(), dtype, n) == count, "count of neuron %ld", long(n));
  }
}

// Bursts from counts, and counts from bursts.
void bursts(Input& in) {
  const auto T = static_cast<int32_t>(in.range(1, 255)), P = (T + 7) / 8;
  const int64_t neurons = in.range(0, 1000);
  const std::vector<uint8_t> counts = any_bytes(in, neurons);
  std::vector<uint8_t> planes(P * neurons, 77), again(neurons, 77);
  cpu::burst_planes(counts.data(), T, neurons, planes.data(), cut_for);
  cpu::count_bytes(planes.data(), P, neurons, again.data(), cut_for);
  for (int64_t n = 0; n < neurons; ++n) {
    const int count = std::min<int>(counts[n], T);
    CHECK(again[n] == count, "T %d, count %d", T, counts[n]);
    for (int t = 0; t < 8 * P; ++t) {
      CHECK((planes[t / 8 * neurons + n] >> t % 8 & 1) == (t < count), "T %d, count %d, step %d", T, count, t);
    }
  }
}

void gate(Input& in) {
  const int64_t neurons = in.range(0, 3000);
  const std::vector<uint8_t> mask = any_bytes(in, (neurons + 7) / 8), bytes = any_bytes(in, 4 * neurons);
  std::vector<float> grad(neurons), out(neurons, -77);
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<uint8_t*>(grad.data()));
  const double threshold = in.pick({2.0, 1.7});
  cpu::gate_grad(grad.data(), DType::kFloat32, mask.data(), threshold, neurons, out.data(), cut_for);
  for (int64_t n = 0; n < neurons; ++n) {
    const float want = mask[n / 8] >> (n % 8) & 1 ? grad[n] / static_cast<float>(threshold) : 0.f;
    CHECK(same(out[n], want), "neuron %ld: %g, not %g", long(n), out[n], want);
  }
}

void windows(Input& in) {
  Geometry g{};
  g.groups = 1;
  g.batch = in.range(0, 3);
  g.channels = in.range(1, 80);
  int64_t* sizes[] = {&g.height, &g.width};
  for (int i = 0; i < 2; ++i) {
    g.kernel[i] = in.range(1, 4);
    g.stride[i] = in.range(1, 4);
    g.padding[i] = in.range(0, 4);
    g.dilation[i] = in.range(1, 3);
    const int64_t extent = g.dilation[i] * (g.kernel[i] - 1) + 1;
    *sizes[i] = std::max(extent - 2 * g.padding[i], in.range(1, 20));
    g.after[i] = g.stride[i] * in.range(0, 1);  // ceil_mode adds an output
  }
  const int64_t pixels = g.height * g.width;
  const std::vector<uint8_t> image = any_bytes(in, g.batch * pixels * g.channels);
  const auto at = [&](int64_t i, int64_t y, int64_t x, int64_t c) {
    const bool inside = y >= 0 && y < g.height && x >= 0 && x < g.width;
    return inside ? image[((i * g.height + y) * g.width + x) * g.channels + c] : 0;
  };

  std::vector<uint8_t> pooled(g.batch * g.out_height() * g.out_width() * g.channels, 77);
  cpu::max_pool(g, Timing::kStep, image.data(), pooled.data(), cut_for);
  for (size_t n = 0; n < pooled.size(); ++n) {
    const int64_t c = n % g.channels, pixel = n / g.channels;
    const int64_t x = pixel % g.out_width(), y = pixel / g.out_width() % g.out_height();
    int want = 0;
    for (int64_t i = 0; i < g.kernel[0]; ++i) {
      for (int64_t j = 0; j < g.kernel[1]; ++j) {
        want |= at(pixel / g.out_width() / g.out_height(), y * g.stride[0] - g.padding[0] + i * g.dilation[0],
                   x * g.stride[1] - g.padding[1] + j * g.dilation[1], c);
      }
    }
    CHECK(pooled[n] == want, "byte %zu of the maximum", n);
  }

  std::vector<uint8_t> first(image.size(), 77);
  cpu::to_channels_first(image.data(), g.batch, pixels, g.channels, first.data(), cut_for);
  for (int64_t n = 0; n < g.batch * pixels * g.channels; ++n) {
    const int64_t i = n / (pixels * g.channels), c = n / pixels % g.channels, p = n % pixels;
    CHECK(first[n] == image[(i * pixels + p) * g.channels + c], "byte %ld, channels first", long(n));
  }
}

}  // namespace

FUZZ(in) {
  parts = in.range(1, 5);
  in.pick({spikes, bursts, gate, windows})(in);
}
