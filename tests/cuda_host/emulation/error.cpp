// The text of an error for the ops: what the emulation has reported.
#include <string>

#include "emulator.h"

namespace emulation {
extern "C" {
size_t emulation_report_count();
const char* emulation_report(size_t i);
}
}  // namespace emulation

namespace tandem::cuda {

const char* error_text(int status) {
  const size_t reports = emulation::emulation_report_count();
  if (reports > 0) return emulation::emulation_report(reports - 1);
  static std::string text;
  text = "CUDA error " + std::to_string(status);
  return text.c_str();
}

}  // namespace tandem::cuda
