// A machine that executes PTX, nvcc's output for a kernel, one warp at a time. parse.cpp reads the text;
// arithmetic.cpp, convert.cpp, collective.cpp and memory.cpp execute instructions; checker.cpp watches memory;
// launch.cpp runs warps and blocks; runtime.cpp is the CUDA runtime that host code is linked with.
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

// clang-format off
enum class Type : uint8_t {
  kNone, kPred, kB8, kU8, kS8, kB16, kU16, kS16, kF16, kBF16, kB32, kU32, kS32, kF32, kBF16x2, kF16x2, kB64, kU64, kS64, kF64
};
// clang-format on
enum class Space : uint8_t { kGlobal, kParam, kShared };

// Ends a launch, like a fault on a GPU.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// An instruction that the machine does not support.
struct Unknown : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An immediate as rows of 2-, 4- and 8-byte elements.
struct Constant {
  std::array<uint16_t, kLanes> two;
  std::array<uint32_t, kLanes> four;
  std::array<uint64_t, kLanes> eight;

  explicit Constant(int64_t value) {
    two.fill(static_cast<uint16_t>(value));
    four.fill(static_cast<uint32_t>(value));
    eight.fill(static_cast<uint64_t>(value));
  }
  template <class T>
  const T* row() const {
    const void* row = sizeof(T) == 2 ? static_cast<const void*>(&two) : &four;
    return static_cast<const T*>(sizeof(T) == 8 ? &eight : row);
  }
};

// A row holds one register of all lanes: 32 elements of 2, 4 or 8 bytes. A predicate's row is one 32-bit word, a bit
// per lane.
struct Operand {
  const Constant* constant = nullptr;  // an immediate, or null:
  uint32_t row = 0;                    // start of the row in the warp's registers
  int index = -1;                      // number of the register; -1: none, an absolute address
  uint8_t bytes = 0;                   // per element
  int64_t offset = 0;                  // of an address
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
  bool moves = false;  // may move undefined values
  bool mma = false;
  Type type = Type::kNone, from = Type::kNone;  // of the result, and of the operands if different
  Space space = Space::kGlobal;                 // kGlobal includes generic addresses, which are never in shared memory
  int mode = 0;                                 // of a shuffle or matrix product
  int target = -1;                              // of a branch
  int parts = 1;                                // elements of a vector
  Operand guard;                                // index -1: none
  std::vector<Operand> o;
  std::vector<int> reads, writes;  // registers
  int file = 0, line = 0;
};

// An array in shared memory.
struct SharedArray {
  std::string name;
  uint32_t begin, bytes;
};

struct Kernel {
  std::string name;   // mangled
  std::string title;  // for people
  std::vector<Instruction> code;
  std::vector<uint32_t> parameters;  // offset of each
  std::vector<uint32_t> parameter_bytes;
  uint32_t parameters_end = 0;
  uint32_t registers = 0;                             // number of registers
  uint32_t register_bytes = 0;                        // bytes of their rows
  std::vector<std::pair<int64_t, Operand>> specials;  // index into kSpecials, its register
  std::vector<SharedArray> arrays;
  uint32_t static_shared = 0;    // bytes of the arrays
  uint32_t most_threads = 1024;  // __launch_bounds__
  std::map<int, std::string> files;
  std::vector<std::unique_ptr<Constant>> constants;

  std::string place(const Instruction& i) const {
    const auto file = files.find(i.file);
    return (file == files.end() ? "an unknown line" : file->second + ":" + std::to_string(i.line));
  }
};

inline constexpr const char* kSpecials[] = {"%tid.x",    "%tid.y",    "%tid.z",   "%ntid.x",  "%ntid.y",
                                            "%ntid.z",   "%ctaid.x",  "%ctaid.y", "%ctaid.z", "%nctaid.x",
                                            "%nctaid.y", "%nctaid.z", "%laneid"};

// PTX text. A kernel is parsed when it is first launched.
class Module {
 public:
  explicit Module(std::string text);
  const std::vector<std::string>& names() const { return names_; }
  std::unique_ptr<Kernel> parse(const std::string& name) const;

 private:
  std::string text_;
  std::vector<std::string> names_;
};

// Find the function that executes an instruction; null if the machine does not know it. `words` are the parts of the
// instruction's name.
using Words = std::vector<std::string_view>;
Execute find_arithmetic(const Words& words, Instruction& i);
Execute find_conversion(const Words& words, Instruction& i);
Execute find_collective(const Words& words, Instruction& i);
Execute find_memory(const Words& words, Instruction& i);

