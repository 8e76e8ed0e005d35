// The loop over rows, for instructions on vectors. A file that defines these includes it once:
//   TANDEM_TARGET         the target of the instruction, because a function for one target is not inlined into another
//   kDoubles              doubles in a vector (words.inl)
//   kLines<N>             lines of inputs at a time, a divisor of 8: as many as keep N sums each in registers
//   multiply_lines<N>(...)      the product of kLines<N> lines with N digits, [kLines<N>, N, 16]

// A line is a row.
template <int N, class Sum>
TANDEM_TARGET void rows_of_counts(const ExpandedInputs& inputs, const Pass& pass, Sum* out) {
  alignas(64) int32_t sums[kLines<N> * N * 16];
  for (const ExpandedPiece& piece : inputs.pieces) {
    for (int64_t row = 0; row < piece.rows; row += kLines<N>) {
      const int64_t rows = std::min<int64_t>(kLines<N>, piece.rows - row);
      const Lines lines{inputs.row(piece, row), piece.row_bytes, piece.offsets + pass.begin, inputs.words + pass.begin,
                        inputs.most};
      multiply_lines<N>(pass, lines, sums);
      combine<N, kDoubles>(sums, N * 16, 16, rows, pass, out, pass.stride);
      out += rows * pass.stride;
    }
  }
}

template <class Sum>
void counts(const ExpandedInputs& inputs, const Pass& pass, Sum* out) {
  if (pass.count == 1) rows_of_counts<1>(inputs, pass, out);
  if (pass.count == 2) rows_of_counts<2>(inputs, pass, out);
  if (pass.count == 3) rows_of_counts<3>(inputs, pass, out);
}

// A line is a step of a row.
TANDEM_TARGET void steps(const ExpandedInputs& inputs, const Pass& pass, int32_t* out) {
  constexpr int kSteps = kLines<1>;
  alignas(64) int32_t sums[kSteps * 16];
  for (const ExpandedPiece& piece : inputs.pieces) {
    for (int64_t row = 0; row < piece.rows; ++row) {
      for (int t = 0; t < (inputs.T + 7) / 8 * 8; t += kSteps, out += kSteps * pass.stride) {
        if (t >= inputs.T) continue;
        const uint8_t* spikes = inputs.row(piece, row) + t * piece.step_bytes;
        const Lines lines{spikes, piece.step_bytes, piece.offsets + pass.begin, inputs.words + pass.begin, 1};
        multiply_lines<1>(pass, lines, sums);
        combine<1, kDoubles>(sums, 16, 16, kSteps, pass, out, pass.stride);
      }
    }
  }
}

void nothing() {}
