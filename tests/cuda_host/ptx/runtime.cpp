// A CUDA runtime to link with: the functions that nvcc's host code and the launchers call. It runs uncompressed PTX of
// fat binaries on the machine. Device memory is host memory. It checks launches as the real runtime does.
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "checker.h"

using namespace ptx;

extern "C" {

// What tests set, by name; the defaults are the least since Ampere.
int emulation_failure = 0;  // status of the next launch
int emulation_multiprocessors = 1;
int emulation_shared = 100 * 1024;  // of a multiprocessor, in bytes
int emulation_opt_in = 99 * 1024;   // what a kernel may request of it
char emulation_stream = 0;          // its address is the stream that every launch must use

}  // extern "C"

namespace {

// cudaError_t
enum Status : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kInvalidConfiguration = 9,
  kInvalidDeviceFunction = 98,
  kOutOfResources = 701,
  kLaunchFailure = 719,
};

constexpr int kStaticLimit = 48 * 1024;         // bytes of shared memory that a kernel may have unless it requests more
constexpr int kMaxDynamicSharedMemorySize = 8;  // an attribute of a kernel
constexpr int kMultiprocessorCount = 16;        // of a device
constexpr int kMultiprocessorShared = 81;

struct Function {
  const std::string* module;
  std::string name;
  std::unique_ptr<Kernel> kernel = nullptr;
  int most_shared = kStaticLimit;
  std::map<int, int> requests = {};  // by the shared memory of the card: bytes that the kernel has requested
};

struct Configuration {
  Dim grid, block;
  size_t shared;
  void* stream;
};

std::map<const void*, Function>& functions() {
  static std::map<const void*, Function> all;
  return all;
}
Configuration pushed;
int last_error = kSuccess;

int fails(int status) { return last_error = status; }

// The PTX of a fat binary: sixteen bytes, the last eight of which are the size of what follows.
std::string ptx_of(const char* data) {
  uint64_t size;
  std::memcpy(&size, data + 8, sizeof(size));
  const std::string_view all(data, 16 + size);
  const size_t begin = all.find(".version");
  if (begin == all.npos) {
    std::fprintf(stderr, "a fat binary without PTX, or with PTX that is compressed: compile with -no-compress\n");
    std::abort();
  }
  return std::string(all.substr(begin, all.find('\0', begin) - begin));
}

int launch(Function& f, const Configuration& c, void** arguments) {
  if (emulation_failure != kSuccess) return fails(std::exchange(emulation_failure, kSuccess));
  if (c.stream != &emulation_stream) {
    machine.reports.push_back("a launch on another stream than the caller's: " + f.name);
    return fails(kLaunchFailure);
  }
  try {
    if (f.kernel == nullptr) f.kernel = parse(*f.module, f.name);
  } catch (const Fault& unknown) {
    machine.reports.push_back(unknown.what());
    return fails(kInvalidDeviceFunction);
  }
  const Kernel& kernel = *f.kernel;
  const Dim &grid = c.grid, &block = c.block;
  if (grid.count() == 0 || block.count() == 0) return fails(kInvalidConfiguration);
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return fails(kInvalidConfiguration);
  if (block.count() > 1024 || block.y * block.z > 1) return fails(kInvalidConfiguration);
  if (c.shared + kernel.static_shared > static_cast<size_t>(f.most_shared)) return fails(kInvalidValue);
  if (block.count() > kernel.most_threads) return fails(kOutOfResources);
  std::vector<std::byte> parameters(kernel.parameters_end);
  for (const Variable& parameter : kernel.parameters) {
    std::memcpy(parameters.data() + parameter.begin, *arguments++, parameter.bytes);
  }
  const size_t before = machine.reports.size();
  machine.launch(kernel, grid, block, static_cast<uint32_t>(c.shared), parameters);
  return machine.reports.size() == before ? kSuccess : fails(kLaunchFailure);
}

}  // namespace

