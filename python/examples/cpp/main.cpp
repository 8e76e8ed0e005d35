// classify NETWORK INPUT... [--answers] [--follow]: runs a frozen network on samples, and prints the spike count of
// each layer and the class of each sample.
//
// NETWORK is a file of FrozenNetwork.save(). INPUT, one for each input of the network, has raw float32 numbers: samples
// in the input's shape, one after the other; of pixels 0 to 255. For a network that takes spikes they are 0 or 1, and a
// sample is T such arrays: [batch, T, C, H, W]. With --answers the network's outputs follow the class. A network with
// several answers has a line for each, with its name. With --follow the samples are a stream. A network with window
// timing sees them as the frames of a video; its neurons follow from one answer to the next. One with step timing has
// an answer after each of its T steps, and begins anew with each sample.
#include <kernels/cpu/workspace.h>
#include <kernels/planes/bits.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <map>
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
    for (const uint8_t count : counts) spikes_[instruction] += count;
  }
  void print() const {
    for (const auto& [instruction, sum] : spikes_) {
      const size_t i = static_cast<size_t>(instruction);
      std::printf("layer %s: %.0f spikes\n", i < names_.size() ? names_[i].c_str() : "", sum);
    }
  }

 private:
  const std::vector<std::string>& names_;
  std::map<int64_t, double> spikes_;  // of all pieces
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

// Pixels [batch, channels, pixels], 0 to 255, as counts [batch, pixels, channels].
std::vector<uint8_t> counts_of(const float* x, int64_t batch, const Shape& shape) {
  const int64_t pixels = shape.height * shape.width;
  std::vector<uint8_t> counts(batch * shape.features());
  for (int64_t i = 0; i < batch * shape.features(); ++i) {
    const int64_t b = i / shape.features(), c = i / pixels % shape.channels, pixel = i % pixels;
    if (!(x[i] >= 0 && x[i] <= 255 && x[i] == std::floor(x[i])))
      throw std::runtime_error("the network takes pixels, 0 to 255, not " + std::to_string(x[i]));
    counts[(b * pixels + pixel) * shape.channels + c] = static_cast<uint8_t>(x[i]);
  }
  return counts;
}

// The samples of an input of the network.
class Samples {
 public:
  Samples(const Network& network, size_t k, const char* path)
      : pixels(network.program().is_pixels(static_cast<int64_t>(k))),
        shape(network.sample(k)),
        spikes_(network.program().is_spiking(static_cast<int64_t>(k)) && !pixels),
        T_(network.program().header.T),
        x_(read_floats(path)) {
    if (shape.dims == 0 || T_ == 0) {
      throw std::runtime_error(
          "the file has no shape of its input, or no T: call the frozen network before it is saved");
    }
    if (x_.size() % size() != 0) {
      throw std::runtime_error("the input is not a number of samples of " + std::to_string(size()) + " floats");
    }
  }

  int64_t batch() const { return static_cast<int64_t>(x_.size() / size()); }

  // All steps of some samples, or one step, as the executor takes them; valid until the next call.
  const void* all(int64_t first, int64_t n) { return at(first, n, 0, T_); }
  const void* step(int64_t sample, int64_t t) { return at(sample, 1, t, 1); }

  const bool pixels;  // which are counts
  const Shape shape;

 private:
  size_t size() const { return static_cast<size_t>(shape.features() * (spikes_ ? T_ : 1)); }
  const void* at(int64_t first, int64_t n, int64_t t, int64_t steps) {
    const float* from = x_.data() + first * size();
    if (pixels) planes_ = counts_of(from, n, shape);
    if (pixels) return planes_.data();
    if (!spikes_) return from;
    planes_ = planes_of(from + t * shape.features(), n, steps, shape);
    return planes_.data();
  }

  bool spikes_;
  int64_t T_;
  std::vector<float> x_;
  std::vector<uint8_t> planes_;
};

