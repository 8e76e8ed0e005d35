// The product of lines with digits in sums of 32 bits. A file that defines these includes it once, before rows.inl:
//   TANDEM_TARGET, kLines<N>     as for rows.inl
//   Words                        a vector of sums
//   dot(sum, inputs, weights)    adds to each sum the products of four bytes, unsigned inputs times signed weights

constexpr int kDoubles = sizeof(Words) / sizeof(double);

template <int N>
TANDEM_TARGET TANDEM_INLINE void multiply_words(const Pass& pass, const Lines& lines, int32_t* sums) {
  constexpr int Rows = kLines<N>, kParts = kLanes * sizeof(int32_t) / sizeof(Words);
  Words sum[Rows][N][kParts]{};
  const int8_t* digits = pass.digits;
  for (int64_t c = 0; c < pass.chunks; ++c, digits += pass.chunk_bytes) {
    const uint8_t* in = lines.bytes + lines.offsets[c];
#pragma GCC unroll 2
    for (int64_t k = 0; k < kWords; ++k) {
      Words four[Rows];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) four[r] = Words{} + word_at(in + r * lines.pitch + 4 * k);
#pragma GCC unroll 3
      for (int d = 0; d < N; ++d) {
#pragma GCC unroll 2
        for (int h = 0; h < kParts; ++h) {
          const auto weights = load<Words>(digits + d * kTileBytes + k * 64 + h * sizeof(Words));
#pragma GCC unroll 8
          for (int r = 0; r < Rows; ++r) sum[r][d][h] = dot(sum[r][d][h], four[r], weights);
        }
      }
    }
  }
  std::memcpy(sums, sum, sizeof(sum));
}
