// Reports accesses that are out of bounds, misaligned, uninitialised or racing, and outputs written twice or never;
// counts the traffic of every buffer. Two accesses race unless a barrier or a __syncwarp lies between them, in whatever
// order they ran. Global memory is watched in the buffers that the host has named, shared memory everywhere.
#include "checker.h"

#include <algorithm>

namespace ptx::checker {

namespace {

enum BufferUse : int { kInput = 1, kOutput = 2, kBoth = 3, kMarks = 5 };

struct Access {
  uint32_t block = 0;  // counted from 1; 0 is the host
  uint16_t thread = 0;
  uint16_t epoch = 0;  // barriers passed by the block
  uint32_t warp_epoch = 0;

  bool same_thread(const Access& other) const { return block == other.block && thread == other.thread; }
  bool before(const Access& now) const {
    if (block == 0 || same_thread(now)) return true;
    if (block != now.block) return false;
    return epoch < now.epoch || (thread / kLanes == now.thread / kLanes && warp_epoch < now.warp_epoch);
  }
};

struct Byte {
  Access write;
  Access reads[2];  // the last two by different threads
  uint32_t read_count = 0;
  uint32_t write_count = 0;
  uint32_t block = 0;  // shared memory: the block that used it; values of another block are forgotten
  bool defined = false;
  bool in_flight = false;  // a cp.async that writes it has not landed
};

// A buffer in global memory, or an array in shared memory.
struct Buffer {
  std::string name;
  uint64_t begin;
  std::vector<Byte> bytes;
  int use;

