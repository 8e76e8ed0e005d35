// Runs the warps and blocks of a launch. The seed determines the order of blocks, and of warps between two barriers;
// the checker finds races in any order.
#include <algorithm>
#include <numeric>
#include <random>

#include "checker.h"

namespace ptx {

namespace {

// Counts the waits for loads: whoever needs one waits for all of them.
void count_waits(const Instruction& i, Warp& w) {
  const auto loads = [&](int r) { return std::find(w.loading.begin(), w.loading.end(), r) != w.loading.end(); };
  const bool needs = !w.loading.empty() && std::any_of(i.reads.begin(), i.reads.end(), loads);
  if (needs && !i.moves) {
    ++w.block->counters.waits;
    w.loading.clear();
  }
  if (i.loads || (needs && i.moves)) w.loading.insert(w.loading.end(), i.writes.begin(), i.writes.end());
}

// Reports registers that are read before they were written. Moves may read them.
void check_registers(const Instruction& i, Warp& w, uint32_t mask) {
  uint32_t defined = kAllLanes;
  for (const int r : i.reads) defined &= w.defined[r];
  if (!i.moves && (mask & ~defined) != 0) {
    machine.report(w.block->kernel, i, "a register is read that was never written");
    defined = kAllLanes;
  }
  for (const int r : i.writes) {
    uint32_t& now = w.defined[r];
    now = i.moves ? (now & ~mask) | (mask & defined) : now | mask;
  }
}

class Runner {
 public:
  Runner(Warp& warp, std::mt19937_64& random) : w_(warp), code_(warp.block->kernel.code), random_(random) {}

  // Runs the warp until it ends or reaches a barrier of the block. With seed 0 the group with the smallest pc runs
  // first, so that diverged paths meet again; else any group may, as on GPUs since Volta.
  void run() {
    while (w_.alive != 0) {
      Group& group = next();
      const Instruction& i = code_[group.pc];
      uint32_t mask = group.mask;
      if (i.guard.row >= 0) {
        if ((mask & ~w_.defined[i.guard.row]) != 0) {
          machine.report(w_.block->kernel, i, "a predicate is read that was never written");
        }
        const uint32_t guard = w_.lanes_of(i.guard);
        mask &= i.guard_negated ? ~guard : guard;
      }
      if (mask == 0) {
        ++group.pc;
        continue;
      }
      if (i.flow == Flow::kBarrier) {
        if (mask != w_.alive) {
          wait(group, i, w_.alive);
          continue;
        }
        if (w_.alive != w_.existing) throw fault(i, "a barrier, but lanes of its warp have exited");
        return;
      }
      if (i.flow == Flow::kAligned || i.flow == Flow::kMasked) {
        const uint32_t wanted = i.flow == Flow::kAligned ? w_.existing : members(i, mask);
        if ((wanted & w_.alive) != wanted) throw fault(i, "an instruction names a lane that has exited");
        if ((mask & wanted) != wanted) {
          wait(group, i, wanted);
          continue;
        }
        if ((mask & ~wanted) != 0) throw fault(i, "a lane takes part that is not named");
      }
      execute(group, i, mask);
    }
  }

  // Call when all warps are at the barrier: this warp continues.
  void pass_barrier() {
    ++w_.block->counters.instructions;
    ++w_.groups[0].pc;
  }

 private:
  Fault fault(const Instruction& i, const std::string& what) const {
    return Fault(what + ", " + w_.block->kernel.place(i) + ", in " + w_.block->kernel.title);
  }

  uint32_t members(const Instruction& i, uint32_t mask) const {
    const auto named = static_cast<uint32_t>(w_.row(i.o.back())[std::countr_zero(mask)]);
    return named & w_.existing;
  }

  Group& next() {
    auto& groups = w_.groups;
    if (groups.size() == 1) {
      if (groups[0].waits) throw fault(code_[groups[0].pc], "lanes wait that nobody meets");
      return groups[0];
    }
    for (size_t a = 0; a < groups.size(); ++a) {
      for (size_t b = a + 1; b < groups.size();) {
        if (groups[a].pc == groups[b].pc) {
          groups[a].mask |= groups[b].mask;
          groups[a].waits = false;
          groups.erase(groups.begin() + static_cast<std::ptrdiff_t>(b));
        } else {
          ++b;
        }
      }
    }
    std::vector<Group*> ready;
    for (Group& group : groups) {
      if (!group.waits) ready.push_back(&group);
    }
    if (ready.empty()) throw fault(code_[groups[0].pc], "lanes wait at different places");
    if (machine.seed != 0 && random_() % 4 == 0) return *ready[random_() % ready.size()];
    return **std::min_element(ready.begin(), ready.end(), [](Group* a, Group* b) { return a->pc < b->pc; });
  }