extern "C" {

// --- what nvcc's host code calls -------------------------------------------------------------------------------------

void** __cudaRegisterFatBinary(void* wrapper) {
  struct Wrapper {
    int magic, version;
    const char* data;
  };
  return reinterpret_cast<void**>(new std::string(ptx_of(static_cast<const Wrapper*>(wrapper)->data)));
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void** module, const void* host, char*, const char* name, int, void*, void*, void*, void*,
                            int*) {
  functions()[host] = {reinterpret_cast<const std::string*>(module), name};
}
unsigned __cudaPushCallConfiguration(Dim grid, Dim block, size_t shared, void* stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}
int __cudaPopCallConfiguration(Dim* grid, Dim* block, size_t* shared, void** stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *stream = pushed.stream;
  return kSuccess;
}
int __cudaGetKernel(const void** kernel, const void* host) {
  *kernel = host;
  return functions().count(host) != 0 ? kSuccess : kInvalidDeviceFunction;
}
int __cudaLaunchKernel(const void* host, Dim grid, Dim block, void** arguments, size_t shared, void* stream) {
  const auto f = functions().find(host);
  if (f == functions().end()) return fails(kInvalidDeviceFunction);
  return launch(f->second, {grid, block, shared, stream}, arguments);
}
int cudaLaunchKernel(const void* host, Dim grid, Dim block, void** arguments, size_t shared, void* stream) {
  return __cudaLaunchKernel(host, grid, block, arguments, shared, stream);
}

// --- what the launchers call -----------------------------------------------------------------------------------------

int cudaFuncSetAttribute(const void* host, int attribute, int value) {
  const auto f = functions().find(host);
  if (f == functions().end()) return fails(kInvalidDeviceFunction);
  if (attribute != kMaxDynamicSharedMemorySize || value < 0 || value > emulation_opt_in) return fails(kInvalidValue);
  if (f->second.requests.try_emplace(emulation_shared, value).first->second != value) {
    machine.reports.push_back("another size of shared memory, while other threads may be launching " + f->second.name);
  }
  f->second.most_shared = std::max(kStaticLimit, value);
  return kSuccess;
}
int cudaGetDevice(int* device) {
  *device = 0;
  return kSuccess;
}
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  if (attribute != kMultiprocessorCount && attribute != kMultiprocessorShared) return fails(kInvalidValue);
  *value = attribute == kMultiprocessorCount ? emulation_multiprocessors : emulation_shared;
  return kSuccess;
}
int cudaDriverGetVersion(int* version) {
  *version = 0;
  return kSuccess;
}
int cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = 0;
  return kSuccess;
}
int cudaGetLastError() { return std::exchange(last_error, kSuccess); }
const char* cudaGetErrorString(int status) {
  static std::string text;
  text = "CUDA error " + std::to_string(status);
  if (!machine.reports.empty()) text += ": " + machine.reports.back();
  return text.c_str();
}

// --- what tests call -------------------------------------------------------------------------------------------------

// The ops get the stream from torch's function of this name.
int aoti_torch_get_current_cuda_stream(int, void** stream) {
  *stream = &emulation_stream;
  return 0;
}

// Forgets reports, counters and buffers. Of later launches these blocks of a grid run.
void emulation_begin(uint64_t seed, uint64_t first_block, uint64_t blocks) {
  machine = {seed, first_block, blocks, {}, {}};
  checker::forget_buffers();
}
const char* emulation_reports() {
  static std::string text;
  text.clear();
  for (const std::string& report : machine.reports) text += report + "\n";
  return text.c_str();
}
// The kernels that were never launched, of all that are linked: a name a line.
const char* emulation_unused() {
  static std::string text;
  text.clear();
  for (const auto& [host, function] : functions()) {
    if (function.kernel == nullptr) text += function.name + "\n";
  }
  return text.c_str();
}
// The totals of all kernels whose name contains `kernel`: {instructions of warps, mma, warps, waits}.
const uint64_t* emulation_counters(const char* kernel) {
  static uint64_t out[4];
  out[0] = out[1] = out[2] = out[3] = 0;
  for (const auto& [name, counters] : machine.counters) {
    if (name.find(kernel) == name.npos) continue;
    out[0] += counters.instructions;
    out[1] += counters.mma;
    out[2] += counters.warps;
    out[3] += counters.waits;
  }
  return out;
}

}  // extern "C"
