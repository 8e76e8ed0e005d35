// How fast the matrix unit (AMX) can be: the nanoseconds of one product of tiles, by itself and with the loads and
// stores that a layer needs.
//
//     g++ -O2 -march=sapphirerapids tests/benchmarks/matrix_unit.cpp -o build/matrix_unit && build/matrix_unit
//
// `build/matrix_unit load` multiplies until it is killed: a neighbour for tests/benchmarks/clock.py.
#include <immintrin.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <random>
#include <vector>

namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

constexpr int kChunks = 13, kFewChunks = 6;
constexpr int kBlocks = 32;                              // of rows: their spikes fit the L2 cache and not the L1 cache
alignas(64) uint8_t spikes[kBlocks][2][kChunks * 1024];  // of two steps
alignas(64) int8_t digits[kChunks][3][1024];
alignas(64) int32_t sums[6][256];

enum class Load { kPlain, kStream };

void products() {
  for (int c = 0; c < kChunks; ++c) {
    _tile_dpbusd(0, 6, 7);
    _tile_dpbusd(1, 6, 7);
    _tile_dpbusd(2, 6, 7);
    _tile_dpbusd(3, 6, 7);
    _tile_dpbusd(4, 6, 7);
    _tile_dpbusd(5, 6, 7);
  }
}

template <Load L>
void load_spikes(const uint8_t* p) {
  if constexpr (L == Load::kPlain) _tile_loadd(6, p, 64);
  if constexpr (L == Load::kStream) _tile_stream_loadd(6, p, 64);
}

// Two steps of spikes times three digits, as product/matrix_unit/multiply.cpp does it: seven loads for six products.
template <int Chunks, Load L>
void three_digits(int block) {
  for (int c = 0; c < Chunks; ++c) {
    load_spikes<L>(spikes[block][0] + c * 1024);
    _tile_loadd(7, digits[c][0], 64);
    _tile_dpbusd(0, 6, 7);
    _tile_loadd(7, digits[c][1], 64);
    _tile_dpbusd(1, 6, 7);
    _tile_loadd(7, digits[c][2], 64);
    _tile_dpbusd(2, 6, 7);
    load_spikes<L>(spikes[block][1] + c * 1024);
    _tile_dpbusd(5, 6, 7);
    _tile_loadd(7, digits[c][1], 64);
    _tile_dpbusd(4, 6, 7);
    _tile_loadd(7, digits[c][0], 64);
    _tile_dpbusd(3, 6, 7);
  }
}

void store() {
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  _tile_stored(4, sums[4], 64);
  _tile_stored(5, sums[5], 64);
}

double seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <class F>
void measure(const char* name, int chunks, const F& call) {
  std::vector<double> times;
  for (int round = 0; round < 15; ++round) {
    const double start = seconds();
    for (int i = 0; i < 2000; ++i) call(i % kBlocks);
    times.push_back((seconds() - start) / 2000);
  }
  std::nth_element(times.begin(), times.begin() + 7, times.end());
  std::printf("%-66s %.2f ns\n", name, 1e9 * times[7] / (6 * chunks));
}

}  // namespace

int main(int count, char** words) {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return std::puts("no matrix unit"), 1;
  // Memory that was never written would be one page of zeros, in the L1 cache at all times.
  std::mt19937 random(1);
  for (auto& block : spikes)
    for (auto& step : block) std::generate(std::begin(step), std::end(step), [&] { return random() & 1; });
  for (auto& chunk : digits)
    for (auto& digit : chunk) std::generate(std::begin(digit), std::end(digit), random);
  const TileConfig config;
  _tile_loadconfig(&config);
  while (count > 1 && std::strcmp(words[1], "load") == 0) products();
  measure("products alone", kChunks, [](int) { products(); });
  measure("two steps times three digits, all from the L1 cache", kFewChunks,
          [](int) { three_digits<kFewChunks, Load::kPlain>(0); });
  measure("spikes from the L2 cache", kChunks, three_digits<kChunks, Load::kPlain>);
  measure("spikes from the L2 cache, loaded as what is needed once", kChunks, three_digits<kChunks, Load::kStream>);
  measure("the same, and the sums stored", kChunks, [](int block) {
    three_digits<kChunks, Load::kStream>(block);
    store();
  });
  _tile_release();
}
