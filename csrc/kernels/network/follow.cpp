// Neurons that follow their input: a stream of a network with window timing.
//
// A neuron keeps the exact sum u of its weights times the present counts of its inputs, and its own count. In each step
// the count moves by at most one towards its target, the count that a neuron of window timing has for u (with
// every rounding of the layer). The move is its spike, 1 or -1. The input moves first, then each
// layer in the program's order, which sees the moves of this step. So u = W c always, and once nothing moves every
// count is that of the window network for the present input, whatever came before. Pixels, as real numbers, are known
// at once: they jump, and the layers that read them multiply anew.

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>

#include "../neuron/scan.h"
#include "../planes/counts.h"
#include "../planes/pool.h"
#include "../product/moving.h"
#include "follower_state.h"

namespace tandem::network {

namespace {

using cpu::Moves;
using cpu::neuron_of;

}  // namespace

class Follower : public FollowerState {
 public:
  Follower(const Network& network, const Plan& plan, const Frame& frame)
      : FollowerState(network, plan, frame), parts_(program_.size()) {}

  void operator()() {
    const int64_t batch = plan_.batch;
    if (batch == 0) return;
    std::fill_n(frame_.synapses, batch, 0);
    receive();
    std::vector<uint8_t> worked(batch, frame_.begins);
    if (std::find(rests_, rests_ + batch, 0) != rests_ + batch) make_parts();
    if (derives()) {
      take_steps_together(worked);
    } else {
      cpu::for_workers(frame_.parallel, batch, 1, [&](int64_t begin, int64_t end, cpu::Workspace& memory) {
        Changes changes = no_changes(memory);
        const Scratch scratch = take_scratch(memory);
        for (int64_t b = begin; b < end; ++b) take_steps(b, changes, scratch, worked[b]);
      });
    }
    const int64_t last = *std::max_element(frame_.taken, frame_.taken + batch);
    for (int64_t b = 0; b < batch; ++b) {
      if (frame_.taken[b] < last) frame_.moved[b] = 0;
    }
    answer_for(worked);
  }

 private:
  // A layer, for one sample.
  struct Part {
    std::optional<cpu::MovingSums> sums;  // of a layer that reads counts which move by one
    std::optional<Layer> product;         // of a layer that reads counts which jump
    Neuron neuron;
  };

  bool derives() const {
    for (int64_t i = 0; i < program_.size(); ++i) {
      if (program_.derives(i)) return true;
    }
    return false;
  }

  // --- a step of a sample --------------------------------------------------------------------------------------------

  void make_parts() {
    for (int64_t i = 0; i < program_.size(); ++i) {
      if (!program_.has_neurons(i)) continue;
      Part& part = parts_[i];
      part.neuron = neurons(i);
      part.neuron.neurons = features(i);
      if (!program_.reads_train(i)) continue;
      if (program_.jumps[instruction(i).input]) {
        part.product.emplace(layer(i, 1, part.neuron));
      } else {
        part.sums.emplace(layer(i, 1, part.neuron));
      }
    }
  }

  // What moves in a step of a sample.
  struct Changes {
    std::vector<Moves> moves;                // by value
    std::vector<std::vector<int64_t>> rows;  // of currents: those that were computed again
  };

  // What one layer of one sample needs while it is computed.
  struct Scratch {
    int32_t* sums;  // zeros before and after
    cpu::Workspace& memory;
  };

  Changes no_changes(cpu::Workspace& memory) const {
    std::vector<Moves> moves(program_.size());
    for (int64_t i = 0; i < program_.size(); ++i) {
      if (has_moves(i)) moves[i] = Moves(memory.take<int32_t>(features(i)));
    }
    return {std::move(moves), std::vector<std::vector<int64_t>>(program_.size())};
  }

