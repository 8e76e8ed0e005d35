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

using Addresses = std::array<uint64_t, kLanes>;

// The addresses of all lanes, checked.
Addresses addresses(const Instruction& i, const Warp& w, uint32_t mask, const Operand& operand, int bytes, bool write) {
  Addresses a;
  each(mask, [&](int l) { a[static_cast<size_t>(l)] = w.address(operand, l); });
  const checker::Request request{i, w, mask, a.data(), bytes, write};
  if (i.space == Space::kShared) checker::shared(request);
  if (i.space == Space::kGlobal) checker::global(request);
  return a;
}

uint64_t load_element(const std::byte* from, Type type) {
  uint64_t value = 0;
  std::memcpy(&value, from, static_cast<size_t>(size_of(type)));
  return static_cast<uint64_t>(extend(type, value));
}

void load(const Instruction& i, Warp& w, uint32_t mask) {
  const int bytes = size_of(i.type);
  const Addresses a = addresses(i, w, mask, i.o.back(), bytes * i.parts, false);
  for (int part = 0; part < i.parts; ++part) {
    const Operand& to = i.o[static_cast<size_t>(part)];
    if (to.bytes == 0) continue;
    each(mask, [&](int l) {
      w.set(to, l, load_element(host(w, i.space, a[static_cast<size_t>(l)]) + part * bytes, i.type));
    });
  }
}

void store(const Instruction& i, Warp& w, uint32_t mask) {
  const int bytes = size_of(i.type);
  const Addresses a = addresses(i, w, mask, i.o[0], bytes * i.parts, true);
  for (int part = 0; part < i.parts; ++part) {
    const Operand& from = i.o[static_cast<size_t>(part) + 1];
    each(mask, [&](int l) {
      const uint64_t value = w.value(from, l);
      std::memcpy(host(w, i.space, a[static_cast<size_t>(l)]) + part * bytes, &value, static_cast<size_t>(bytes));
    });
  }
}

// cp.async.shared.global [to], [from], size, bytes. A copy lands as late as possible: when it is waited for.
void copy(const Instruction& i, Warp& w, uint32_t mask) {
  uint64_t to[kLanes], from[kLanes];
  const auto size = static_cast<uint32_t>(i.o[2].offset);
  uint32_t sizes[kLanes], reading = 0;
  each(mask, [&](int l) {
    to[l] = w.address(i.o[0], l);
    from[l] = w.address(i.o[1], l);
    sizes[l] = i.o.size() > 3 ? static_cast<uint32_t>(w.value(i.o[3], l)) : size;
    if (sizes[l] > size) throw Fault("cp.async of more bytes than its size, " + w.block->kernel.place(i));
    if (sizes[l] > 0) reading |= 1u << l;
  });
  if (reading != 0) checker::global({i, w, reading, from, static_cast<int>(size), false});
  checker::shared({i, w, mask, to, static_cast<int>(size), true}, true);
  each(mask, [&](int l) {
    auto& groups = w.copies[static_cast<size_t>(l)];
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back({static_cast<uint32_t>(to[l]), from[l], sizes[l], size});
  });
}

void commit(const Instruction&, Warp& w, uint32_t mask) {
  each(mask, [&](int l) {
    auto& groups = w.copies[static_cast<size_t>(l)];
    if (groups.empty()) groups.emplace_back();
    groups.emplace_back();
  });
}

// Lands all committed groups but the last o[0].
void wait(const Instruction& i, Warp& w, uint32_t mask) {
  const size_t in_flight = static_cast<size_t>(i.o[0].offset) + 1;
  each(mask, [&](int l) {
    auto& groups = w.copies[static_cast<size_t>(l)];
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
void load_matrices(const Instruction& i, Warp& w, uint32_t mask) {
  uint32_t pointing = i.parts == 4 ? kAllLanes : (1u << 8 * i.parts) - 1;
  const Addresses a = addresses(i, w, mask & pointing, i.o.back(), 16, false);
  for (int matrix = 0; matrix < i.parts; ++matrix) {
    uint32_t* d = w.row<uint32_t>(i.o[static_cast<size_t>(matrix)]);
    for (int l = 0; l < kLanes; ++l) {
      std::memcpy(&d[l], host(w, Space::kShared, a[static_cast<size_t>(8 * matrix + l / 4)]) + 4 * (l % 4), 4);
    }
  }
}

bool holds(const Words& words, std::string_view word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

}  // namespace

Execute find_memory(const Words& words, Instruction& i) {
  const auto op = words[0];
  if (op == "ld" || op == "st") {
    if (holds(words, "param")) i.space = Space::kParam;
    if (holds(words, "shared")) i.space = Space::kShared;
    for (const char* other : {"local", "const", "volatile", "acquire", "release"}) {
      if (holds(words, other)) return nullptr;
    }
    return op == "ld" ? load : i.space == Space::kParam ? nullptr : store;
  }
  if (op == "ldmatrix") {
    i.flow = Flow::kAligned;
    i.space = Space::kShared;
    return holds(words, "trans") || !holds(words, "m8n8") || !holds(words, "b16") ? nullptr : load_matrices;
  }
  if (op == "cp" && words[1] == "async") {
    if (words[2] == "commit_group") return commit;
    if (words[2] == "wait_group") return wait;
    if (i.o.size() < 3 || i.o[2].constant == nullptr) return nullptr;
    const int64_t size = i.o[2].offset;
    return size == 16 || (words[2] == "ca" && (size == 8 || size == 4)) ? copy : nullptr;
  }
  return nullptr;
}

}  // namespace ptx
