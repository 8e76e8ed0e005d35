// Which of two ways is faster here and now. They have the same bits, so what was measured may choose between them: the
// cost model knows neither this processor nor its neighbours, who may take three quarters of a matrix unit away.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "plan.h"

namespace tandem::cpu {

// What was measured of layers, each known by a key. Any number of threads may share it.
//
// Every call is timed but the short ones. A way's time falls to a faster call at once, and rises to a slower one in
// small steps, so that one interrupted call is soon forgotten. Of the slower way nothing would be heard again; so after
// many calls, more where it is far slower, one takes it: fewer than 1% of the calls, and of their time.
class Clock {
 public:
  using Now = int64_t (*)();  // nanoseconds

  static constexpr double kShortest = 20e3;     // nanoseconds of calls that are not timed
  static constexpr int kCallsPerTrial = 128;    // of a way that is equally fast
  static constexpr int kOctave = 1024;          // times are stored as logarithms
  static constexpr int kSlowly = kOctave / 16;  // a time's rise by a call

  explicit Clock(Now now) : now_(now) {}

  // A way's time, of both ways; how many calls since the last trial; whose they are. 8 bytes: threads see all or none.
  struct Times {
    uint16_t tag, calls, log[2];
  };

  struct Call {
    int way;  // 0 or 1
    bool trial;
    std::atomic<Times>* times;  // null: the call is not timed
    uint16_t tag;
    int other;  // log of the other way's time, over that of this one, by the model
    int64_t begin;
  };

  // A layer's call begins, which takes so many nanoseconds by the cost model.
  Call begin(uint64_t key, double first, double second);
  void end(const Call& call);

 private:
  Now now_;
  std::array<std::atomic<Times>, 1024> times_{};  // where two keys meet, the later one begins anew
};

// What is timed: calls of different tasks do not compare.
enum class Task { kSpikes, kProduct, kNormalised };

// That of the process.
Clock& shared_clock();

// The way of a call of a layer, timed from here to end().
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

// The way that TANDEM_PATH (lists | matrix | dense) fixes for all layers that may choose, else Way::kFastest; with
// "model" nothing is timed. Throws std::runtime_error where it says anything else, or the processor has no such way.
Way fixed_way();

}  // namespace tandem::cpu