  void wait(Group& group, const Instruction& i, uint32_t wanted) {
    const uint32_t rest = wanted & ~group.mask;
    group.waits = true;
    if (rest == 0) throw fault(i, "the predicate of an instruction for all lanes differs between them");
  }

  void execute(Group& group, const Instruction& i, uint32_t mask) {
    ++w_.block->counters.instructions;
    if (i.flow == Flow::kBranch) {
      const uint32_t rest = group.mask & ~mask;
      if (rest == 0) {
        group.pc = i.target;
      } else {
        const Group others{group.pc + 1, rest, false};
        group = {i.target, mask, false};
        w_.groups.push_back(others);
      }
      return;
    }
    if (i.flow == Flow::kExit) {
      w_.alive &= ~mask;
      group.mask &= ~mask;
      ++group.pc;
      if (group.mask == 0) w_.groups.erase(w_.groups.begin() + (&group - w_.groups.data()));
      for (Group& other : w_.groups) other.waits = false;
      return;
    }
    check_registers(i, w_, mask);
    count_waits(i, w_);
    i.execute(i, w_, mask);
    ++group.pc;
  }

  Warp& w_;
  const std::vector<Instruction>& code_;
  std::mt19937_64& random_;
};

void prepare(Block& block) {
  const Kernel& kernel = block.kernel;
  const auto threads = static_cast<uint32_t>(block.size.count());
  for (size_t index = 0; index < block.warps.size(); ++index) {
    Warp& w = block.warps[index];
    const uint32_t first = static_cast<uint32_t>(index) * kLanes, lanes = std::min<uint32_t>(threads - first, kLanes);
    w.block = &block;
    w.index = static_cast<int>(index);
    w.alive = w.existing = lanes == kLanes ? kAllLanes : (1u << lanes) - 1;
    w.groups.assign(1, Group{0, w.alive, false});
    w.rows.resize(kernel.rows);
    w.defined.assign(w.rows.size(), 0);
    w.loading.clear();
    w.epoch.fill(0);
    for (auto& copies : w.copies) copies.assign(1, {});
    for (const auto& [value, row] : kernel.immediates) {
      w.defined[row] = kAllLanes;
      w.rows[row].fill(static_cast<uint64_t>(value));
    }
    for (const auto& [which, row] : kernel.specials) {
      w.defined[row] = kAllLanes;
      for (uint32_t lane = 0; lane < kLanes; ++lane) {
        const Dim &at = block.position, &grid = block.grid;
        const uint32_t values[] = {first + lane, block.size.x, at.x, at.y, at.z, grid.z};
        w.rows[row][lane] = values[which];
      }
    }
  }
}

void run_block(Block& block, std::mt19937_64& random) {
  std::vector<size_t> order(block.warps.size());
  std::iota(order.begin(), order.end(), size_t{0});
  for (;;) {
    std::shuffle(order.begin(), order.end(), random);
    size_t alive = 0;
    for (const size_t index : order) {
      Runner(block.warps[index], random).run();
      alive += block.warps[index].alive != 0;
    }
    if (alive == 0) break;
    if (alive < order.size()) throw Fault("a barrier, but warps of its block have exited, in " + block.kernel.title);
    for (Warp& warp : block.warps) Runner(warp, random).pass_barrier();
    ++block.epoch;
  }
  for (const Warp& warp : block.warps) {
    for (const auto& groups : warp.copies) {
      for (const auto& group : groups) {
        if (!group.empty()) throw Fault("it ends with cp.async in flight: " + block.kernel.title);
      }
    }
  }
}

}  // namespace

void Machine::report(const Kernel& kernel, const Instruction& i, const std::string& what) {
  if (reports.size() < 100) reports.push_back(what + ", " + kernel.place(i) + ", in " + kernel.title);
}

void Machine::launch(const Kernel& kernel, Dim grid, Dim size, uint32_t dynamic_shared,
                     std::vector<std::byte>& parameters) {
  static uint32_t blocks_run = 0;
  Counters& count = counters[kernel.title];
  std::mt19937_64 random(seed);
  std::vector<std::byte> shared(dynamic_shared > 0 ? kDynamicShared + dynamic_shared : kernel.static_shared);
  std::vector<Warp> warps((size.count() + kLanes - 1) / kLanes);
  std::vector<uint64_t> order(std::min(grid.count() - first_block, blocks));
  std::iota(order.begin(), order.end(), first_block);
  std::shuffle(order.begin(), order.end(), random);
  checker::begin_launch(kernel, dynamic_shared);
  try {
    for (const uint64_t at : order) {
      Block block{kernel, grid, size, grid.place(at), ++blocks_run, 0, parameters, shared, warps, count};
      std::fill(shared.begin(), shared.end(), std::byte{0xab});
      prepare(block);
      count.warps += warps.size();
      run_block(block, random);
    }
  } catch (const Fault& fault) {
    reports.push_back(fault.what());
  }
}

}  // namespace ptx