  Scratch take_scratch(cpu::Workspace& memory) const {
    int64_t most_sums = 0;
    for (int64_t i = 0; i < program_.size(); ++i) most_sums = std::max(most_sums, kept(i).sums_size);
    return {memory.zeros(most_sums), memory};
  }

  void take_steps(int64_t b, Changes& changes, const Scratch& scratch, uint8_t& worked) {
    frame_.moved[b] = frame_.taken[b] = 0;
    while (rests_[b] == 0 && frame_.taken[b] < frame_.steps) {
      worked = 1;
      rests_[b] = 1;
      int64_t moved = 0;
      for (int64_t i = 0; i < program_.size(); ++i) moved += move(i, b, changes, scratch);
      if (moved == 0) return;
      frame_.moved[b] = moved;
      ++frame_.taken[b];
    }
  }

  // The same for all samples, instruction by instruction, because what is computed from currents is computed for the
  // whole batch at once: by the host's same call as in a window.
  void take_steps_together(std::vector<uint8_t>& worked) {
    const int64_t batch = plan_.batch;
    std::fill_n(frame_.moved, batch, 0), std::fill_n(frame_.taken, batch, 0);
    cpu::Workspace memory(memory_);
    std::vector<Changes> changes;
    for (int64_t b = 0; b < batch; ++b) changes.push_back(no_changes(memory));
    for (int64_t i = 0; i < program_.size(); ++i) {
      if (has_moves(i)) values_[i] = counts_of(i, 0);
      if (program_.values[i] == Value::kCurrents) values_[i] = all<float>(kept(i).currents);
    }
    std::vector<uint8_t> active(batch);
    std::vector<int64_t> moved(batch);
    for (int64_t taken = 0; taken < frame_.steps; ++taken) {
      for (int64_t b = 0; b < batch; ++b) {
        active[b] = rests_[b] == 0;
        worked[b] |= active[b];
        rests_[b] = 1;
        moved[b] = 0;
        for (Moves& none : changes[b].moves) none.clear();
        for (std::vector<int64_t>& none : changes[b].rows) none.clear();
      }
      if (std::find(active.begin(), active.end(), 1) == active.end()) return;
      for (int64_t i = 0; i < program_.size(); ++i) {
        if (program_.derives(i)) {
          if (is_due(i, changes)) derive(i, changes, active);
          continue;
        }
        cpu::for_workers(frame_.parallel, batch, 1, [&](int64_t begin, int64_t end, cpu::Workspace& workspace) {
          const Scratch scratch = take_scratch(workspace);
          for (int64_t b = begin; b < end; ++b) {
            if (active[b] != 0) moved[b] += move(i, b, changes[b], scratch);
          }
        });
      }
      for (int64_t b = 0; b < batch; ++b) {
        if (moved[b] > 0) frame_.moved[b] = moved[b], ++frame_.taken[b];
      }
    }
  }

  bool is_due(int64_t i, const std::vector<Changes>& changes) const {
    if (*marks_of(i, 0) != 0) return true;  // all or none
    const auto changed = [&](int64_t v, const Changes& of) {
      return v >= 0 && (of.moves[v].size() > 0 || !of.rows[v].empty());
    };
    return std::any_of(changes.begin(), changes.end(), [&](const Changes& of) {
      return changed(instruction(i).input, of) || changed(instruction(i).residual, of);
    });
  }

  // Computes currents again, and lists the rows that differ.
  void derive(int64_t i, std::vector<Changes>& changes, std::vector<uint8_t>& active) {
    const int64_t channels = plan_.steps[i].out.channels;
    execute(i);
    const float* now = real(i);
    auto* before = all<float>(kept(i).currents);
    values_[i] = before;
    for (int64_t b = 0; b < plan_.batch; ++b) {
      uint8_t* marks = marks_of(i, b);
      for (int64_t row = 0; row < rows(i); ++row, now += channels, before += channels) {
        if (marks[row] == 0 && std::memcmp(before, now, channels * sizeof(float)) == 0) continue;
        std::copy_n(now, channels, before);
        changes[b].rows[i].push_back(row);
        marks[row] = 0;
      }
      if (changes[b].rows[i].empty()) continue;
      active[b] = 1;
      if (program_.kind(i) == Kind::layer) {
        frame_.synapses[b] += synapses(i);
      } else if (program_.kind(i) == Kind::attention) {
        frame_.synapses[b] += rows_added(i, b) * (instruction(i).outputs / instruction(i).groups);
      }
    }
  }

