// The text of a CUDA error, for callers that do not include the CUDA runtime.
#pragma once

namespace tandem::cuda {

const char* error_text(int status);

}  // namespace tandem::cuda
