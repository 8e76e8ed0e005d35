// How fast the matrix unit (AMX) can be: the nanoseconds of one product of tiles, by itself and with the loads and
// stores that a layer needs.
//
//     g++ -O2 -march=sapphirerapids tests/benchmarks/matrix_unit.cpp -o build/matrix_unit && build/matrix_unit
#include <immintrin.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

constexpr int kChunks = 9;
alignas(64) uint8_t spikes[2][kChunks * 1024];  // of two steps
alignas(64) int8_t digits[3][kChunks * 1024];
alignas(64) int32_t sums[6][256];

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

// Two steps of spikes times three digits, as spike_dense.cpp does it: seven loads for six products.
void three_digits() {
  for (int c = 0; c < kChunks; ++c) {
    _tile_loadd(6, spikes[0] + c * 1024, 64);
    _tile_loadd(7, digits[0] + c * 1024, 64);
    _tile_dpbusd(0, 6, 7);
    _tile_loadd(7, digits[1] + c * 1024, 64);
    _tile_dpbusd(1, 6, 7);
    _tile_loadd(7, digits[2] + c * 1024, 64);
    _tile_dpbusd(2, 6, 7);
    _tile_loadd(6, spikes[1] + c * 1024, 64);
    _tile_dpbusd(5, 6, 7);
    _tile_loadd(7, digits[1] + c * 1024, 64);
    _tile_dpbusd(4, 6, 7);
    _tile_loadd(7, digits[0] + c * 1024, 64);
    _tile_dpbusd(3, 6, 7);
  }
}

// Two steps times two digits: four loads for four products.
void two_digits() {
  for (int c = 0; c < kChunks; ++c) {
    _tile_loadd(4, spikes[0] + c * 1024, 64);
    _tile_loadd(5, spikes[1] + c * 1024, 64);
    _tile_loadd(6, digits[0] + c * 1024, 64);
    _tile_loadd(7, digits[1] + c * 1024, 64);
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 5, 6);
    _tile_dpbusd(2, 4, 7);
    _tile_dpbusd(3, 5, 7);
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
void measure(const char* name, int products, const F& call) {
  std::vector<double> times;
  for (int round = 0; round < 15; ++round) {
    const double start = seconds();
    for (int i = 0; i < 2000; ++i) call();
    times.push_back((seconds() - start) / 2000);
  }
  std::nth_element(times.begin(), times.begin() + 7, times.end());
  std::printf("%-44s %.2f ns\n", name, 1e9 * times[7] / products);
}

}  // namespace

int main() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return std::puts("no matrix unit"), 1;
  const TileConfig config;
  _tile_loadconfig(&config);
  measure("products alone", 6 * kChunks, products);
  measure("two steps times three digits", 6 * kChunks, three_digits);
  measure("two steps times two digits", 4 * kChunks, two_digits);
  measure("two steps times three digits, and the stores", 6 * kChunks, [] {
    three_digits();
    store();
  });
  _tile_release();
}