  // The spikes of q and k of a sample, each of which adds a row of values.
  int64_t rows_added(int64_t i, int64_t b) const {
    const Shape& in = plan_.steps[i].in;
    const uint8_t* counts = counts_of(instruction(i).input, b);
    int64_t spikes = 0;
    for (int64_t row = 0; row < in.width; ++row, counts += in.channels) {
      spikes = std::accumulate(counts, counts + in.channels - instruction(i).outputs, spikes);
    }
    return spikes;
  }

  // One step of one instruction: lists its moves, and returns how many neurons moved.
  int64_t move(int64_t i, int64_t b, Changes& changes, const Scratch& scratch) {
    Moves& moves = changes.moves[i];
    moves.clear();
    const Kind kind = program_.kind(i);
    const int64_t from = instruction(i).input;
    if (kind == Kind::readout && program_.reads_train(i)) {
      frame_.synapses[b] += changes.moves[from].size() * instruction(i).outputs;
    } else if (program_.has_neurons(i)) {
      find_targets(i, b, changes, scratch);
    } else if (has_moves(i) && kind == Kind::flatten && !program_.jumps[i]) {
      flatten(i, b, changes.moves[from], moves);
    } else if (has_moves(i) && (kind == Kind::max_pool || kind == Kind::gather || kind == Kind::flatten)) {
      const int64_t joined = instruction(i).residual;
      if (changes.moves[from].size() > 0 || (joined >= 0 && changes.moves[joined].size() > 0)) pool(i, b, moves);
    }
    const bool fires = program_.fires(i) || kind == Kind::popcount;
    if (fires) follow_targets(i, b, moves);
    if (program_.jumps[i]) return 0;
    if (frame_.moves != nullptr && has_moves(i)) {
      int8_t* to = frame_.moves[i] + b * features(i);
      for (const int32_t move : moves) to[neuron_of(move)] = move < 0 ? -1 : 1;
    }
    return fires ? moves.size() : 0;
  }

  // Multiplies the counts of a sample, which jumped.
  void multiply(int64_t i, int64_t b, const Scratch& scratch) const {
    cpu::Workspace memory(scratch.memory);
    auto* product = memory.take<float>(features(i));
    Layer jumped = *parts_[i].product;
    jumped.stored = counts_of(instruction(i).input, b);
    cpu::window_product(jumped, product, serial_for);
    update_product(i, b, product);
    frame_.synapses[b] += synapses(i);
  }

  // Adds the moves of a layer's inputs, and computes the targets that depend on them.
  void find_targets(int64_t i, int64_t b, Changes& changes, const Scratch& scratch) {
    const Instruction& in = instruction(i);
    const Part& part = parts_[i];
    uint8_t* marks = marks_of(i, b);
    if (part.sums) frame_.synapses[b] += part.sums->add(changes.moves[in.input], scratch.sums, marks, scratch.memory);
    if (part.product && changes.moves[in.input].size() > 0) multiply(i, b, scratch);
    if (program_.kind(i) == Kind::neurons) {
      for (const int64_t row : changes.rows[in.input]) marks[row] |= kDue;
    }
    std::vector<int64_t>& rows_done = changes.rows[i];
    rows_done.clear();
    if (in.residual != kAbsent && program_.value(in.residual) == Value::kCurrents) {
      for (const int64_t row : changes.rows[in.residual]) marks[row] |= kDue;
    } else if (in.residual != kAbsent) {
      const Moves& moves = changes.moves[in.residual];
      for (const int32_t move : moves) marks[neuron_of(move) / part.neuron.channels] |= kDue;
      frame_.synapses[b] += moves.size();
    }
    int64_t first = -1, last = -1;  // rows that follow each other
    for_marked(i, b, [&](int64_t row) {
      if ((marks[row] & kDue) == 0) return;
      if (row != last) {
        if (first < last) compute_targets(i, b, first, last - first, scratch);
        first = row;
      }
      last = row + 1;
      if (!program_.fires(i)) rows_done.push_back(row), marks[row] = 0;
    });
    if (first < last) compute_targets(i, b, first, last - first, scratch);
  }

