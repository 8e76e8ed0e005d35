// The measured choice between two ways: which one is taken, and that it changes no bit. Except in the last test time is
// simulated.
#include "kernels/product/clock.h"
#include "product_layer.h"

using namespace tandem;
using namespace tandem::cpu;
using namespace tandem::test;

namespace {

int64_t now = 0, looks = 0;

int64_t made_up() {
  ++looks;
  return now;
}

// A layer with two ways whose calls take `real` microseconds, and what the calls did.
struct Calls {
  Clock& clock;
  uint64_t key;
  double model[2];
  double real[2];
  int64_t trials = 0, of_second = 0;
  double time = 0;

  int operator()(double interruption = 0) {
    const Clock::Call call = clock.begin(key, 1e3 * model[0], 1e3 * model[1]);
    now += static_cast<int64_t>(1e3 * (real[call.way] + interruption));
    clock.end(call);
    trials += call.trial;
    of_second += call.way;
    time += real[call.way];
    return call.way;
  }
  void operator()(int64_t calls, std::nullptr_t) {
    for (int64_t i = 0; i < calls; ++i) operator()();
  }
};

constexpr uint64_t kKey = 0x1234567812345678u;

}  // namespace

TEST(the_model_is_the_start) {
  for (const int way : {0, 1}) {
    Clock clock(made_up);
    Calls calls{clock, kKey, {200, way ? 100. : 400.}, {200, way ? 100. : 400.}};
    CHECK(calls() == way, "the first call");
    calls(100, nullptr);
    CHECK(calls.of_second == way * 101 && calls.trials == 0, "%ld", long(calls.of_second));
  }
}

TEST(short_calls_are_not_timed) {
  Clock clock(made_up);
  looks = 0;
  Calls calls{clock, kKey, {30, 19.9}, {1, 100}};
  calls(1000, nullptr);
  CHECK(looks == 0 && calls.of_second == 1000 && calls.trials == 0, "%ld looks", long(looks));
  Calls longer{clock, kKey, {30, 20}, {30, 20}};
  longer();
  CHECK(looks == 2, "%ld looks", long(looks));
}

// The matrix unit's products take 4 ns, and 16 while a neighbour uses it.
TEST(a_neighbour_takes_the_second_way_away_and_gives_it_back) {
  Clock clock(made_up);
  const auto calls = [&](double second, int64_t n) {
    Calls out{clock, kKey, {500, 250}, {500, second}};
    out(n, nullptr);
    return out;
  };
  CHECK(calls(250, 1000).of_second >= 990, "undisturbed");
  const double disturbed = calls(1000, 2000).time / (2000 * 500);
  CHECK(disturbed < 1.03, "disturbed: %g of the faster way", disturbed);
  const double again = calls(250, 2000).time / (2000 * 250);
  CHECK(again < 1.2, "undisturbed again: %g", again);
  CHECK(calls(250, 1000).of_second >= 990, "undisturbed for good");
}

TEST(a_model_that_is_wrong_costs_little) {
  for (const double factor : {0.3, 0.8, 1.3, 4.0}) {
    Clock clock(made_up);
    Calls calls{clock, kKey, {100, 101}, {100, 100 * factor}};
    calls(20000, nullptr);
    const double best = 20000 * 100 * std::min(1., factor);
    CHECK(calls.time < 1.03 * best, "%g: %g", factor, calls.time / best);
  }
}

TEST(trials_are_rare) {
  for (const double factor : {1.0, 3.0, 40.0}) {
    Clock clock(made_up);
    Calls calls{clock, kKey, {100, 100.01 * factor}, {100, 100.01 * factor}};
    calls(20000, nullptr);
    CHECK(calls.trials >= 3 && calls.trials <= 200, "%ld trials", long(calls.trials));
    CHECK(calls.time < 1.01 * 20000 * 100, "%g", calls.time / (20000 * 100));
  }
}

TEST(an_interrupted_call_is_forgotten) {
  Clock clock(made_up);
  Calls calls{clock, kKey, {100, 150}, {100, 150}};
  calls(100, nullptr);
  for (int i = 0; i < 50; ++i) {
    calls(10000);
    calls(10, nullptr);
  }
  CHECK(calls.of_second <= 10, "%ld calls took the slower way", long(calls.of_second));
}

