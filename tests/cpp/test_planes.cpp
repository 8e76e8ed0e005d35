// pack, unpack, counts and the gate against one neuron at a time.
#include <random>

#include "check.h"
#include "kernels/planes/bits.h"
#include "numbers.h"

using namespace tandem;
using namespace tandem::test;

namespace {

constexpr int32_t kSteps[] = {1, 7, 8, 9, 33, 255, 256, 1000};
constexpr int64_t kNeurons[] = {0, 1, 3, 63, 64, 65, 1000};

std::vector<double> random_spikes(int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<double> out(n);
  for (double& spike : out) spike = random() % 4 == 0 ? 1.0 : 0.0;
  return out;
}

std::vector<uint8_t> pack_one_by_one(const std::vector<double>& spikes, int32_t T, int64_t neurons) {
  std::vector<uint8_t> planes((T + 7) / 8 * neurons);
  for (int64_t i = 0; i < T * neurons; ++i) {
    const int64_t t = i / neurons, n = i % neurons;
    if (spikes[i] != 0) planes[t / 8 * neurons + n] |= static_cast<uint8_t>(1 << (t % 8));
  }
  return planes;
}

}  // namespace

TEST(pack_and_unpack_floats) {
  for (DType dtype : kDTypes) {
    for (int32_t T : kSteps) {
      for (int64_t neurons : kNeurons) {
        const std::vector<double> spikes = random_spikes(T * neurons, T);
        const std::vector<uint8_t> expected = pack_one_by_one(spikes, T, neurons);
        const std::vector<char> dense = encode(spikes, dtype);
        const auto size = static_cast<int32_t>(size_of(dtype));
        std::vector<uint8_t> planes(expected.size(), 255);
        cpu::pack(dense.data(), size, true, T, neurons, planes.data(), serial_for);
        CHECK(planes == expected, "pack dtype %d T %d neurons %d", static_cast<int>(dtype), T,
              static_cast<int>(neurons));

        uint64_t one = 0;
        std::memcpy(&one, encode({1.0}, dtype).data(), size);
        std::vector<char> back(dense.size(), '\xff');
        cpu::unpack(planes.data(), T, neurons, back.data(), size, one, serial_for);
        CHECK(back == dense, "unpack dtype %d T %d neurons %d", static_cast<int>(dtype), T, static_cast<int>(neurons));
      }
    }
  }
}

TEST(pack_knows_what_nonzero_is) {
  const float floats[] = {0.0f, -0.0f, 1e-45f, -3.0f};
  uint8_t planes[4] = {};
  cpu::pack(floats, sizeof(float), true, 1, 4, planes, serial_for);
  CHECK(planes[0] == 0 && planes[1] == 0 && planes[2] == 1 && planes[3] == 1, "floats: both zeros are silent");
  const int32_t integers[] = {0, INT32_MIN, 1, -1};
  cpu::pack(integers, sizeof(int32_t), false, 1, 4, planes, serial_for);
  CHECK(planes[0] == 0 && planes[1] == 1 && planes[2] == 1 && planes[3] == 1, "integers: the sign bit is a bit");
}

TEST(counts_are_the_popcounts) {
  for (DType dtype : kDTypes) {
    for (int32_t T : kSteps) {
      for (int64_t neurons : kNeurons) {
        const std::vector<double> spikes = random_spikes(T * neurons, T + 1);
        const std::vector<uint8_t> planes = pack_one_by_one(spikes, T, neurons);
        std::vector<char> counts(neurons * size_of(dtype), '\xff');
        cpu::counts(planes.data(), (T + 7) / 8, neurons, counts.data(), dtype, serial_for);
        for (int64_t n = 0; n < neurons; ++n) {
          double expected = 0;
          for (int32_t t = 0; t < T; ++t) expected += spikes[t * neurons + n];
          if (dtype == DType::kBFloat16 && expected > 256) continue;  // which it need not hold
          CHECK(read(counts.data(), dtype, n) == expected, "dtype %d T %d neurons %d neuron %d",
                static_cast<int>(dtype), T, static_cast<int>(neurons), static_cast<int>(n));
        }
      }
    }
  }
}