  // Calls f(row) for each row with marks.
  template <class F>
  void for_marked(int64_t i, int64_t b, const F& f) const {
    const uint8_t* marks = marks_of(i, b);
    const int64_t size = rows(i);
    for (int64_t begin = 0; begin < size; begin += 8) {
      uint64_t eight = 0;
      std::memcpy(&eight, marks + begin, std::min<int64_t>(8, size - begin));
      for (int64_t row = begin; eight != 0; ++row, eight >>= 8) {
        if ((eight & 0xff) != 0) f(row);
      }
    }
  }

  double* sums_of(int64_t i, int64_t b) const { return all<double>(kept(i).sums) + b * kept(i).sums_size; }

  void compute_targets(int64_t i, int64_t b, int64_t first_row, int64_t n, const Scratch& scratch) {
    const Instruction& in = instruction(i);
    Neuron a = parts_[i].neuron;
    const int64_t channels = a.channels, size = features(i);
    a.stored = all<uint8_t>(kept(i).target) + b * size;
    if (program_.fires(i)) {
      a.bad = all<float>(kept(i).lost) + b * rows(i);
      a.sample = channels;
      std::fill_n(a.bad + first_row, n, 0.f);
      if (in.residual != kAbsent) {
        const bool currents = program_.value(in.residual) == Value::kCurrents;
        a.residual_currents = currents ? all<float>(kept(in.residual).currents) + b * size : nullptr;
        a.residual_stored = currents ? nullptr : counts_of(in.residual, b);
      }
    } else {
      a.v = all<float>(kept(i).currents) + b * size;
    }
    if (parts_[i].sums) return parts_[i].sums->fire(scratch.sums, sums_of(i, b), first_row, n, a);
    const int64_t first = first_row * channels;  // the scan begins at its first neuron
    const auto shift = [&](auto*& p) { p = p == nullptr ? nullptr : p + first; };
    a.neurons = n * channels;
    shift(a.stored), shift(a.v), shift(a.residual_currents), shift(a.residual_stored);
    if (a.bad != nullptr) a.bad += first_row;
    if (a.v_init_size > channels) shift(a.v_init), a.v_init_size -= first;
    const bool reads_currents = program_.kind(i) == Kind::neurons;
    const float* y = all<float>(reads_currents ? kept(in.input).currents : kept(i).product) + b * size + first;
    if (!reads_currents && !parts_[i].product) return scan(i, y, a, serial_for);
    cpu::if_scan(y, DType::kFloat32, Source::kImpulse, a, serial_for);
  }

  // Moves every count that differs from its target; of a layer only in rows with marks.
  void follow_targets(int64_t i, int64_t b, Moves& moves) {
    if (program_.kind(i) == Kind::popcount) {
      if (follow_all(i, b, moves)) rests_[b] = 0;
      return;
    }
    const int64_t size = features(i), channels = size / rows(i);
    const uint8_t* target = all<uint8_t>(kept(i).target) + b * size;
    uint8_t *counts = counts_of(i, b), *marks = marks_of(i, b);
    for_marked(i, b, [&](int64_t row) {
      const bool late = cpu::follow(target, row * channels, (row + 1) * channels, counts, moves);
      marks[row] = late ? kLate : 0;
      if (late) rests_[b] = 0;
    });
  }

