// A machine that executes PTX, nvcc's output for a kernel, one warp at a time. parse.cpp reads the text;
// arithmetic.cpp, collective.cpp and memory.cpp execute instructions; checker.cpp watches memory; launch.cpp runs warps
// and blocks; runtime.cpp is the CUDA runtime that host code is linked with.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace ptx {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr uint32_t kDynamicShared = 48 * 1024;  // start of dynamic shared memory, behind all arrays

enum class Space : uint8_t { kGlobal, kParam, kShared };

// Ends a launch, like a fault on a GPU, or says that the machine does not know an instruction.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The type "s32" has kind 's' and four bytes. Kinds: signed, unsigned, bits, float; g for bf16 and p for pred.
struct Type {
  char kind = 0;
  int bytes = 0;
};

// One register of all lanes. A value of fewer than eight bytes is in the lowest ones; the others may hold anything. A
// predicate is 0, or true.
using Row = std::array<uint64_t, kLanes>;

// A register, an immediate or an address.
struct Operand {
  int row = -1;        // of the warp; -1: none, an absolute address
  int64_t offset = 0;  // of an address; an immediate's value
};

struct Warp;
struct Instruction;
// Executes an instruction for the lanes of `mask`.
using Execute = void (*)(const Instruction&, Warp&, uint32_t mask);

// How an instruction affects the flow of control.
enum class Flow : uint8_t {
  kNone,
  kBranch,
  kExit,
  kBarrier,
  kAligned,  // all lanes of the warp execute it together
  kMasked,   // the lanes in its last operand execute it together
};

struct Instruction {
  Execute execute = nullptr;
  Flow flow = Flow::kNone;
  bool guard_negated = false;
  bool moves = false;            // may move undefined values
  bool splits = false;           // its result is a vector
  bool loads = false;            // from global memory
  Type type, from;               // of the result, and of the operands if different
  Space space = Space::kGlobal;  // kGlobal includes generic addresses, which are never in shared memory
  int target = -1;               // of a branch
  int parts = 1;                 // elements of a vector
  Operand guard;                 // row -1: none
  std::vector<Operand> o;
  std::vector<int> reads, writes;  // registers
  int file = 0, line = 0;
};

// A parameter or an array in shared memory; dynamic memory has no size.
struct Variable {
  std::string name;
  uint32_t begin, bytes;
};

struct Kernel {
  std::string title;  // for people
  std::vector<Instruction> code;
  std::vector<Variable> parameters, arrays;
  uint32_t parameters_end = 0;
  int rows = 0;
  std::map<int64_t, int> immediates;             // by value: its row
  std::vector<std::pair<size_t, int>> specials;  // index into kSpecials, its row
  bool turing = false;                           // compiled for sm_75
  uint32_t static_shared = 0;                    // bytes of the arrays
  uint32_t most_threads = 1024;                  // __launch_bounds__
  std::map<int, std::string> files;

  std::string place(const Instruction& i) const {
    const auto file = files.find(i.file);
    return (file == files.end() ? "an unknown line" : file->second + ":" + std::to_string(i.line));
  }
};

// Blocks have one dimension, grids three.
inline constexpr const char* kSpecials[] = {"%tid.x", "%ntid.x", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.z"};

// Parses a kernel of a module's text.
std::unique_ptr<Kernel> parse(const std::string& module, const std::string& name);

// Find the function that executes an instruction, which they may mark; null if the machine does not know it. `full` is
// the instruction's name, `name` the same without types and rounding to nearest.
Execute find_arithmetic(std::string_view full, std::string_view name, Instruction& i);
Execute find_collective(std::string_view full, Instruction& i);
Execute find_memory(std::string_view name, Instruction& i);

// --- running ---------------------------------------------------------------------------------------------------------

// A cp.async that has not landed.
struct Copy {
  uint32_t to;
  uint64_t from;
  uint32_t bytes;  // copied; the rest of `size` is zeros
  uint32_t size;
};

struct Block;

// Lanes at the same instruction.
struct Group {
  int pc;
  uint32_t mask;
  bool waits;  // for the other lanes that must execute the instruction with it
};

struct Warp {
  Block* block = nullptr;
  int index = 0;
  uint32_t alive = 0;
  uint32_t existing = 0;
  std::vector<Group> groups;
  std::vector<Row> rows;
  std::vector<uint32_t> defined;                              // by row: lanes that have written it
  std::vector<int> loading;                                   // rows that global memory fills, since the last mma
  std::array<uint32_t, kLanes> epoch{};                       // number of bar.warp.syncs passed
  std::array<std::vector<std::vector<Copy>>, kLanes> copies;  // by lane, oldest group first; the last is uncommitted

  uint64_t* row(const Operand& o) { return rows[o.row].data(); }
  const uint64_t* row(const Operand& o) const { return rows[o.row].data(); }
  Row addresses(const Operand& o) const {
    Row out{};
    if (o.row >= 0) out = rows[o.row];
    for (uint64_t& address : out) address += static_cast<uint64_t>(o.offset);
    return out;
  }
  // The lanes in which a predicate is true.
  uint32_t lanes_of(const Operand& o) const {
    uint32_t lanes = 0;
    for (int lane = 0; lane < kLanes; ++lane) lanes |= static_cast<uint32_t>(row(o)[lane] != 0) << lane;
    return lanes;
  }
};

struct Dim {
  uint32_t x = 1, y = 1, z = 1;
  uint64_t count() const { return uint64_t{x} * y * z; }
  // The position of block number n.
  Dim place(uint64_t n) const {
    return {static_cast<uint32_t>(n % x), static_cast<uint32_t>(n / x % y), static_cast<uint32_t>(n / x / y)};
  }
};

struct Counters {
  uint64_t instructions = 0;  // executed by warps with at least one active lane
  uint64_t mma = 0;
  uint64_t warps = 0;
  uint64_t waits = 0;  // for loads from global memory, unless an mma lies between the load and the use of its value
};

struct Block {
  const Kernel& kernel;
  Dim grid, size, position;
  uint32_t number;  // number among all blocks ever run, from 1
  uint32_t epoch;   // barriers passed
  std::vector<std::byte>& parameters;
  std::vector<std::byte>& shared;
  std::vector<Warp>& warps;
  Counters& counters;
};

// Calls body(lane) for the lanes of `mask`. For all lanes it is a loop that the compiler vectorises.
template <class Body>
inline void each(uint32_t mask, Body body) {
  if (mask == kAllLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; ++lane) body(lane);
  } else {
    for (; mask != 0; mask &= mask - 1) body(std::countr_zero(mask));
  }
}

struct Machine {
  uint64_t seed = 0;                                // of the schedule
  uint64_t first_block = 0, blocks = ~uint64_t{0};  // the blocks of a grid that are run
  std::vector<std::string> reports;
  std::map<std::string, Counters> counters;  // by kernel

  void report(const Kernel& kernel, const Instruction& i, const std::string& what);
  void launch(const Kernel& kernel, Dim grid, Dim block, uint32_t dynamic_shared, std::vector<std::byte>& parameters);
};
inline Machine machine;

}  // namespace ptx