inline int size_of(Type t) {
  constexpr int kBytes[] = {0, 4, 1, 1, 1, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 8, 8, 8, 8};
  return kBytes[static_cast<int>(t)];
}
inline bool is_signed(Type t) { return t == Type::kS8 || t == Type::kS16 || t == Type::kS32 || t == Type::kS64; }
// The lowest bytes of x, as many as the type has, sign-extended if the type is signed.
inline int64_t extend(Type t, uint64_t x) {
  const int spare = 64 - 8 * size_of(t);
  return is_signed(t) ? static_cast<int64_t>(x << spare) >> spare : static_cast<int64_t>(x << spare >> spare);
}
// kNone if the word names no type.
inline Type type_of(std::string_view word) {
  static const std::map<std::string_view, Type> kTypes = {
      {"pred", Type::kPred}, {"b8", Type::kB8},   {"u8", Type::kU8},   {"s8", Type::kS8},         {"b16", Type::kB16},
      {"u16", Type::kU16},   {"s16", Type::kS16}, {"f16", Type::kF16}, {"bf16", Type::kBF16},     {"b32", Type::kB32},
      {"u32", Type::kU32},   {"s32", Type::kS32}, {"f32", Type::kF32}, {"bf16x2", Type::kBF16x2}, {"b64", Type::kB64},
      {"u64", Type::kU64},   {"s64", Type::kS64}, {"f64", Type::kF64}, {"f16x2", Type::kF16x2}};
  const auto found = kTypes.find(word);
  return found == kTypes.end() ? Type::kNone : found->second;
}

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
  bool at_barrier = false;
  std::vector<std::byte> registers;
  std::vector<uint32_t> defined;                              // by register: lanes that have written it
  std::array<uint32_t, kLanes> epoch{};                       // number of bar.warp.syncs passed
  std::array<std::vector<std::vector<Copy>>, kLanes> copies;  // by lane, oldest group first; the last is uncommitted

  template <class T>
  T* row(const Operand& o) {
    return reinterpret_cast<T*>(registers.data() + o.row);
  }
  template <class T>
  const T* in(const Operand& o) const {
    return o.constant != nullptr ? o.constant->row<T>() : reinterpret_cast<const T*>(registers.data() + o.row);
  }
  // Immediates are sign-extended.
  uint64_t value(const Operand& o, int lane) const {
    switch (o.bytes) {
      case 2:
        return in<uint16_t>(o)[lane];
      case 4:
        return in<uint32_t>(o)[lane];
      default:
        return in<uint64_t>(o)[lane];
    }
  }
  void set(const Operand& o, int lane, uint64_t value) {
    switch (o.bytes) {
      case 2:
        row<uint16_t>(o)[lane] = static_cast<uint16_t>(value);
        break;
      case 4:
        row<uint32_t>(o)[lane] = static_cast<uint32_t>(value);
        break;
      default:
        row<uint64_t>(o)[lane] = value;
    }
  }
  uint64_t address(const Operand& o, int lane) const {
    return (o.index < 0 ? 0 : value(o, lane)) + static_cast<uint64_t>(o.offset);
  }
};

struct Dim {
  uint32_t x = 1, y = 1, z = 1;
  uint32_t operator[](int64_t axis) const { return axis == 0 ? x : axis == 1 ? y : z; }
  uint64_t count() const { return uint64_t{x} * y * z; }
  // The position of thread or block number n.
  Dim place(uint64_t n) const {
    return {static_cast<uint32_t>(n % x), static_cast<uint32_t>(n / x % y), static_cast<uint32_t>(n / x / y)};
  }
};

struct Block {
  const Kernel& kernel;
  Dim grid, size, position;
  uint32_t number;  // number among all blocks ever run, from 1
  uint32_t epoch;   // barriers passed
  std::vector<std::byte>& parameters;
  std::vector<std::byte>& shared;
  std::vector<Warp>& warps;
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

struct Counters {
  uint64_t instructions = 0;  // executed by warps with at least one active lane
  uint64_t mma = 0;
  uint64_t warps = 0;
};

struct Options {
  uint64_t seed = 0;
  uint64_t first_block = 0, blocks = ~uint64_t{0};  // the blocks of a grid that are run
};

struct Machine {
  Options options;
  std::vector<std::string> reports;
  std::map<std::string, Counters> counters;  // by kernel

  void report(const Kernel& kernel, const Instruction& i, const std::string& what);
  void launch(const Kernel& kernel, Dim grid, Dim block, uint32_t dynamic_shared, std::vector<std::byte>& parameters);
};
Machine& machine();

}  // namespace ptx
