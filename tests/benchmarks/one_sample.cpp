// Where the time of an unprepared linear layer goes with one row (AVX-512): reading the weights, measuring them for the
// unit, gathering those of active inputs; and two ideas that were not kept.
//
// g++ -std=c++17 -O2 -I csrc tests/benchmarks/one_sample.cpp csrc/kernels/product/active.cpp
//     csrc/kernels/cpu/capability.cpp -o one_sample && ./one_sample
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <functional>
#include <random>

#include "kernels/product/active.h"

using namespace tandem;
using namespace tandem::cpu;

namespace {

constexpr int64_t kInputs = 784, kOutputs = 800, kLayers = 4, kRounds = 40;  // four layers: more than the L2 cache

double microseconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return 1e6 * static_cast<double>(t.tv_sec) + 1e-3 * static_cast<double>(t.tv_nsec);
}

TANDEM_TARGET_V4 int64_t read(const float* row) {
  __m512i any{};
  for (int64_t k = 0; k < kInputs; k += kLanes) any = _mm512_or_si512(any, _mm512_loadu_si512(row + k));
  return _mm512_reduce_or_epi32(any);
}

TANDEM_TARGET_V4 int64_t measure(const float* row, float factor) {
  return measure_magnitudes<kLanes>(row, kInputs, factor).sum;
}

// The same sum by two operations less: adding a large number, rounded towards zero, truncates.
TANDEM_TARGET_V4 int64_t measure_by_rounding(const float* row, float factor) {
  const __m512 large = _mm512_set1_ps(8388608.f / factor);
  __m512i most{}, lanes{};
  for (int64_t k = 0; k < kInputs; k += kLanes) {
    const __m512i bits = _mm512_and_si512(_mm512_loadu_si512(row + k), _mm512_set1_epi32(0x7fffffff));
    const __m512 sum = _mm512_add_round_ps(_mm512_castsi512_ps(bits), large, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    most = _mm512_max_epi32(most, bits);
    lanes = _mm512_add_epi32(lanes, _mm512_sub_epi32(_mm512_castps_si512(sum), _mm512_castps_si512(large)));
  }
  return _mm512_reduce_add_epi32(lanes) + (_mm512_reduce_max_epi32(most) < 0);
}

TANDEM_TARGET_V4 int64_t gather(const ActiveInputs& active, const float* row, float factor, float* out) {
  return gather_active<float>(active, row, kLanes * kInputs, factor, out).sum;
}

// The sums of eight steps from a row in the L1 cache, without a transposition: masks are [inputs / 16, 8].
TANDEM_TARGET_V4 int64_t add_under_masks(const float* row, float factor, const uint16_t* masks) {
  __m512i sums[8] = {};
  for (int64_t k = 0; k < kInputs; k += kLanes, masks += 8) {
    const auto fixed = reinterpret_cast<__m512i>(to_fixed(load_floats<kLanes>(row + k) * factor));
    for (int t = 0; t < 8; ++t) sums[t] = _mm512_mask_add_epi32(sums[t], masks[t], sums[t], fixed);
  }
  int64_t total = 0;
  for (const __m512i& sum : sums) total += _mm512_reduce_add_epi32(sum);
  return total;
}

}  // namespace

int main() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 1 / 28.f);
  std::vector<float> weights(kLayers * kOutputs * kInputs + 16 * kInputs), out(kInputs + 16);
  for (float& w : weights) w = normal(random);
  std::vector<uint8_t> planes(kInputs);  // half of the inputs are active
  for (uint8_t& p : planes) p = random() % 2 == 0 ? 0 : static_cast<uint8_t>(random() % 255 + 1);
  std::vector<uint16_t> masks(kInputs / 2);
  for (int64_t k = 0; k < 8 * kInputs; ++k) masks[k / 8 / 16 * 8 + k % 8] |= (planes[k / 8] >> k % 8 & 1) << k / 8 % 16;
  Layer layer{};
  layer.geometry = {1, 1, 1, kInputs, kOutputs, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}};
  layer.planes = planes.data();
  layer.neuron.T = 8;
  const ActiveInputs active(layer);
  const float factor = measure_of(-2), unit = power_of_two(28);
  const std::pair<const char*, std::function<int64_t(const float*)>> ways[] = {
      {"read", [](const float* row) { return read(row); }},
      {"measure", [&](const float* row) { return measure(row, factor); }},
      {"measure, by rounding", [&](const float* row) { return measure_by_rounding(row, factor); }},
      {"measure and gather", [&](const float* row) { return gather(active, row, factor, out.data()); }},
      {"measure, and add under masks",
       [&](const float* row) { return measure(row, factor) + add_under_masks(row, unit, masks.data()); }},
  };
  for (const auto& [name, way] : ways) {
    std::vector<double> times;
    int64_t sum = 0;
    for (int64_t round = 0; round < kRounds; ++round) {
      const double start = microseconds();
      for (int64_t row = 0; row < kLayers * kOutputs; ++row) sum += way(weights.data() + row * kInputs);
      times.push_back((microseconds() - start) / kLayers);
    }
    std::sort(times.begin(), times.end());
    std::printf("%-30s %6.1f us, fastest tenth %6.1f (sum %lld)\n", name, times[kRounds / 2], times[kRounds / 10],
                static_cast<long long>(sum));
  }
}
