// Frozen networks from fuzzed bytes: the words of a program, its numbers, and the file around them. A bad program is
// refused by an exception; any other runs within its memory. The seeds are the example's file, one with currents
// (test_currents.py: its blocks, with 8 bits) and one with attention (tokens.py), in which some bytes are changed; the
// checksum is renewed, or every change would be refused.
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "../../python/examples/cpp/frozen_file.h"
#include "../../python/examples/cpp/plain_numbers.h"
#include "../../python/examples/cpp/sha256.h"
#include "check.h"
#include "kernels/cpu/workspace.h"

using namespace tandem;
using namespace tandem::network;
using namespace tandem::test;

namespace {

std::string read_seed(const char* path) {
  std::ifstream stream(path, std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  CHECK(!content.empty(), "no file %s", path);
  return content;
}

const std::string& seed(Input& in) {
  static const std::string digits = read_seed(TANDEM_SEED), currents = read_seed(TANDEM_CURRENTS),
                           tokens = read_seed(TANDEM_TOKENS);
  return in.flag() ? digits : in.flag() ? currents : tokens;
}

std::string signed_anew(std::string content) {
  const size_t at = content.find("\"checksum\":\"") + 12;
  if (at > content.size() || content.size() - at < 64) return content;
  content.replace(at, 64, 64, '0');
  return content.replace(at, 64, Sha256::of(content));
}

// Memory for the answers after each of some steps.
struct Answers {
  Answers(const Plan& plan, int64_t steps) {
    for (const Shape& answer : plan.answers) rows.emplace_back(steps * plan.batch * answer.features());
    for (std::vector<float>& row : rows) places.push_back(row.data());
  }
  std::vector<std::vector<float>> rows;
  std::vector<float*> places;
};

// Steps of a stream. At rest, neurons that follow have the answer of the window.
void step(const Network& network, const Plan& plan, const uint8_t* prepared, const std::vector<const void*>& inputs,
          uint8_t* state, int64_t most, Input& in) {
  const bool follows = plan.mode == Mode::kFollowing;
  Answers answers(plan, 1), whole(plan, 1);
  std::vector<int64_t> facts(3 * plan.batch);
  std::vector<std::vector<int8_t>> moves;
  std::vector<int8_t*> places;
  for (const Plan::Step& one : plan.steps) {
    moves.emplace_back(plan.batch * one.out.features());
    places.push_back(moves.back().data());
  }
  int64_t* each = facts.data();
  Frame frame;
  frame.inputs = inputs;
  frame.prepared = prepared;
  frame.answers = answers.places;
  frame.parallel = cut_for;
  frame.state = state;
  frame.taken = each, frame.moved = each + plan.batch, frame.synapses = each + 2 * plan.batch;
  for (int64_t step = 0; step <= most; ++step) {
    PlainNumbers host;
    frame.host = &host;
    if (follows) {
      frame.advances = in.flag();
      for (size_t k = 0; k < inputs.size(); ++k) frame.inputs[k] = frame.begins || in.flag() ? inputs[k] : nullptr;
      frame.moves = in.flag() ? places.data() : nullptr;
      if (step == most) frame.inputs = inputs, frame.advances = false, frame.moves = nullptr, frame.steps = 1 << 20;
    }
    network.step(plan, frame);
    frame.begins = false;
  }
  if (!follows) return;
  PlainNumbers host;
  const Plan window = network.plan(plan.samples, plan.batch, plan.T, Mode::kWindow);
  network.run(window, {inputs, Timing::kStep, prepared, false, whole.places, &host, cut_for});
  for (size_t k = 0; k < answers.rows.size(); ++k) {
    const std::vector<float>&at_rest = answers.rows[k], &expected = whole.rows[k];
    const size_t bytes = at_rest.size() * sizeof(float);
    CHECK(bytes == 0 || std::memcmp(at_rest.data(), expected.data(), bytes) == 0, "at rest, another answer");
  }
}

// Runs a network as a whole and step by step, unless it needs much memory or time.
void run(const FrozenFile& file, Input& in) {
  const Network network(file.program.data(), static_cast<int64_t>(file.program.size()), file.numbers(), file.bytes);
  if (network.prepared_size() > 1 << 22) return;
  tandem::cpu::Workspace memory;
  uint8_t* prepared = memory.take<uint8_t>(network.prepared_size());
  network.prepare(prepared, cut_for);

  const network::Header& header = network.program().header;
  const size_t number = network.program().inputs.size();
  if (number > 8) return;
  std::vector<Shape> shapes;
  for (size_t k = 0; k < number; ++k) {
    Shape& shape = shapes.emplace_back(network.sample(k));
    if (shape.dims == 0 || in.range(0, 3) == 0) {
      shape = {in.range(1, 3), in.range(1, 9), 1, 1};
      if (shape.dims > 1) shape.width = in.range(1, 9);
      if (shape.dims > 2) shape.height = in.range(1, 9);
    }
  }
  const int64_t T = header.T == 0 ? in.range(1, 17) : header.T, batch = in.range(0, 3);
  const Mode mode = in.flag() ? network.stepwise() : Mode::kWindow;
  const Plan plan = network.plan(shapes, batch, T, mode);
  int64_t work = 0;
  for (const Shape& shape : shapes) {
    work += shape.features() * T;
    if (work > 1 << 22) return;
  }
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Instruction& one = network.program().instructions[i];
    const bool has_weights = network.program().kind(static_cast<int64_t>(i)) == Kind::layer;
    const int64_t taps = std::min<int64_t>(one.kernel_h * one.kernel_w, 1 << 20);
    const int64_t inputs = has_weights ? taps * std::min<int64_t>(one.channels, 1 << 20) : std::max<int64_t>(taps, 1);
    if (plan.steps[i].out.features() > 1 << 20 || inputs > 1 << 20) return;
    work += plan.steps[i].out.features() * inputs;
  }
  if (work > 1 << 22 || plan.workspace > 1 << 24 || plan.state > 1 << 24) return;

  std::vector<std::vector<uint8_t>> planes;
  std::vector<std::vector<float>> images;
  std::vector<const void*> inputs;
  bool spikes = false;
  for (size_t k = 0; k < number; ++k) {
    const bool spiking = network.program().is_spiking(static_cast<int64_t>(k));
    planes.emplace_back(spiking ? sheets(T, Timing::kStep) * batch * shapes[k].features() : 0, 0x55);
    images.emplace_back(spiking ? 0 : batch * shapes[k].features(), 0.5f);
    inputs.push_back(spiking ? static_cast<const void*>(planes[k].data()) : images[k].data());
    spikes = spikes || spiking;
  }

  uint8_t* state = memory.take<uint8_t>(plan.state);
  const int64_t most = std::min<int64_t>(in.range(2, 40), 2 + (1 << 24) / std::max<int64_t>(work, 1));
  if (mode != Mode::kWindow) return step(network, plan, prepared, inputs, state, most, in);
  const bool every_step = in.flag(), window = spikes && network.reads_counts() && in.flag();
  const Answers answers(plan, every_step ? T : 1);
  PlainNumbers host;
  network.run(plan,
              {inputs, window ? Timing::kWindow : Timing::kStep, prepared, every_step, answers.places, &host, cut_for});
}

// Gives window timing to the layers before some instruction, or to those from it on, and puts a conversion of trains
// between the two parts.
void wait(FrozenFile& file, Input& in) {
  constexpr size_t header = sizeof(network::Header) / sizeof(int64_t), row = sizeof(Instruction) / sizeof(int64_t);
  const auto size = static_cast<int64_t>((file.program.size() - header) / row);
  std::vector<Instruction> all(size);
  std::memcpy(all.data(), file.program.data() + header, size * sizeof(Instruction));
  const int64_t where = in.range(0, size);
  const bool first = in.flag();
  for (int64_t i = 0; i < size; ++i) all[i].timing = (i < where) == first ? 1 : 0;
  if (where > 0 && where < size && in.range(0, 7) > 0) {
    Instruction move = all[where];
    move.kind = static_cast<int64_t>(first ? Kind::burst : Kind::popcount);
    move.axes = move.outputs = move.channels = move.few_bits = move.v_size_h = move.v_size_w = move.timing = 0;
    move.kernel_h = move.kernel_w = move.stride_h = move.stride_w = move.dilation_h = move.dilation_w = 1;
    move.padding_h = move.padding_w = move.after_h = move.after_w = 0;
    move.weight = move.step = move.scale = move.shift = move.residual_scale = move.residual = move.v_init = kAbsent;
    move.index = kAbsent, move.by_channel = 0;
    for (int64_t i = where; i < size; ++i) {
      all[i].input += all[i].input >= where ? 1 : 0;
      all[i].residual += all[i].residual >= where ? 1 : 0;
    }
    all[where].input = where;
    all.insert(all.begin() + where, move);
  }
  file.program.resize(header + all.size() * row);
  std::memcpy(file.program.data() + header, all.data(), all.size() * sizeof(Instruction));
  file.program[header - 1] = static_cast<int64_t>(all.size());
}

}  // namespace

