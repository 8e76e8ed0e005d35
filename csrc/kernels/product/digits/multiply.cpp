// Multiplies a tile, column by column: in passes over the rows, each by as many digits as stay in L1.
#include "../../cpu/capability.h"
#include "loops.h"

#if TANDEM_MULTIVERSION
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tandem::cpu {

#if TANDEM_MULTIVERSION

namespace {

bool has_amx() {
  constexpr int kFirstLeaf = 7, kTileBit = 24, kInt8Bit = 25;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(kFirstLeaf, 0, &a, &b, &c, &d) == 0 || !(d >> kTileBit & 1) || !(d >> kInt8Bit & 1)) {
    return false;
  }
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // Linux provides the tile registers on request
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

const Loops& loops_of(ByteProducts by) {
  if (by == ByteProducts::kAmx) return kAmxLoops;
  if (by == ByteProducts::kAvx512Vnni) return kVnniLoops;
  return by == ByteProducts::kAvxVnni ? kAvxVnniLoops : kAvx2Loops;
}

}  // namespace

bool has(ByteProducts kind) {
  const Capability level = capability();
  if (kind == ByteProducts::kAvx2) return level != Capability::kDefault;
  if (kind == ByteProducts::kAvxVnni) return level != Capability::kDefault && has_avx_vnni();
  if (kind == ByteProducts::kAvx512Vnni) return level == Capability::kV4 && __builtin_cpu_supports("avx512vnni");
  return kind == ByteProducts::kNone || (level == Capability::kV4 && has_amx());
}

template <class Sum>
void multiply(const ExpandedInputs& inputs, const DigitColumn* columns, int registers, Sum* sums, ByteProducts by) {
  const Loops& loops = loops_of(by);
  const int64_t passes = (inputs.chunks + loops.pass_chunks - 1) / loops.pass_chunks;
  int64_t turns = 0;  // products of 16 rows, of two steps, in a pass
  for (const ExpandedPiece& piece : inputs.pieces) turns += whole_tiles(piece.rows) / kTileRows * ((inputs.T + 1) / 2);
  loops.begin();
  for (int r = 0; r < registers; ++r) {
    const DigitColumn& column = columns[r];
    const int groups = column.count == kMostDigits ? 2 : 1, digits = column.count / groups;
    const int64_t lines = column.count * kTileBytes / 64;
    Fetch fetch{column.next, column.next + inputs.chunks * lines * 64, (lines + turns * groups - 1) / (turns * groups)};
    for (int64_t i = 0; i < passes * groups; ++i) {
      const int64_t begin = inputs.chunks * (i / groups) / passes, end = inputs.chunks * (i / groups + 1) / passes;
      const int digit = static_cast<int>(i % groups) * digits;
      const Pass pass{begin,
                      end - begin,
                      column.digits + (begin * column.count + digit) * kTileBytes,
                      column.count * kTileBytes,
                      digits,
                      column.shift + 8 * digit,
                      i == 0,
                      16 * registers,
                      fetch};
      loops.run(inputs, pass, sums + r * 16);
    }
  }
  loops.end();
}

#else

bool has(ByteProducts kind) { return kind == ByteProducts::kNone; }
template <class Sum>
void multiply(const ExpandedInputs&, const DigitColumn*, int, Sum*, ByteProducts) {}

#endif

template void multiply(const ExpandedInputs&, const DigitColumn*, int, int32_t*, ByteProducts);
template void multiply(const ExpandedInputs&, const DigitColumn*, int, double*, ByteProducts);

ByteProducts byte_products() {
  static const ByteProducts fastest = [] {
    for (auto kind : {ByteProducts::kAmx, ByteProducts::kAvx512Vnni, ByteProducts::kAvxVnni, ByteProducts::kAvx2}) {
      if (has(kind)) return kind;
    }
    return ByteProducts::kNone;
  }();
  return fastest;
}

}  // namespace tandem::cpu