TEST(bursts_have_their_spikes_first) {
  for (int32_t T : {1, 7, 8, 9, 33, 255}) {
    for (int64_t neurons : {0, 1, 65, 256}) {
      std::vector<uint8_t> counts(neurons), planes((T + 7) / 8 * neurons, 77), again(neurons, 77);
      for (int64_t n = 0; n < neurons; ++n) counts[n] = static_cast<uint8_t>(n * 37);
      cpu::burst_planes(counts.data(), T, neurons, planes.data(), serial_for);
      cpu::count_bytes(planes.data(), (T + 7) / 8, neurons, again.data(), serial_for);
      for (int64_t n = 0; n < neurons; ++n) {
        const int count = std::min<int>(counts[n], T);
        CHECK(again[n] == count, "T %d, count %d", T, counts[n]);
        for (int t = 0; t < (T + 7) / 8 * 8; ++t) {
          CHECK((planes[t / 8 * neurons + n] >> t % 8 & 1) == (t < count), "T %d, count %d, step %d", T, counts[n], t);
        }
      }
    }
  }
}

TEST(gate_divides_where_open) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  const double threshold = 1.7;
  for (DType dtype : kDTypes) {
    for (int64_t neurons : kNeurons) {
      std::vector<double> values(neurons);
      for (double& value : values) value = normal(random);
      const std::vector<char> grad = encode(values, dtype);
      std::vector<uint8_t> mask((neurons + 7) / 8);
      for (uint8_t& byte : mask) byte = random() & 255;
      std::vector<char> out(grad.size(), '\xff');
      cpu::gate_grad(grad.data(), dtype, mask.data(), threshold, neurons, out.data(), serial_for);
      for (int64_t n = 0; n < neurons; ++n) {
        const bool open = (mask[n / 8] >> (n % 8)) & 1;
        const double g = read(grad.data(), dtype, n), got = read(out.data(), dtype, n);
        const double expected = open ? g / threshold : 0.0;
        // Half an ulp of the type, and that of the float division before it.
        const double epsilon = dtype == DType::kFloat64   ? 1e-15
                               : dtype == DType::kFloat32 ? 1.2e-7
                               : dtype == DType::kFloat16 ? 5e-4
                                                          : 4e-3;
        CHECK(std::abs(got - expected) <= epsilon * std::abs(expected) + (dtype == DType::kFloat16 ? 6e-8 : 0.0),
              "dtype %d neurons %d neuron %d: %g, not %g", static_cast<int>(dtype), static_cast<int>(neurons),
              static_cast<int>(n), got, expected);
      }
    }
  }
}

TEST(threads_do_not_change_the_result) {
  constexpr int32_t T = 9;
  constexpr int64_t neurons = 100003;
  const std::vector<double> spikes = random_spikes(T * neurons, 1);
  const std::vector<char> dense = encode(spikes, DType::kFloat32);
  std::vector<uint8_t> planes(2 * neurons);
  cpu::pack(dense.data(), sizeof(float), true, T, neurons, planes.data(), threads_for);
  CHECK(planes == pack_one_by_one(spikes, T, neurons), "pack");

  std::vector<char> back(dense.size()), serial(neurons * sizeof(float)), threaded(serial.size());
  cpu::unpack(planes.data(), T, neurons, back.data(), sizeof(float), 0x3f800000u, threads_for);
  CHECK(back == dense, "unpack");

  cpu::counts(planes.data(), 2, neurons, serial.data(), DType::kFloat32, serial_for);
  cpu::counts(planes.data(), 2, neurons, threaded.data(), DType::kFloat32, threads_for);
  CHECK(serial == threaded, "counts");

  cpu::gate_grad(dense.data(), DType::kFloat32, planes.data(), 2.0, neurons, serial.data(), serial_for);
  cpu::gate_grad(dense.data(), DType::kFloat32, planes.data(), 2.0, neurons, threaded.data(), threads_for);
  CHECK(serial == threaded, "gate");
}
