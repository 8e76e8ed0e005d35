// The module tandem_ext._C: the names and schemas of all ops, and the few functions that take no tensors.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include "kernels/cpu/capability.h"
#include "kernels/dispatch/choose.h"
#ifdef TANDEM_WITH_CUDA
#include "kernels/cuda/error.h"
#endif
#include "ops/fields.h"

#define PRODUCT "Tensor stored" TANDEM_PRODUCT_FIELDS(TANDEM_SCHEMA)
#define NEURON TANDEM_SCALED_NEURON_FIELDS(TANDEM_SCHEMA)
#define CONV TANDEM_CONV_FIELDS(TANDEM_SCHEMA)
#define NORMALISED                  \
  TANDEM_NORM_FIELDS(TANDEM_SCHEMA) \
  TANDEM_NEURON_FIELDS(TANDEM_SCHEMA) ", bool return_v" TANDEM_TENSOR_FIELDS(TANDEM_SCHEMA)
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
  m.def(
      "bn_statistics(Tensor product, float factor, Tensor? gain, Tensor? gamma, Tensor? beta, float eps) -> "
      "(Tensor mean, Tensor var, Tensor scale, Tensor shift)");
  m.def(
      "bn_grad(Tensor grad, Tensor mask, Tensor product, Tensor mean, Tensor var, Tensor? gain, Tensor? gamma, "
      "float eps, float threshold) -> (Tensor grad_product, Tensor grad_gamma, Tensor grad_beta)");
  m.def("frozen_digits(Tensor weight, int groups) -> Tensor");
  m.def("frozen_fields() -> str");
  m.def("frozen_check(Tensor program, Tensor numbers) -> (bool valid, int instruction, str why)");
  m.def("frozen_read(Tensor program, Tensor numbers) -> Tensor network");
  m.def("frozen_free(Tensor(a!) network) -> ()");
  m.def("frozen_run(Tensor input, int T, str timing, Tensor network, bool every_step) -> Tensor readout");
  m.def("frozen_state(Tensor network, int[] shape, int T) -> (Tensor state, bool follows, int instruction, str why)");
  m.def(
      "frozen_step(Tensor? input, bool advances, int[] shape, int T, Tensor network, Tensor(a!) state, bool begins, "
      "int steps, bool with_moves) -> (Tensor readout, Tensor facts, Tensor[] moves)");
}

// Weak, so that the module loads without Python when only its ops are needed. Python 3.13 no longer has this name.
#if defined(__ELF__)
#pragma weak _PyThreadState_UncheckedGet
#endif

namespace {

namespace py = pybind11;

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

const char* byte_products() {
  constexpr const char* kNames[] = {"none", "avx2", "avx-vnni", "avx512-vnni", "amx"};  // in the order of ByteProducts
  return kNames[static_cast<int>(tandem::cpu::byte_products())];
}

py::dict build_info() {
  constexpr auto version_part = [](int shift) { return std::to_string((TORCH_TARGET_VERSION >> shift) & 0xff); };
  py::dict info;
  info["version"] = TANDEM_VERSION;
  info["torch_target"] = version_part(56) + "." + version_part(48);
  info["cuda_archs"] = py::none();
  info["cuda_versions"] = py::none();  // of the toolkit, and of the driver (0 without one)
#ifdef TANDEM_WITH_CUDA
  info["cuda_archs"] = py::str(TANDEM_CUDA_ARCHS).attr("split")();
  info["cuda_versions"] = py::make_tuple(tandem::cuda::toolkit_version(), tandem::cuda::driver_version());
#endif
  info["cpu_capability"] = tandem::cpu::capability_name(tandem::cpu::capability());
  info["byte_products"] = byte_products();  // of this processor, at this capability
  info["compiler"] = compiler();
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of tandem_ext; the ops are torch.ops.tandem.*";
  tandem::cpu::capability();       // an invalid TANDEM_CPU_CAPABILITY is an ImportError, not a crash in the first layer
  tandem::cpu::fixed_algorithm();  // and so is an invalid TANDEM_PATH
  m.def("build_info", &build_info,
        "What was built: version, torch_target, cuda_archs, cpu_capability, byte_products, compiler.");
}
