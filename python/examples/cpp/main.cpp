// classify NETWORK INPUT [--answers] [--follow]: runs a frozen network on samples, and prints the spike count of each
// layer and the class of each sample.
//
// NETWORK is a file of FrozenNetwork.save(). INPUT has raw float32 numbers: samples
// in the network's input shape, one after the other. For a network that takes spikes they are 0 or 1, and a sample is T
// such arrays: [batch, T, C, H, W]. With --answers the network's outputs follow the class. A network with several
// answers has a line for each, with its name. With --follow the samples
// are a stream. A network with window timing sees them as the frames of a video; its neurons follow from one answer to
// the next. One with step timing has an answer after each of its T steps, and begins anew with each sample.
#include <kernels/cpu/workspace.h>
#include <kernels/planes/bits.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "frozen_file.h"
#include "plain_numbers.h"

namespace {

using namespace tandem::network;

std::string read_bytes(const char* path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream.good()) throw std::runtime_error(std::string("cannot open ") + path);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

std::vector<float> read_floats(const char* path) {
  const std::string bytes = read_bytes(path);
  if (bytes.empty() || bytes.size() % sizeof(float) != 0)
    throw std::runtime_error(std::string(path) + " has " + std::to_string(bytes.size()) + " bytes, no whole float32s");
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

// Spikes [batch, T, C, pixels] as planes [P, batch, pixels, C].
std::vector<uint8_t> planes_of(const float* x, int64_t batch, int64_t T, const Shape& shape) {
  const int64_t features = shape.features(), pixels = shape.height * shape.width;
  std::vector<uint8_t> planes((T + 7) / 8 * batch * features);
  for (int64_t i = 0; i < batch * T * features; ++i) {
    const int64_t b = i / features / T, t = i / features % T, c = i % features / pixels, pixel = i % pixels;
    if (x[i] != 0 && x[i] != 1)
      throw std::runtime_error("the network takes spikes, 0 or 1, not " + std::to_string(x[i]));
    if (x[i] != 0) planes[(t / 8 * batch + b) * features + pixel * shape.channels + c] |= 1 << t % 8;
  }
  return planes;
}

class CountingNumbers : public PlainNumbers {
 public:
  explicit CountingNumbers(const std::vector<std::string>& names) : names_(names) {}

  void fired(int64_t instruction, tandem::Timing timing, const uint8_t* train, int64_t bytes) override {
    std::vector<uint8_t> counts(train, train + bytes);
    if (timing == tandem::Timing::kStep) tandem::cpu::count_bytes(train, 1, bytes, counts.data(), tandem::serial_for);
    double sum = 0;
    for (const uint8_t count : counts) sum += count;
    const size_t i = static_cast<size_t>(instruction);
    std::printf("layer %s: %.0f spikes\n", i < names_.size() ? names_[i].c_str() : "", sum);
  }

 private:
  const std::vector<std::string>& names_;
};

// The memory of a network's answers.
class Answers {
 public:
  Answers(const Network& network, const Plan& plan, const std::vector<std::string>& names) : plan_(plan) {
    for (size_t k = 0; k < plan.answers.size(); ++k) {
      rows_.emplace_back(plan.batch * plan.answers[k].features());
      if (plan.answers.size() > 1) names_.push_back(", " + names.at(network.program().answers[k]));
    }
  }

  std::vector<float*> places() {
    std::vector<float*> places;
    for (std::vector<float>& row : rows_) places.push_back(row.data());
    return places;
  }

  // `end` follows on each line.
  void print(int64_t b, int64_t sample, bool values, const std::string& end) const {
    for (size_t k = 0; k < rows_.size(); ++k) {
      const int64_t outputs = plan_.answers[k].features();
      const float* row = rows_[k].data() + b * outputs;
      std::printf("sample %ld%s: ", static_cast<long>(sample), names_.empty() ? "" : names_[k].c_str());
      if (std::any_of(row, row + outputs, [](float value) { return std::isnan(value); }))
        std::printf("no class, as a potential is not finite");
      else
        std::printf("class %td", std::max_element(row, row + outputs) - row);
      for (int64_t n = 0; n < outputs && values; ++n) std::printf(" %.9g", row[n]);
      std::printf("%s\n", end.c_str());
    }
  }

 private:
  const Plan& plan_;
  std::vector<std::vector<float>> rows_;
  std::vector<std::string> names_;
};

// Shows the samples one after the other, as a stream.
void follow(const Network& network, const std::vector<std::string>& names, const Shape& shape, const uint8_t* prepared,
            const std::vector<float>& x, bool values) {
  const int64_t T = network.program().header.T;
  const bool spikes = network.program().value(kNetworkInput) == Value::kStepTrain;
  const bool by_step = network.stepwise() == Mode::kSteps;
  const int64_t shown = spikes && !by_step ? T : 1;  // steps of spikes in an input
  const int64_t inputs = by_step ? T : 1;            // of a sample
  const int64_t size = shape.features() * shown;

  const Plan plan = network.plan(shape, 1, T, network.stepwise());
  tandem::cpu::Workspace memory;
  Answers answers(network, plan, names);
  int64_t steps = 0, moved = 0, operations = 0;
  Frame frame;  // what stays the same
  frame.prepared = prepared;
  frame.answers = answers.places();
  frame.state = memory.take<uint8_t>(plan.state);
  frame.steps = kUntilRest;
  frame.taken = &steps, frame.moved = &moved, frame.synapses = &operations;

  const float* last = x.data() + x.size();
  int64_t sample = 0;
  for (const float* from = x.data(); from < last; ++sample) {
    for (int64_t t = 0; t < inputs; ++t) {
      PlainNumbers host;  // its results stay valid until the step ends
      const std::vector<uint8_t> planes = spikes ? planes_of(from, 1, shown, shape) : std::vector<uint8_t>();
      frame.input = spikes ? static_cast<const void*>(planes.data()) : from;
      frame.host = &host;
      frame.begins = by_step ? t == 0 : sample == 0;
      network.step(plan, frame);
      std::string facts = "; " + std::to_string(by_step ? t + 1 : steps) + " steps";
      if (!by_step) facts += ", " + std::to_string(operations) + " operations";
      answers.print(0, sample, values, facts);
      if (spikes || t == inputs - 1) from += size;  // else the image again
    }
  }
}

void classify(const char* path, const char* input, bool values, bool follows) {
  const FrozenFile file = FrozenFile::read(read_bytes(path));
  const Network network(file.program.data(), file.program.size(), file.numbers(), file.bytes);
  tandem::cpu::Workspace memory;
  uint8_t* prepared = memory.take<uint8_t>(network.prepared_size());
  network.prepare(prepared, tandem::serial_for);

  const Header& header = network.program().header;
  if (header.dims == 0 || header.T == 0) {
    throw std::runtime_error("the file has no shape of its input, or no T: call the frozen network before it is saved");
  }
  const Shape shape{header.dims, header.channels, header.height, header.width};
  const bool spikes = network.program().value(kNetworkInput) == Value::kStepTrain;
  const std::vector<float> x = read_floats(input);
  const auto sample = static_cast<size_t>(shape.features() * (spikes ? header.T : 1));
  if (x.size() % sample != 0) {
    throw std::runtime_error("the input is not a number of samples of " + std::to_string(sample) + " floats");
  }
  const auto batch = static_cast<int64_t>(x.size() / sample);
  if (follows) return follow(network, file.names, shape, prepared, x, values);
  const std::vector<uint8_t> planes = spikes ? planes_of(x.data(), batch, header.T, shape) : std::vector<uint8_t>();
  const Plan plan = network.plan(shape, batch, header.T, Mode::kWindow);
  Answers answers(network, plan, file.names);
  CountingNumbers host(file.names);
  Call call;
  call.input = spikes ? static_cast<const void*>(planes.data()) : x.data();
  call.prepared = prepared;
  call.answers = answers.places();
  call.host = &host;
  network.run(plan, call);

  for (int64_t b = 0; b < batch; ++b) answers.print(b, b, values, "");
}

}  // namespace

int main(int argc, char** argv) {
  bool values = false, follows = false, known = argc >= 3;
  for (int i = 3; i < argc; ++i) {
    const std::string option = argv[i];
    values |= option == "--answers";
    follows |= option == "--follow";
    known &= option == "--answers" || option == "--follow";
  }
  if (!known) {
    std::fprintf(stderr, "usage: %s NETWORK INPUT [--answers] [--follow]\n", argv[0]);
    return 2;
  }
  try {
    classify(argv[1], argv[2], values, follows);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "classify: %s\n", error.what());
    return 1;
  }
  return 0;
}
