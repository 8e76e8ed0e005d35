// Watches every load and store of a kernel file compiled with -fsanitize=thread: libtsan is not linked, its hooks are
// here. Reports out-of-bounds, misaligned, uninitialised and racing accesses, outputs written twice or never, and
// counts the traffic of every buffer. Whether a race is found does not depend on the order in which threads ran: two
// accesses race unless a barrier or a __syncwarp lies between them.
#include <dlfcn.h>

#include <cstdio>
#include <map>

#include "internal.h"

namespace emulation {

namespace {

enum BufferFlag : int { kInput = 1, kOutput = 2 };

struct Access {
  int block = 0;  // numbers begin at 1: 0 is the host
  int thread = 0;
  uint32_t block_epoch = 0;
  uint32_t warp_epoch = 0;
};

struct Byte {
  Access write;
  Access reads[2];  // the last two by different threads
  uint32_t read_count = 0;
  uint32_t write_count = 0;
  bool defined = false;
  bool in_flight = false;  // a cp.async that writes it has not landed
};

struct Buffer {
  std::string name;
  char* p;
  std::vector<Byte> bytes;
  int flags;
  bool shared;
};

struct Traffic {
  uint64_t requests = 0;  // instructions, counted once a warp
  uint64_t bytes = 0;
  uint64_t sectors = 0;        // 32-byte pieces of global memory
  uint64_t least_sectors = 0;  // that the same bytes could fill
  uint64_t waves = 0;          // passes through the 32 banks of shared memory
  uint64_t least_waves = 0;
};

struct LoggedAccess {
  const void* instruction;
  const Buffer* buffer;
  uintptr_t address;
  unsigned size;
  bool write;
};

std::vector<Buffer> buffers;  // those of the host, then the running block's shared arrays
size_t host_buffers = 0;
std::vector<std::vector<LoggedAccess>> logs;  // by thread
std::map<std::pair<std::string, bool>, Traffic> traffic;

Buffer* find(const char* p) {
  for (Buffer& b : buffers) {
    if (p >= b.p && p < b.p + b.bytes.size()) return &b;
  }
  return nullptr;
}

bool ordered_before_now(const Access& a) {
  if (a.block == 0 || (a.block == running_block_number && a.thread == running->index)) return true;
  if (a.block != running_block_number) return false;
  if (a.block_epoch < running->block_epoch) return true;
  return a.thread / 32 == running->index / 32 && a.warp_epoch < running->warp_epoch;
}

// Where in the library an instruction is; the harness makes a source line of it.
std::string code(const void* instruction) {
  Dl_info module{};
  dladdr(instruction, &module);
  char text[32];
  std::snprintf(text, sizeof(text), "code 0x%zx",
                static_cast<size_t>(static_cast<const char*>(instruction) - static_cast<char*>(module.dli_fbase) - 1));
  return text;
}

// Notes the running thread's access and says what is wrong with it, or null.
const char* touch(Byte& byte, bool write, bool once) {
  const Access now{running_block_number, running->index, running->block_epoch, running->warp_epoch};
  const char* wrong = nullptr;
  if (byte.in_flight) wrong = "race: cp.async in flight";
  if (!ordered_before_now(byte.write)) wrong = write ? "race: write after write" : "race: read after write";
  if (write) {
    for (const Access& read : byte.reads) {
      if (!ordered_before_now(read)) wrong = "race: write after read";
    }
    if (++byte.write_count > 1 && once) wrong = "written twice";
    byte.write = now;
    byte.defined = true;
  } else {
    if (!byte.defined) wrong = "uninitialised read";
    if (byte.reads[0].block != now.block || byte.reads[0].thread != now.thread) byte.reads[1] = byte.reads[0];
    byte.reads[0] = now;
    ++byte.read_count;
  }
  return wrong;
}

// The k-th time that the lanes of a warp are at an instruction, their accesses are one request.
void count_request(const std::vector<const LoggedAccess*>& lanes) {
  const LoggedAccess& first = *lanes.front();
  Traffic& t = traffic[{first.buffer->name, first.write}];
  ++t.requests;
  std::map<uintptr_t, int> words;
  std::map<uintptr_t, int> sectors;
  for (const LoggedAccess* a : lanes) {
    t.bytes += a->size;
    for (uintptr_t b = a->address; b < a->address + a->size; ++b) ++words[b / 4], ++sectors[b / 32];
  }
  if (!first.buffer->shared) {
    t.sectors += sectors.size();
    t.least_sectors += (words.size() * 4 + 31) / 32;
    return;
  }
  // A wave serves 32, 16 or 8 lanes, as they move 4, 8 or 16 bytes; words of one bank take turns.
  const size_t lanes_per_wave = first.size <= 4 ? 32 : 128 / first.size;
  for (size_t begin = 0; begin < lanes.size(); begin += lanes_per_wave) {
    std::map<uintptr_t, bool> distinct;
    for (size_t i = begin; i < std::min(begin + lanes_per_wave, lanes.size()); ++i) {
      for (unsigned b = 0; b < lanes[i]->size; ++b) distinct[(lanes[i]->address + b) / 4] = true;
    }
    uint64_t in_bank[32] = {};
    for (const auto& word : distinct) ++in_bank[word.first % 32];
    t.waves += *std::max_element(in_bank, in_bank + 32);
    t.least_waves += (distinct.size() + 31) / 32;
  }
}

void access(const void* p, size_t size, bool write, const void* instruction) {
  if (running == nullptr || in_thread_stack(p)) return;
  char* address = static_cast<char*>(const_cast<void*>(p));
  Buffer* buffer = find(address);
  const char* verb = write ? "write" : "read";
  if (buffer == nullptr || address + size > buffer->p + buffer->bytes.size()) {
    std::string near = "no buffer";
    for (const Buffer& b : buffers) {
      if (address + 4096 >= b.p && address < b.p + b.bytes.size() + 4096) {
        near = b.name + "[" + std::to_string(address - b.p) + "] of " + std::to_string(b.bytes.size());
      }
    }
    fault(std::string("out of bounds: ") + verb + " of " + std::to_string(size) + " bytes at " + near + ", " +
          code(instruction));
  }
  const size_t offset = static_cast<size_t>(address - buffer->p);
  if (size <= 16 && (size & (size - 1)) == 0 && reinterpret_cast<uintptr_t>(p) % size != 0) {
    fault(std::string("misaligned: ") + verb + " of " + std::to_string(size) + " bytes at " + buffer->name + "[" +
          std::to_string(offset) + "], " + code(instruction));
  }
  if (write && buffer->flags == kInput) report(std::string("write to the input ") + buffer->name);
  const char* wrong = nullptr;
  for (size_t i = 0; i < size; ++i) {
    const char* here = touch(buffer->bytes[offset + i], write, buffer->flags == kOutput);
    if (wrong == nullptr) wrong = here;
  }
  if (wrong != nullptr) {
    report(std::string(wrong) + " at " + buffer->name + "[" + std::to_string(offset) + "], " + code(instruction) +
           ", " + where(*running));
  }
  logs[static_cast<size_t>(running->index)].push_back(
      {instruction, buffer, reinterpret_cast<uintptr_t>(p), static_cast<unsigned>(size), write});
}

}  // namespace

void check_begin_launch() {
  logs.assign(1024, {});
  for (Buffer& b : buffers) {
    for (Byte& byte : b.bytes) byte.write = byte.reads[0] = byte.reads[1] = Access{};  // launches are ordered
  }
}

void check_begin_block() {
  buffers.resize(host_buffers);
  buffers.reserve(host_buffers + 32);  // logs point to them
}

void check_shared_array(const char* name, char* p, size_t bytes) {
  buffers.push_back({std::string("shared ") + name, p, std::vector<Byte>(bytes), kInput | kOutput, true});
}

void check_read(const void* p, size_t bytes, const void* instruction) { access(p, bytes, false, instruction); }

void check_copy_issued(const Copy& copy, const void* instruction) {
  if (copy.valid) access(copy.global, 16, false, instruction);
  access(copy.shared, 16, true, instruction);
  Buffer* buffer = find(copy.shared);
  for (int i = 0; i < 16; ++i) buffer->bytes[static_cast<size_t>(copy.shared - buffer->p + i)].in_flight = true;
}

// To other threads it is a write at this time.
void check_copy_landed(const Copy& copy) {
  Buffer* buffer = find(copy.shared);
  for (int i = 0; i < 16; ++i) {
    Byte& byte = buffer->bytes[static_cast<size_t>(copy.shared - buffer->p + i)];
    byte.in_flight = false;
    byte.write = {running_block_number, running->index, running->block_epoch, running->warp_epoch};
  }
}

void check_end_block(int threads) {
  for (int warp = 0; warp * 32 < threads; ++warp) {
    using Key = std::pair<const void*, bool>;  // instruction, is it a write: cp.async is both
    std::map<Key, std::vector<std::vector<const LoggedAccess*>>> requests;
    for (int t = warp * 32; t < std::min(warp * 32 + 32, threads); ++t) {
      std::map<Key, size_t> times;
      for (const LoggedAccess& a : logs[static_cast<size_t>(t)]) {
        const Key key{a.instruction, a.write};
        auto& at = requests[key];
        const size_t k = times[key]++;
        if (at.size() <= k) at.resize(k + 1);
        at[k].push_back(&a);
      }
    }
    for (const auto& instruction : requests) {
      for (const auto& lanes : instruction.second) count_request(lanes);
    }
  }
  for (auto& log : logs) log.clear();
}

extern "C" {

void emulation_forget_buffers() {
  buffers.clear();
  traffic.clear();
  host_buffers = 0;
}

// flags: 1 for an input, 2 for an output, 3 for both. Only outputs begin undefined.
void emulation_buffer(const char* name, char* p, size_t bytes, int flags) {
  buffers.resize(host_buffers);
  buffers.push_back({name, p, std::vector<Byte>(bytes), flags, false});
  for (Byte& byte : buffers.back().bytes) byte.defined = (flags & kInput) != 0;
  host_buffers = buffers.size();
}

// How often each byte of a buffer was read and written: {least reads, most reads, least writes, most writes}.
void emulation_touches(const char* name, uint32_t* out) {
  for (const Buffer& b : buffers) {
    if (b.name != name) continue;
    out[0] = out[2] = UINT32_MAX;
    out[1] = out[3] = 0;
    for (const Byte& byte : b.bytes) {
      out[0] = std::min(out[0], byte.read_count);
      out[1] = std::max(out[1], byte.read_count);
      out[2] = std::min(out[2], byte.write_count);
      out[3] = std::max(out[3], byte.write_count);
    }
  }
}

// {requests, bytes, sectors, least sectors, waves, least waves}
void emulation_traffic(const char* name, int write, uint64_t* out) {
  const Traffic t = traffic[{name, write != 0}];
  const uint64_t values[] = {t.requests, t.bytes, t.sectors, t.least_sectors, t.waves, t.least_waves};
  std::copy(std::begin(values), std::end(values), out);
}

#define TANDEM_HOOK(size)                                                                            \
  void __tsan_read##size(void* p) { access(p, size, false, __builtin_return_address(0)); }           \
  void __tsan_write##size(void* p) { access(p, size, true, __builtin_return_address(0)); }           \
  void __tsan_unaligned_read##size(void* p) { access(p, size, false, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##size(void* p) { access(p, size, true, __builtin_return_address(0)); }
TANDEM_HOOK(1)
TANDEM_HOOK(2)
TANDEM_HOOK(4)
TANDEM_HOOK(8)
TANDEM_HOOK(16)
void __tsan_read_range(void* p, size_t size) { access(p, size, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t size) { access(p, size, true, __builtin_return_address(0)); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

}  // extern "C"

}  // namespace emulation
