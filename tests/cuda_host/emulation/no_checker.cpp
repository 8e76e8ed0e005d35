// Stands in for checker.cpp where only values and speed matter.
#include "internal.h"

namespace emulation {

void check_begin_launch() {}
void check_begin_block() {}
void check_end_block(int) {}
void check_shared_array(const char*, char*, size_t) {}
void check_read(const void*, size_t, const void*) {}
void check_copy_issued(const Copy&, const void*) {}
void check_copy_landed(const Copy&) {}

}  // namespace emulation
