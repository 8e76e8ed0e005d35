#include "clock.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "../cpu/capability.h"
#include "dense.h"

namespace tandem::cpu {

namespace {

// In float: glibc 2.29 has new versions of the functions for double, and wheels must load with older ones.
float log2_of(double x) { return std::log2(static_cast<float>(x)); }

int to_log(double ns) { return static_cast<int>(std::clamp(log2_of(ns) * Clock::kOctave, 0.f, 65535.f)); }

uint16_t limit(int x) { return static_cast<uint16_t>(std::clamp(x, 0, 65535)); }

}  // namespace

Clock::Call Clock::begin(uint64_t key, double first, double second) {
  Call call{second < first, false, nullptr, static_cast<uint16_t>(key >> 48 | 1), 0, 0};
  if (std::min(first, second) < kShortest) return call;
  call.times = &times_[key % times_.size()];
  Times times = call.times->load(std::memory_order_relaxed);
  if (times.tag == call.tag) {
    call.way = times.log[1] < times.log[0];
    const int slower = times.log[1 - call.way] - times.log[call.way];
    if (times.calls >= kCallsPerTrial &&
        times.calls >= kCallsPerTrial * std::exp2(static_cast<float>(slower) / kOctave)) {
      Times next = times;
      next.calls = 0;
      call.trial = call.times->compare_exchange_strong(times, next, std::memory_order_relaxed);
      if (call.trial) call.way = 1 - call.way;
    }
  }
  call.other = (call.way == 0 ? 1 : -1) * (to_log(second) - to_log(first));
  call.begin = now_();
  return call;
}

// If another thread has stored new times in between, these stay and this call's time is dropped.
void Clock::end(const Call& call) {
  if (call.times == nullptr) return;
  const int log = to_log(static_cast<double>(std::max<int64_t>(now_() - call.begin, 1)));
  Times times = call.times->load(std::memory_order_relaxed), next = times;
  uint16_t& mine = next.log[call.way];
  if (times.tag == call.tag) {
    next.calls = limit(times.calls + 1);
    mine = limit(std::min(log, mine + (call.trial ? kOctave : kSlowly)));
  } else {
    next = {call.tag, 0, {}};
    mine = limit(log);
    next.log[1 - call.way] = limit(log + call.other);
  }
  call.times->compare_exchange_strong(times, next, std::memory_order_relaxed);
}

namespace {

int64_t steady_nanoseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

enum class Path { kMeasured, kModel, kLists, kMatrix, kDense };

Path read_path() {
  const char* wish = std::getenv("TANDEM_PATH");
  if (wish == nullptr || *wish == '\0') return Path::kMeasured;
  const std::string path = wish, start = "TANDEM_PATH=" + path + ": ";
  const auto with = [&](bool has, const char* what, Path chosen) {
    if (has) return chosen;
    throw std::runtime_error(start + "this processor has no " + what + " at capability \"" +
                             capability_name(capability()) + "\"");
  };
  if (path == "model") return Path::kModel;
  if (path == "lists") return Path::kLists;
  if (path == "matrix") return with(has_matrix_unit(), "matrix unit", Path::kMatrix);
  if (path == "dense") return with(byte_products() != ByteProducts::kNone, "products of bytes", Path::kDense);
  throw std::runtime_error(start + "allowed are lists, matrix, dense, model");
}

Path path() {
  static const Path chosen = read_path();
  return chosen;
}

// A key of everything that determines how long a call takes. The input enters by the cost of its lists, to a factor of
// 1.4.
uint64_t key_of(const Layer& layer, const Ways& ways, Task task) {
  constexpr size_t kSizes = sizeof(Geometry) / sizeof(int64_t);
  int64_t words[kSizes + 6];
  std::memcpy(words, &layer.geometry, sizeof(Geometry));
  words[kSizes] = layer.neuron.T;
  words[kSizes + 1] = layer.counted();
  words[kSizes + 2] = layer.prepared != nullptr;
  words[kSizes + 3] = static_cast<int64_t>(layer.weights.dtype);
  words[kSizes + 4] = std::lround(2 * log2_of(ways.lists.cost));
  words[kSizes + 5] = static_cast<int64_t>(task);
  uint64_t key = 0;
  for (const int64_t word : words) {
    key = (key ^ static_cast<uint64_t>(word)) * 0x9e3779b97f4a7c15ull;
    key ^= key >> 32;
  }
  return key;
}

}  // namespace

Clock& shared_clock() {
  static Clock clock(steady_nanoseconds);
  return clock;
}

Way fixed_way() {
  switch (path()) {
    case Path::kLists:
      return Way::kLists;
    case Path::kMatrix:
      return Way::kMatrixUnit;
    case Path::kDense:
      return Way::kDense;
    default:
      return Way::kFastest;
  }
}

TimedWay::TimedWay(const Layer& layer, const Ways& ways, Task task, Clock& clock)
    : way_(ways.cheaper()), clock_(clock) {
  if (!ways.differ() || path() == Path::kModel) return;
  constexpr double kPerNanosecond = 3;  // units of cost
  const double rows = static_cast<double>(layer.geometry.rows() * layer.geometry.groups) / kPerNanosecond;
  call_ = clock_.begin(key_of(layer, ways, task), rows * ways.lists.cost, rows * ways.digits.cost);
  way_ = call_.way == 0 ? ways.lists.way : ways.digits.way;
}

}  // namespace tandem::cpu
