// Loads, stores and asynchronous copies.
#include <algorithm>

#include "checker.h"

namespace ptx {

namespace {

// The host address of a device address.
std::byte* host(const Warp& w, Space space, uint64_t address) {
  if (space == Space::kParam) return w.block->parameters.data() + address;
  if (space == Space::kShared) return w.block->shared.data() + address;
  return reinterpret_cast<std::byte*>(address);
}

// The addresses of all lanes, checked for those of `mask`.
Row addresses(const Instruction& i, const Warp& w, uint32_t mask, const Operand& operand, int bytes, bool write) {
  const Row a = w.addresses(operand);
  const checker::Request request{i, w, mask, a.data(), bytes, write};
  if (i.space == Space::kShared) checker::shared(request);
  if (i.space == Space::kGlobal) checker::global(request);
  return a;
}

void load(const Instruction& i, Warp& w, uint32_t mask) {
  const int bytes = i.type.bytes, spare = 64 - 8 * bytes;
  const Row a = addresses(i, w, mask, i.o.back(), bytes * i.parts, false);
  for (int part = 0; part < i.parts; ++part) {
    const Operand& to = i.o[part];
    if (to.row < 0) continue;
    each(mask, [&](int l) {
      uint64_t& value = w.row(to)[l] = 0;
      std::memcpy(&value, host(w, i.space, a[l]) + part * bytes, bytes);
      if (i.type.kind == 's') value = static_cast<uint64_t>(static_cast<int64_t>(value << spare) >> spare);
    });
  }
}

void store(const Instruction& i, Warp& w, uint32_t mask) {
  const int bytes = i.type.bytes;
  const Row a = addresses(i, w, mask, i.o[0], bytes * i.parts, true);
  for (int part = 0; part < i.parts; ++part) {
    const uint64_t* from = w.row(i.o[part + 1]);
    each(mask, [&](int l) { std::memcpy(host(w, i.space, a[l]) + part * bytes, &from[l], bytes); });
  }
}

// cp.async.shared.global [to], [from], size, bytes. A copy lands as late as possible: when it is waited for.
void copy(const Instruction& i, Warp& w, uint32_t mask) {
  const auto size = static_cast<uint32_t>(i.o[2].offset);
  const Row to = w.addresses(i.o[0]), from = w.addresses(i.o[1]);
  uint32_t reading = 0;
  each(mask, [&](int l) {
    const auto bytes = static_cast<uint32_t>(w.row(i.o[3])[l]);
    if (bytes > size) throw Fault("cp.async of more bytes than its size, " + w.block->kernel.place(i));
    if (bytes > 0) reading |= 1u << l;
    w.copies[l].back().push_back({static_cast<uint32_t>(to[l]), from[l], bytes, size});
  });
  if (reading != 0) checker::global({i, w, reading, from.data(), static_cast<int>(size), false});
  checker::shared({i, w, mask, to.data(), static_cast<int>(size), true}, true);
}

void commit(const Instruction&, Warp& w, uint32_t mask) {
  each(mask, [&](int l) { w.copies[l].emplace_back(); });
}

// Lands all committed groups but the last o[0].
void wait(const Instruction& i, Warp& w, uint32_t mask) {
  const size_t in_flight = i.o[0].offset + 1;
  each(mask, [&](int l) {
    auto& groups = w.copies[l];
    if (groups.size() <= in_flight) return;
    const auto end = groups.end() - static_cast<std::ptrdiff_t>(in_flight);
    for (auto group = groups.begin(); group != end; ++group) {
      for (const Copy& c : *group) {
        std::byte* to = w.block->shared.data() + c.to;
        std::memset(to, 0, c.size);
        if (c.bytes > 0) std::memcpy(to, reinterpret_cast<const void*>(c.from), c.bytes);
        checker::landed(w, l, c.to, c.size);
      }
    }
    groups.erase(groups.begin(), end);
  });
}

// ldmatrix: lane l points to row l % 8 of matrix l / 8, and receives word l % 4 of row l / 4 of each matrix.
// Before Ampere all lanes must have valid addresses.
void load_matrices(const Instruction& i, Warp& w, uint32_t mask) {
  const uint32_t pointing = i.parts == 4 || w.block->kernel.turing ? kAllLanes : (1u << 8 * i.parts) - 1;
  const Row a = addresses(i, w, mask & pointing, i.o.back(), 16, false);
  for (int matrix = 0; matrix < i.parts; ++matrix) {
    uint64_t* d = w.row(i.o[matrix]);
    for (int l = 0; l < kLanes; ++l) {
      std::memcpy(&d[l], host(w, Space::kShared, a[8 * matrix + l / 4]) + 4 * (l % 4), 4);
    }
  }
}

// Whether all words of a name, separated by points, are known.
bool knows(std::string_view name) {
  for (size_t at = name.find('.'), end; at != name.npos; at = end) {
    end = name.find('.', at + 1);
    const auto word = name.substr(at + 1, end - at - 1);
    const auto known = {"global", "param", "shared", "nc", "cg", "cs", "v2", "v4"};
    if (std::find(known.begin(), known.end(), word) == known.end()) return false;
  }
  return true;
}

}  // namespace

Execute find_memory(std::string_view name, Instruction& i) {
  const auto holds = [&](std::string_view word) { return name.find(word) != name.npos; };
  if (holds(".param")) i.space = Space::kParam;
  if (holds(".shared")) i.space = Space::kShared;
  const auto op = name.substr(0, name.find('.'));
  i.loads = op == "ld" && i.space == Space::kGlobal;
  if (op == "ld" && knows(name)) return load;
  if (op == "st" && knows(name) && i.space != Space::kParam) return store;
  if (name == "ldmatrix.sync.aligned.m8n8.x2.shared" || name == "ldmatrix.sync.aligned.m8n8.x4.shared") {
    i.flow = Flow::kAligned;
    return load_matrices;
  }
  if (name == "cp.async.commit_group") return commit;
  if (name == "cp.async.wait_group") return wait;
  const int64_t size = i.o.size() == 4 ? i.o[2].offset : 0;
  const bool fits = name == "cp.async.ca.shared.global" && (size == 4 || size == 8);
  return fits || (name == "cp.async.cg.shared.global" && size == 16) ? copy : nullptr;
}

}  // namespace ptx