  bool holds(uint64_t address, uint64_t size) const {
    return address >= begin && address - begin + size <= bytes.size();
  }
};
using Buffers = std::vector<Buffer>;

struct Traffic {          // harness.py knows these fields
  uint64_t requests = 0;  // instructions, counted once a warp
  uint64_t bytes = 0;
  uint64_t sectors = 0;        // 32-byte pieces of global memory
  uint64_t least_sectors = 0;  // the fewest for the same bytes
  uint64_t waves = 0;          // passes through the 32 banks of shared memory
  uint64_t least_waves = 0;
};

Buffers buffers;
Buffers arrays;  // of the running kernel
std::map<std::pair<std::string, bool>, Traffic> traffic;

Access access_of(const Warp& w, int lane) {
  const Block& b = *w.block;
  return {b.number, static_cast<uint16_t>(w.index * kLanes + lane), static_cast<uint16_t>(b.epoch), w.epoch[lane]};
}

// Records the access. Returns what is wrong with it, or null.
const char* touch(Byte& byte, const Access& now, bool write, int use) {
  const char* wrong = nullptr;
  if (byte.in_flight) wrong = "race: cp.async in flight";
  if (!byte.write.before(now) && !(write && use == kMarks))
    wrong = write ? "race: write after write" : "race: read after write";
  if (write) {
    if (!byte.reads[0].before(now) || !byte.reads[1].before(now)) wrong = "race: write after read";
    if (++byte.write_count > 1 && use == kOutput) wrong = "written twice";
    byte.write = now;
    byte.defined = true;
  } else {
    if (!byte.defined) wrong = "uninitialised read";
    if (!byte.reads[0].same_thread(now)) byte.reads[1] = byte.reads[0];
    byte.reads[0] = now;
    ++byte.read_count;
  }
  return wrong;
}

// The number of different values of address / unit among all bytes.
template <class Each>
size_t distinct(std::vector<uint64_t>& scratch, Each each) {
  scratch.clear();
  each([&](uint64_t value) {
    if (scratch.empty() || scratch.back() != value) scratch.push_back(value);
  });
  std::sort(scratch.begin(), scratch.end());
  scratch.erase(std::unique(scratch.begin(), scratch.end()), scratch.end());
  return scratch.size();
}

// A wave serves 32, 16 or 8 neighbouring lanes that move 4, 8 or 16 bytes each; words of the same bank take turns.
void count_waves(const Request& r, Traffic& t) {
  static std::vector<uint64_t> words;
  const int lanes_per_wave = r.bytes <= 4 ? 32 : 128 / r.bytes;
  for (int begin = 0; begin < kLanes; begin += lanes_per_wave) {
    const auto served = static_cast<uint32_t>(((uint64_t{1} << lanes_per_wave) - 1) << begin);
    const size_t n = distinct(words, [&](auto add) {
      each(r.mask & served, [&](int l) {
        for (int b = 0; b < r.bytes; b += 4) add((r.addresses[l] + static_cast<uint64_t>(b)) / 4);
      });
    });
    uint64_t in_bank[32] = {};
    for (const uint64_t word : words) ++in_bank[word % 32];
    t.waves += *std::max_element(in_bank, in_bank + 32);
    t.least_waves += (n + 31) / 32;
  }
}

void count_sectors(const Request& r, Traffic& t) {
  static std::vector<uint64_t> scratch;
  const auto pieces = [&](uint64_t unit) {
    return distinct(scratch, [&](auto add) {
      each(r.mask, [&](int l) {
        const uint64_t first = r.addresses[l] / unit,
                       last = (r.addresses[l] + static_cast<uint64_t>(r.bytes) - 1) / unit;
        for (uint64_t piece = first; piece <= last; ++piece) add(piece);
      });
    });
  };
  t.sectors += pieces(32);
  t.least_sectors += (pieces(4) * 4 + 31) / 32;
}

Traffic& count(const Request& r, const std::string& name) {
  Traffic& t = traffic[{name, r.write}];
  ++t.requests;
  t.bytes += static_cast<uint64_t>(std::popcount(r.mask) * r.bytes);
  return t;
}

std::string describe(const Request& r, const std::string& what, const std::string& where, int lane) {
  const Block& b = *r.warp.block;
  return what + ": " + (r.write ? "write" : "read") + " of " + std::to_string(r.bytes) + " bytes at " + where + ", " +
         b.kernel.place(r.instruction) + ", thread " + std::to_string(r.warp.index * kLanes + lane) + " of block (" +
         std::to_string(b.position.x) + ", " + std::to_string(b.position.y) + ", " + std::to_string(b.position.z) +
         "), in " + b.kernel.title;
}

std::string at(const Buffer& b, uint64_t address) {
  return b.name + "[" + std::to_string(static_cast<int64_t>(address - b.begin)) + "] of " +
         std::to_string(b.bytes.size());
}
std::string near(const Buffers& among, uint64_t address) {
  for (const Buffer& b : among) {
    if (address + 4096 >= b.begin && address < b.begin + b.bytes.size() + 4096) return at(b, address);
  }
  return "no buffer";
}

Buffer* find(Buffers& among, uint64_t address, uint64_t size, Buffer* last = nullptr) {
  if (last != nullptr && last->holds(address, size)) return last;
  const auto found = std::find_if(among.begin(), among.end(), [&](Buffer& b) { return b.holds(address, size); });
  return found == among.end() ? nullptr : &*found;
}

// Records the accesses of all lanes. The bytes of an array in shared memory are those of one block.
Buffer* touch(Buffers& among, const Request& r, bool lands_later = false) {
  Buffer* buffer = nullptr;
  each(r.mask, [&](int l) {
    const uint64_t address = r.addresses[l];
    if (address % static_cast<uint64_t>(r.bytes) != 0) throw Fault(describe(r, "misaligned", near(among, address), l));
    if (among.empty()) return;
    buffer = find(among, address, static_cast<uint64_t>(r.bytes), buffer);
    if (buffer == nullptr) throw Fault(describe(r, "out of bounds", near(among, address), l));
    const char* wrong = r.write && buffer->use == kInput ? "write to an input" : nullptr;
    const Access now = access_of(r.warp, l);
    for (int i = 0; i < r.bytes; ++i) {
      Byte& byte = buffer->bytes[address - buffer->begin + static_cast<uint64_t>(i)];
      if (&among == &arrays && byte.block != now.block) byte = Byte{};
      byte.block = now.block;
      const char* here = touch(byte, now, r.write, buffer->use);
      if (wrong == nullptr) wrong = here;
      byte.in_flight |= lands_later;
    }
    if (wrong != nullptr && machine.reports.size() < 100) {
      machine.reports.push_back(describe(r, wrong, at(*buffer, address), l));
    }
  });
  return buffer;
}

}  // namespace

void global(const Request& r) {
  const Buffer* buffer = touch(buffers, r);
  if (buffer != nullptr) count_sectors(r, count(r, buffer->name));
}

void shared(const Request& r, bool lands_later) {
  const Buffer* array = touch(arrays, r, lands_later);
  if (!buffers.empty()) count_waves(r, count(r, array->name));
}

void landed(const Warp& w, int lane, uint32_t to, uint32_t size) {
  Buffer& array = *find(arrays, to, size);
  for (uint32_t i = 0; i < size; ++i) {
    Byte& byte = array.bytes[to - array.begin + i];
    byte.in_flight = false;
    byte.write = access_of(w, lane);
  }
}

void begin_launch(const Kernel& kernel, uint32_t dynamic_bytes) {
  for (Buffer& b : buffers) {
    for (Byte& byte : b.bytes) byte.write = byte.reads[0] = byte.reads[1] = Access{};  // launches are ordered
  }
  static std::pair<const Kernel*, uint32_t> of;
  if (of == std::pair(&kernel, dynamic_bytes)) return;
  of = {&kernel, dynamic_bytes};
  arrays.clear();
  for (const Variable& a : kernel.arrays) arrays.push_back({a.name, a.begin, std::vector<Byte>(a.bytes), kBoth});
  arrays.push_back({"shared dynamic shared memory", kDynamicShared, std::vector<Byte>(dynamic_bytes), kBoth});
}

void forget_buffers() {
  buffers.clear();
  traffic.clear();
}

extern "C" {

// use: 1 input, 2 output, 3 both, 5 marks: any number of threads may set them, all to the same value. Only outputs
// begin uninitialised. A buffer that lay there has been freed and is forgotten.
void emulation_buffer(const char* name, uint64_t begin, size_t bytes, int use) {
  std::erase_if(buffers, [&](const Buffer& b) { return b.begin < begin + bytes && begin < b.begin + b.bytes.size(); });
  buffers.push_back({name, begin, std::vector<Byte>(bytes), use});
  for (Byte& byte : buffers.back().bytes) byte.defined = (use & kInput) != 0;
}

// The numbers of reads and writes per byte of a buffer: {least reads, most reads, least writes, most writes}.
const uint64_t* emulation_touches(const char* name) {
  static uint64_t out[4];
  for (const Buffer& b : buffers) {
    if (b.name != name) continue;
    out[0] = out[2] = UINT64_MAX;
    out[1] = out[3] = 0;
    for (const Byte& byte : b.bytes) {
      out[0] = std::min<uint64_t>(out[0], byte.read_count);
      out[1] = std::max<uint64_t>(out[1], byte.read_count);
      out[2] = std::min<uint64_t>(out[2], byte.write_count);
      out[3] = std::max<uint64_t>(out[3], byte.write_count);
    }
  }
  return out;
}

const Traffic* emulation_traffic(const char* name, bool write) { return &traffic[{name, write}]; }

}  // extern "C"

}  // namespace ptx::checker
