// The names and schemas of all ops, and how they were built.
#include <torch/csrc/stable/library.h>

#include <string>

#include "../kernels/cpu/capability.h"
#ifdef TANDEM_WITH_CUDA
#include "../kernels/cuda/error.h"
#endif
#include "fields.h"

#define PRODUCT "Tensor stored" TANDEM_PRODUCT_FIELDS(TANDEM_SCHEMA)
#define NEURON TANDEM_SCALED_NEURON_FIELDS(TANDEM_SCHEMA)
#define CONV TANDEM_CONV_FIELDS(TANDEM_SCHEMA)
#define NORMALISED                  \
  TANDEM_NORM_FIELDS(TANDEM_SCHEMA) \
  TANDEM_NEURON_FIELDS(TANDEM_SCHEMA) ", bool return_v" TANDEM_TENSOR_FIELDS(TANDEM_SCHEMA) UNIT
// gamma and beta are divided by unit, and their gradients; number is the gain, where that is no tensor.
#define UNIT ", float unit=1.0, float number=1.0"
#define DIGITS ", Tensor? digits=None"  // the weight's digits, as frozen_digits gives them
// torch_call_dispatcher takes the types of results from behind (torch 2.13): they read the same both ways.
#define SPIKES "(Tensor stored, Tensor? counts, Tensor? mask, Tensor? v, Tensor bad)"  // None: not asked for
#define SPIKES_AND_MOMENTS \
  "(Tensor stored, Tensor counts, Tensor mask, Tensor? v, Tensor? product, Tensor mean, Tensor var, Tensor bad)"

STABLE_TORCH_LIBRARY(tandem, m) {
  m.def("if_scan(Tensor currents" NEURON ") -> " SPIKES);
  m.def("constant_if(Tensor current, int T" NEURON ") -> " SPIKES);
  m.def("impulse_if(Tensor current, int T" NEURON ") -> " SPIKES);
  m.def("linear_if(" PRODUCT NEURON DIGITS ") -> " SPIKES);
  m.def("conv_if(" PRODUCT CONV NEURON DIGITS ") -> " SPIKES);
  m.def("bn_if(" PRODUCT CONV NORMALISED ") -> " SPIKES_AND_MOMENTS);
  m.def("window_product(" PRODUCT CONV ", str timing=\"step\") -> Tensor");
  m.def("quantise(Tensor weight, int bits) -> (Tensor q, Tensor step)");
  m.def("pack(Tensor spikes) -> Tensor");
  m.def("unpack(Tensor planes, int T, ScalarType dtype) -> Tensor");
  m.def("counts(Tensor planes, ScalarType dtype) -> Tensor");
  m.def("count_bytes(Tensor planes) -> Tensor");
  m.def("burst_planes(Tensor counts, int T) -> Tensor");
  m.def("gate_grad(Tensor grad, Tensor mask, float threshold) -> Tensor");
  m.def("bn_statistics(Tensor product, float factor, Tensor? gain, Tensor? gamma, Tensor? beta, float eps" UNIT
        ") -> (Tensor mean, Tensor var, Tensor scale, Tensor shift)");
  m.def(
      "bn_grad(Tensor grad, Tensor mask, Tensor product, Tensor mean, Tensor var, Tensor? gain, Tensor? gamma, "
      "float eps, float threshold" UNIT ") -> (Tensor grad_product, Tensor grad_gamma, Tensor grad_beta)");
  m.def("frozen_digits(Tensor weight, int groups) -> Tensor");
  m.def("frozen_fields() -> str");
  m.def("build_info() -> str");
  m.def("frozen_check(Tensor program, Tensor numbers) -> (bool valid, int instruction, str why)");
  m.def("frozen_read(Tensor program, Tensor numbers) -> Tensor network");
  m.def("frozen_free(Tensor(a!) network) -> ()");
  m.def("frozen_run(Tensor?[] inputs, int T, str timing, Tensor network, bool every_step) -> Tensor[] answers");
  m.def("frozen_state(Tensor network, int[] shape, int T) -> (Tensor state, bool follows, int instruction, str why)");
  m.def(
      "frozen_step(Tensor?[] inputs, bool advances, int[] shape, int T, Tensor network, Tensor(a!) state, bool begins, "
      "int steps, bool with_moves) -> (Tensor[] answers, Tensor facts, Tensor[] moves)");
}

namespace tandem::ops {

namespace {

#ifdef __clang__
constexpr char kCompiler[] = "clang " __clang_version__;
#else
constexpr char kCompiler[] = "gcc " __VERSION__;
#endif

const char* byte_products() {
  constexpr const char* kNames[] = {"none", "avx2", "avx-vnni", "avx512-vnni", "amx"};  // in the order of ByteProducts
  return kNames[static_cast<int>(cpu::byte_products())];
}

// Lines of a name and its value; those of CUDA are absent in a build without its kernels.
std::string build_info() {
  constexpr auto version_part = [](int shift) { return std::to_string((TORCH_TARGET_VERSION >> shift) & 0xff); };
  std::string info = "version " TANDEM_VERSION "\ntorch_target " + version_part(56) + "." + version_part(48);
#ifdef TANDEM_WITH_CUDA
  info += "\ncuda_archs " TANDEM_CUDA_ARCHS "\ncuda_toolkit " + std::to_string(cuda::toolkit_version());
  info += "\ncuda_driver " + std::to_string(cuda::driver_version());
#endif
  info += std::string("\ncpu_capability ") + cpu::capability_name(cpu::capability());
  return info + "\nbyte_products " + byte_products() + "\ncompiler " + kCompiler;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem, CompositeExplicitAutograd, m) { m.impl("build_info", TORCH_BOX(&build_info)); }

}  // namespace tandem::ops