  // Moves all counts of an instruction: pixels to their targets, others by at most one. Returns whether a count still
  // differs from its target.
  bool follow_all(int64_t i, int64_t b, Moves& moves) const {
    const uint8_t* target = all<uint8_t>(kept(i).target) + b * features(i);
    if (!program_.jumps[i]) return cpu::follow(target, 0, features(i), counts_of(i, b), moves);
    cpu::jump(target, features(i), counts_of(i, b), moves);
    return false;
  }

  void flatten(int64_t i, int64_t b, const Moves& from, Moves& moves) const {
    const Shape& in = plan_.steps[i].in;
    const int64_t channels = in.channels, pixels = in.height * in.width;
    uint8_t* counts = counts_of(i, b);
    int64_t pixel = 0;
    for (const int32_t move : from) {
      while (neuron_of(move) >= (pixel + 1) * channels) ++pixel;
      const int64_t n = (neuron_of(move) - pixel * channels) * pixels + pixel;
      counts[n] = static_cast<uint8_t>(counts[n] + (move < 0 ? -1 : 1));
      moves.add(n, move < 0);
    }
  }

  // A maximum of counts moves by at most one, if they do, and a gather moves as its inputs do.
  void pool(int64_t i, int64_t b, Moves& moves) const {
    const int64_t joined = instruction(i).residual;
    const Shape& in = plan_.steps[i].in;
    const uint8_t* counts = counts_of(instruction(i).input, b);
    uint8_t* target = all<uint8_t>(kept(i).target) + b * features(i);
    if (program_.kind(i) == Kind::gather) {
      gather(i, 1, counts, joined < 0 ? nullptr : counts_of(joined, b), target, serial_for);
    } else if (program_.kind(i) == Kind::flatten) {
      cpu::to_channels_first(counts, 1, in.height * in.width, in.channels, target, serial_for);
    } else {
      cpu::max_pool(geometry(i, 1), Timing::kWindow, counts, target, serial_for);
    }
    follow_all(i, b, moves);
  }

  // --- the answer ----------------------------------------------------------------------------------------------------

  void answer_for(const std::vector<uint8_t>& worked) {
    const int64_t batch = plan_.batch;
    std::vector<float*> kept_answers;
    for (const int64_t i : program_.answers) kept_answers.push_back(all<float>(kept(i).answer));
    if (std::find(worked.begin(), worked.end(), 1) != worked.end()) stream().answered = 0;
    if (stream().answered == 0) {
      std::fill_n(bad_, batch, 0.f);
      for (int64_t i = 0; i < program_.size(); ++i) {
        if (program_.values[i] == Value::kWindowTrain) values_[i] = counts_of(i, 0);
        if (program_.values[i] == Value::kCurrents) values_[i] = all<float>(kept(i).currents);
        if (program_.fires(i)) {
          const auto* lost = all<float>(kept(i).lost);
          for (int64_t b = 0; b < batch; ++b, lost += rows(i)) {
            const float* found = std::find_if(lost, lost + rows(i), [](float flag) { return flag != 0; });
            if (found != lost + rows(i)) bad_[b] = *found;
          }
        }
        if (program_.kind(i) != Kind::readout || program_.reads_train(i)) continue;
        for (int64_t b = 0; b < batch; ++b) frame_.synapses[b] += worked[b] * instruction(i).weights();
      }
      answer(plan_.T - 1, plan_.T, kept_answers);
      stream().answered = 1;
    }
    for (size_t k = 0; k < kept_answers.size(); ++k) {
      std::copy_n(kept_answers[k], batch * plan_.answers[k].features(), frame_.answers[k]);
    }
  }

  std::vector<Part> parts_;
};

void Network::follow(const Plan& plan, const Frame& frame) const { Follower(*this, plan, frame)(); }

}  // namespace tandem::network
