// The loop over rows, for instructions on vectors. A file that defines these includes it once:
//   TANDEM_TARGET         the target of the instruction, because a function for one target is not inlined into another
//   kDoubles              doubles in a vector
//   kLines<N>             lines of inputs at a time, a divisor of 8: as many as keep N sums each in registers
//   multiply<N>(...)      the product of kLines<N> lines with N digits, [kLines<N>, N, 16]

// Combines the sums of digits, [lines, N, 16], to sums of weights in `unit`. Adds them to `out` unless `first`.
template <int N>
TANDEM_TARGET inline void combine(const int32_t* sums, int64_t lines, const Pass& pass, double* out) {
  typedef Vec<double, kDoubles> Wide;
  const auto unit = static_cast<double>(int64_t{1} << pass.shift);
  for (int64_t line = 0; line < lines; ++line, sums += N * 16) {
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += kDoubles) {
      Wide sum{};
#pragma GCC unroll 4
      for (int d = N - 1; d >= 0; --d) {
        sum = 256 * sum + __builtin_convertvector(load<Int<float, kDoubles>>(sums + d * 16 + i), Wide);
      }
      double* target = out + line * pass.stride + i;
      store(target, pass.first ? sum * unit : sum * unit + load<Wide>(target));
    }
  }
}

// The same for one digit and sums that fit int32.
TANDEM_TARGET inline void combine(const int32_t* sums, int64_t lines, const Pass& pass, int32_t* out) {
  for (int64_t line = 0; line < lines; ++line, out += pass.stride) {
    for (int i = 0; i < 16; ++i) {
      const auto bits = static_cast<uint32_t>(sums[16 * line + i]) << pass.shift;  // of a negative int it is undefined
      out[i] = (pass.first ? 0 : out[i]) + static_cast<int32_t>(bits);
    }
  }
}

// A line is a row.
template <int N>
TANDEM_TARGET void rows_of_counts(const ExpandedInputs& inputs, const Pass& pass, double* out) {
  alignas(64) int32_t sums[kLines<N> * N * 16];
  for (const ExpandedPiece& piece : inputs.pieces) {
    for (int64_t row = 0; row < piece.rows; row += kLines<N>) {
      const int64_t rows = std::min<int64_t>(kLines<N>, piece.rows - row);
      const Lines lines{inputs.row(piece, row), piece.row_bytes, piece.offsets + pass.begin, inputs.most};
      multiply<N>(pass, lines, sums);
      combine<N>(sums, rows, pass, out);
      out += rows * pass.stride;
    }
  }
}

void counts(const ExpandedInputs& inputs, const Pass& pass, Fetch&, double* out) {
  if (pass.count == 1) rows_of_counts<1>(inputs, pass, out);
  if (pass.count == 2) rows_of_counts<2>(inputs, pass, out);
  if (pass.count == 3) rows_of_counts<3>(inputs, pass, out);
}

// A line is a step of a row.
TANDEM_TARGET void steps(const ExpandedInputs& inputs, int T, const Pass& pass, Fetch&, int32_t* out) {
  constexpr int kSteps = kLines<1>;
  alignas(64) int32_t sums[kSteps * 16];
  for (const ExpandedPiece& piece : inputs.pieces) {
    for (int64_t row = 0; row < piece.rows; ++row) {
      for (int t = 0; t < (T + 7) / 8 * 8; t += kSteps, out += kSteps * pass.stride) {
        if (t >= T) continue;
        const uint8_t* spikes = inputs.row(piece, row) + t * piece.step_bytes;
        multiply<1>(pass, {spikes, piece.step_bytes, piece.offsets + pass.begin, 1}, sums);
        combine(sums, kSteps, pass, out);
      }
    }
  }
}

void nothing() {}