TEST(every_layer_has_times_of_its_own) {
  Clock clock(made_up);
  Calls one{clock, kKey, {100, 200}, {100, 20}}, other{clock, kKey + 1, {100, 200}, {100, 200}};
  // The times of this third layer share a place with the first one's, but not its tag.
  Calls same_place{clock, kKey ^ uint64_t{1} << 60, {100, 200}, {100, 200}};
  one(1000, nullptr);
  CHECK(one() == 1 && other() == 0, "each has its own");
  CHECK(same_place() == 0, "the later one begins anew");
}

// Each of these calls has its own times, and so starts with the model's way (lists), although lists are slow for the
// first.
TEST(calls_of_a_layer_that_do_not_compare) {
  Clock clock(made_up);
  ProductLayer given(linear(200, 150, 64), 8, 0.2, 1);
  given.finish();
  const auto way = [&](const Layer& layer, double lists_cost, Task task) {
    const Ways ways{{Way::kLists4, lists_cost}, {Way::kMatrixUnit, 1.1 * lists_cost}};
    const TimedWay timed(layer, ways, task, clock);
    now += timed.way() == Way::kLists4 ? 1000000 : 100000;
    timed.end();
    return timed.way();
  };
  Layer layer = given.layer();
  for (int i = 0; i < 300; ++i) way(layer, 5000, Task::kSpikes);
  CHECK(way(layer, 5000, Task::kSpikes) == Way::kMatrixUnit, "measured");
  CHECK(way(layer, 5100, Task::kSpikes) == Way::kMatrixUnit, "about as dense");
  CHECK(way(layer, 9000, Task::kSpikes) == Way::kLists4, "denser");
  CHECK(way(layer, 5000, Task::kNormalised) == Way::kLists4, "another task");
  CHECK(way(layer, 5, Task::kSpikes) == Way::kLists4, "too short");
  layer.neuron.T = 7;
  CHECK(way(layer, 5000, Task::kSpikes) == Way::kLists4, "fewer steps");
  layer.neuron.T = 8;
  layer.geometry.batch = 63;
  CHECK(way(layer, 5000, Task::kSpikes) == Way::kLists4, "fewer rows");
}

TEST(threads_share_times) {
  static std::atomic<int64_t> time{0}, trials{0}, wrong{0};
  static Clock clock(+[]() -> int64_t { return time += 1000; });
  constexpr int kCalls = 20000;
  const auto body = [](int64_t, int64_t, void*) {
    for (int i = 0; i < kCalls; ++i) {
      const Clock::Call call = clock.begin(kKey + i % 3, 50e3, 40e3);
      wrong += call.way != 0 && call.way != 1;
      trials += call.trial;
      clock.end(call);
    }
  };
  threads_for(4, 1, body, nullptr);
  CHECK(wrong == 0 && trials > 0 && trials <= 4 * kCalls / 100, "%ld trials", long(trials));
}

// The calls are long and frequent enough for trials; the threads share the times.
TEST(a_measured_way_changes_no_bit) {
  const auto spikes = [](Way way, int calls) {
    ProductLayer layer(linear(200, 150, 32), 8, 0.2, 1);
    layer.way = way;
    layer.finish();
    std::vector<std::vector<uint8_t>> out;
    for (int i = 0; i < calls; ++i) {
      const Outputs<float> outputs(layer.args);
      cpu::run(layer.layer(), serial_for);
      if (out.empty() || out.back() != outputs.planes) out.push_back(outputs.planes);
    }
    return out;
  };
  static std::vector<std::vector<uint8_t>> found[4];
  struct Context {
    const decltype(spikes)& of;
  } context{spikes};
  const auto body = [](int64_t begin, int64_t, void* c) {
    found[begin] = static_cast<Context*>(c)->of(Way::kFastest, 300);
  };
  threads_for(4, 1, body, &context);
  const auto expected = spikes(Way::kLists1, 1);
  for (const auto& one : found) CHECK(one == expected, "%zu results", one.size());
}