FUZZ(in) {
  parts = in.range(1, 3);
  const auto junk = [&] {
    const int64_t exact = in.pick<int64_t>({-1, 0, 1, 2, 3, 7, 255, 65535, 1 << 30, INT64_MAX, INT64_MIN, -2});
    return in.flag() ? exact : in.range(-3, 70);
  };
  try {
    if (in.flag()) {  // change bytes of the file
      std::string content = seed(in);
      for (int64_t changes = in.range(0, 4); changes > 0; --changes) {
        const auto header = std::min<int64_t>(600, static_cast<int64_t>(content.size()));
        const int64_t at = in.range(0, in.flag() ? header : static_cast<int64_t>(content.size()));
        const int64_t n = std::min<int64_t>(in.range(0, 9), static_cast<int64_t>(content.size()) - at);
        if (in.flag()) {
          content.replace(at, n, static_cast<size_t>(in.range(0, 9)), static_cast<char>(in.range(0, 255)));
        } else if (at < static_cast<int64_t>(content.size())) {
          content[at] = static_cast<char>(content[at] ^ 1 << in.range(0, 7));
        }
      }
      run(FrozenFile::read(signed_anew(content)), in);
    } else {  // change words of the program
      FrozenFile file = FrozenFile::read(seed(in));
      if (in.flag()) {  // instructions that the example's network lacks
        constexpr size_t header = sizeof(network::Header) / sizeof(int64_t),
                         row = sizeof(Instruction) / sizeof(int64_t);
        const auto last = static_cast<int64_t>((file.program.size() - header) / row) - 1;
        auto& one = reinterpret_cast<Instruction&>(file.program[header + row * in.range(0, last)]);
        one.v_init = 0, one.v_size_h = in.range(0, 9), one.v_size_w = in.range(0, 9);
        one.residual = in.range(kNetworkInput, last), one.fires = in.range(0, 1);
        one.after_h = in.range(0, 1), one.after_w = in.range(0, 1);
        if (in.flag()) file.program[3] = in.range(0, 2);  // the source
        if (in.range(0, 3) == 0) {                        // another input, or an answer
          one = {};
          one.kind = static_cast<int64_t>(in.flag() ? Kind::input : Kind::output);
          one.input = in.range(kNetworkInput, last),
          one.residual = one.weight = one.step = one.scale = one.shift = kAbsent;
          one.residual_scale = one.v_init = one.index = kAbsent,
          one.fires = one.groups = one.kernel_h = one.kernel_w = 1;
          one.stride_h = one.stride_w = one.dilation_h = one.dilation_w = 1, one.axes = in.range(0, 2);
          one.first = in.range(0, 2), one.outputs = one.kind == static_cast<int64_t>(Kind::input) ? in.range(0, 9) : 0;
          const double unit = 1;
          std::memcpy(&one.threshold, &unit, sizeof(unit));
          one.leak = one.gain = one.threshold;
        }
      }
      if (in.flag()) wait(file, in);
      const auto words = static_cast<int64_t>(file.program.size());
      for (int64_t changes = in.range(0, 4); changes > 0; --changes) file.program[in.range(0, words - 1)] = junk();
      if (in.range(0, 7) == 0) file.program.resize(in.range(0, words));
      if (in.range(0, 7) == 0) file.bytes = in.range(0, file.bytes);
      run(file, in);
    }
  } catch (const std::exception&) {
  }
}