// Shows the samples one after the other, as a stream.
void follow(const Network& network, const std::vector<std::string>& names, const std::vector<Shape>& shapes,
            const uint8_t* prepared, std::vector<Samples>& inputs, bool values) {
  const int64_t T = network.program().header.T;
  const bool by_step = network.stepwise() == Mode::kSteps;

  const Plan plan = network.plan(shapes, 1, T, network.stepwise());
  tandem::cpu::Workspace memory;
  Answers answers(network, plan, names);
  int64_t steps = 0, moved = 0, operations = 0;
  Frame frame;  // what stays the same
  frame.prepared = prepared;
  frame.answers = answers.places();
  frame.state = memory.take<uint8_t>(plan.state);
  frame.steps = kUntilRest;
  frame.taken = &steps, frame.moved = &moved, frame.synapses = &operations;

  for (int64_t sample = 0; sample < inputs[0].batch(); ++sample) {
    for (int64_t t = 0; t < (by_step ? T : 1); ++t) {
      PlainNumbers host;  // its results stay valid until the step ends
      frame.inputs.clear();
      for (Samples& x : inputs) frame.inputs.push_back(by_step ? x.step(sample, t) : x.all(sample, 1));
      frame.host = &host;
      frame.begins = by_step ? t == 0 : sample == 0;
      network.step(plan, frame);
      std::string facts = "; " + std::to_string(by_step ? t + 1 : steps) + " steps";
      if (!by_step) facts += ", " + std::to_string(operations) + " operations";
      answers.print(0, sample, values, facts);
    }
  }
}

void classify(const char* path, const std::vector<const char*>& files, bool values, bool follows) {
  const FrozenFile file = FrozenFile::read(read_bytes(path));
  const Network network(file.program.data(), file.program.size(), file.numbers(), file.bytes);
  tandem::cpu::Workspace memory;
  uint8_t* prepared = memory.take<uint8_t>(network.prepared_size());
  network.prepare(prepared, tandem::serial_for);

  if (files.size() != network.program().inputs.size()) {
    throw std::runtime_error("the network takes " + std::to_string(network.program().inputs.size()) + " inputs");
  }
  std::vector<Samples> inputs;
  std::vector<Shape> shapes;
  for (size_t k = 0; k < files.size(); ++k) {
    inputs.emplace_back(network, k, files[k]);
    shapes.push_back(inputs[k].shape);
    if (inputs[k].batch() != inputs[0].batch()) throw std::runtime_error("the inputs have other numbers of samples");
  }
  if (follows) return follow(network, file.names, shapes, prepared, inputs, values);
  const int64_t batch = inputs[0].batch();
  const Plan plan = network.plan(shapes, batch, network.program().header.T, Mode::kWindow);
  Answers answers(network, plan, file.names);
  CountingNumbers host(file.names);
  Call call;
  for (Samples& x : inputs) {
    call.inputs.push_back(x.all(0, batch));
    if (x.pixels) call.timing = tandem::Timing::kWindow;
  }
  call.prepared = prepared;
  call.answers = answers.places();
  call.host = &host;
  network.run(plan, call);
  host.print();

  for (int64_t b = 0; b < batch; ++b) answers.print(b, b, values, "");
}

}  // namespace

int main(int argc, char** argv) {
  bool values = false, follows = false, known = argc >= 3;
  std::vector<const char*> files;
  for (int i = 2; i < argc; ++i) {
    const std::string option = argv[i];
    values |= option == "--answers";
    follows |= option == "--follow";
    if (option.rfind("--", 0) != 0) files.push_back(argv[i]);
    known &= option.rfind("--", 0) != 0 || option == "--answers" || option == "--follow";
  }
  if (!known || files.empty()) {
    std::fprintf(stderr, "usage: %s NETWORK INPUT... [--answers] [--follow]\n", argv[0]);
    return 2;
  }
  try {
    classify(argv[1], files, values, follows);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "classify: %s\n", error.what());
    return 1;
  }
  return 0;
}
