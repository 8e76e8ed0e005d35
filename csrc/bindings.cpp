// The module tandem_ext._C: importing it registers the ops, and refuses variables with values that are not allowed.
#include <pybind11/pybind11.h>

#include "kernels/cpu/capability.h"
#include "kernels/dispatch/choose.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of tandem_ext; the ops are torch.ops.tandem.*";
  tandem::cpu::capability();       // an invalid TANDEM_CPU_CAPABILITY is an ImportError, not a crash in the first layer
  tandem::cpu::fixed_algorithm();  // and so is an invalid TANDEM_PATH
}
