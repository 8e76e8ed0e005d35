// Chooses the faster of two ways by measured times. Both give the same bits, so the choice is free. The cost model
// knows neither this processor nor what else runs on it: neighbours may take three quarters of a matrix unit.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "plan.h"

namespace tandem::cpu {

// The measured times of layers, by key. Any number of threads may share a clock.
//
// All calls but the short ones are timed. The stored time of a way falls to that of a faster call at once and rises in
// small steps, so that one interrupted call is soon forgotten. The slower way would never be measured again, so now and
// then a call tries it, the more rarely the slower it is: fewer than 1% of the calls and of their time.
class Clock {
 public:
  using Now = int64_t (*)();  // nanoseconds

  static constexpr double kShortest = 20e3;     // nanoseconds; shorter calls are not timed
  static constexpr int kCallsPerTrial = 128;    // for a way that is equally fast
  static constexpr int kOctave = 1024;          // a factor of two: times are stored as logarithms
  static constexpr int kSlowly = kOctave / 16;  // the most that one call raises a time

  explicit Clock(Now now) : now_(now) {}

  // log: the times of both ways. calls: those since the last trial. tag: part of the key. 8 bytes, so that a thread
  // sees all of them or none.
  struct Times {
    uint16_t tag, calls, log[2];
  };

  struct Call {
    int way;  // 0 or 1
    bool trial;
    std::atomic<Times>* times;  // null if the call is not timed
    uint16_t tag;
    int other;  // log of the other way's time over this one's, by the model
    int64_t begin;
  };

  // Begins a call of a layer. first, second: the nanoseconds of the two ways by the cost model.
  Call begin(uint64_t key, double first, double second);
  void end(const Call& call);

 private:
  Now now_;
  std::array<std::atomic<Times>, 1024> times_{};  // if two keys collide, the later one starts anew
};

// What a call computes: times of different tasks do not compare.
enum class Task { kSpikes, kProduct, kNormalised };

// The clock of the process.
Clock& shared_clock();

// The way of one call of a layer, timed from construction to end().
class TimedWay {
 public:
  TimedWay(const Layer& layer, const Ways& ways, Task task, Clock& clock = shared_clock());
  Way way() const { return way_; }
  void end() const { clock_.end(call_); }

 private:
  Way way_;
  Clock& clock_;
  Clock::Call call_{};
};

// The way that TANDEM_PATH (lists | matrix | dense) sets for all layers that may choose, else Way::kFastest. With
// "model" the cost model decides and nothing is timed. Throws std::runtime_error for any other value, and for a way
// that the processor lacks.
Way fixed_way();

}  // namespace tandem::cpu
