// Elementwise work and windows of spike planes of any size, compared with plain loops.
#include <vector>

#include "fuzz.h"
#include "kernels/planes/bits.h"
#include "kernels/planes/moves.h"
#include "numbers.h"

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
  const int32_t T = static_cast<int32_t>(in.range(1, 255)), P = (T + 7) / 8;
  const int64_t neurons = in.range(0, 1000);
  const int32_t size = in.pick({1, 2, 4, 8});
  const bool floating = size > 1 && in.flag();
  const std::vector<uint8_t> bytes = any_bytes(in, T * neurons * size);
  std::vector<uint8_t> planes(P * neurons, 255), want(P * neurons);
  for (int64_t i = 0; i < T * neurons; ++i) {
    bool spike = false;
    for (int b = 0; b < size; ++b) {  // the last byte has the sign
      spike |= (bytes[i * size + b] & (floating && b == size - 1 ? 0x7f : 0xff)) != 0;
    }
    want[i / neurons / 8 * neurons + i % neurons] |= static_cast<uint8_t>(spike << (i / neurons % 8));
  }
  cpu::pack(bytes.data(), size, floating, T, neurons, planes.data(), cut_for);
  REQUIRE(planes == want, "pack T %d neurons %ld size %d", T, long(neurons), size);

  uint64_t one = 0;
  std::memcpy(&one, any_bytes(in, size).data(), size);
  std::vector<uint8_t> dense(bytes.size(), 255);
  cpu::unpack(planes.data(), T, neurons, dense.data(), size, one, cut_for);
  for (int64_t i = 0; i < T * neurons; ++i) {
    const bool spike = planes[i / neurons / 8 * neurons + i % neurons] >> (i / neurons % 8) & 1;
    uint64_t got = 0;
    std::memcpy(&got, dense.data() + i * size, size);
    REQUIRE(got == (spike ? one : 0), "unpack T %d neurons %ld size %d", T, long(neurons), size);
  }

  std::vector<uint8_t> steps(T * neurons, 255);
  cpu::unpack(planes.data(), T, neurons, steps.data(), 1, 1, cut_for);
  const DType dtype = in.pick({DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64});
  std::vector<char> counts(neurons * size_of(dtype), '\xff');
  cpu::counts(planes.data(), P, neurons, counts.data(), dtype, cut_for);
  for (int64_t n = 0; n < neurons; ++n) {
    int count = 0;
    for (int t = 0; t < T; ++t) {
      const int spike = planes[t / 8 * neurons + n] >> (t % 8) & 1;
      REQUIRE(steps[t * neurons + n] == spike, "step %d of neuron %ld", t, long(n));
      count += spike;
    }
    REQUIRE(read(counts.data(), dtype, n) == count, "count of neuron %ld", long(n));
  }
}

void gate(Input& in) {
  const DType dtype = in.pick({DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64});
  const int64_t neurons = in.range(0, 3000);
  const std::vector<uint8_t> mask = any_bytes(in, (neurons + 7) / 8), grad = any_bytes(in, neurons * size_of(dtype));
  std::vector<char> out(grad.size(), '\xff');
  cpu::gate_grad(grad.data(), dtype, mask.data(), 2.0, neurons, out.data(), cut_for);
  for (int64_t n = 0; n < neurons; ++n) {
    const double g = read(grad.data(), dtype, n), got = read(out.data(), dtype, n);
    const bool open = mask[n / 8] >> (n % 8) & 1;
    if (!open) REQUIRE(got == 0, "neuron %ld", long(n));
    const double least = dtype == DType::kFloat16 ? 1e-4 : dtype == DType::kFloat64 ? 1e-300 : 1e-37;
    if (open && std::isfinite(g) && std::fabs(g) > least) REQUIRE(got == g / 2, "neuron %ld: %g", long(n), got);
    if (open && std::isnan(g)) REQUIRE(std::isnan(got), "neuron %ld", long(n));
  }
}

void windows(Input& in) {
  PoolWindow w{};
  w.images = in.range(0, 3);
  w.channels = in.range(1, 80);
  int64_t* sizes[] = {&w.height, &w.width};
  int64_t* outs[] = {&w.out_height, &w.out_width};
  for (int i = 0; i < 2; ++i) {
    w.kernel[i] = in.range(1, 4);
    w.stride[i] = in.range(1, 4);
    w.padding[i] = in.range(0, 4);
    w.dilation[i] = in.range(1, 3);
    const int64_t extent = w.dilation[i] * (w.kernel[i] - 1) + 1;
    *sizes[i] = std::max(extent - 2 * w.padding[i], in.range(1, 20));
    *outs[i] = (*sizes[i] + 2 * w.padding[i] - extent) / w.stride[i] + in.range(0, 1) + 1;  // ceil_mode has one more
  }
  const int64_t pixels = w.height * w.width;
  const std::vector<uint8_t> image = any_bytes(in, w.images * pixels * w.channels);
  const auto at = [&](int64_t i, int64_t y, int64_t x, int64_t c) {
    const bool inside = y >= 0 && y < w.height && x >= 0 && x < w.width;
    return inside ? image[((i * w.height + y) * w.width + x) * w.channels + c] : 0;
  };

  std::vector<uint8_t> pooled(w.images * w.out_height * w.out_width * w.channels, 77);
  cpu::max_pool(w, image.data(), pooled.data(), cut_for);
  for (size_t n = 0; n < pooled.size(); ++n) {
    const int64_t c = n % w.channels, pixel = n / w.channels;
    const int64_t x = pixel % w.out_width, y = pixel / w.out_width % w.out_height;
    int want = 0;
    for (int64_t i = 0; i < w.kernel[0]; ++i) {
      for (int64_t j = 0; j < w.kernel[1]; ++j) {
        want |= at(pixel / w.out_width / w.out_height, y * w.stride[0] - w.padding[0] + i * w.dilation[0],
                   x * w.stride[1] - w.padding[1] + j * w.dilation[1], c);
      }
    }
    REQUIRE(pooled[n] == want, "byte %zu of the maximum", n);
  }

  std::vector<uint8_t> first(image.size(), 77);
  cpu::to_channels_first(image.data(), w.images, pixels, w.channels, first.data(), cut_for);
  for (int64_t n = 0; n < w.images * pixels * w.channels; ++n) {
    const int64_t i = n / (pixels * w.channels), c = n / pixels % w.channels, p = n % pixels;
    REQUIRE(first[n] == image[(i * pixels + p) * w.channels + c], "byte %ld, channels first", long(n));
  }

  const int64_t below = in.range(0, 4), right = in.range(0, 4), wide = w.width + right, high = w.height + below;
  std::vector<uint8_t> padded(w.images * high * wide * w.channels, 77);
  cpu::pad_after(image.data(), w.images, w.height, w.width, w.channels, below, right, padded.data(), cut_for);
  for (size_t n = 0; n < padded.size(); ++n) {
    const int64_t pixel = n / w.channels;
    const int want = at(pixel / wide / high, pixel / wide % high, pixel % wide, n % w.channels);
    REQUIRE(padded[n] == want, "byte %zu of the padded image", n);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input in(data, size);
  parts = in.range(1, 5);
  const auto kind = in.range(0, 2);
  kind == 0 ? spikes(in) : kind == 1 ? gate(in) : windows(in);
  return 0;
}
