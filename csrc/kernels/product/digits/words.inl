// The product of lines with digits in sums of 32 bits. A file that defines these includes it once, before rows.inl:
//   TANDEM_TARGET, kLines<N>     as for rows.inl
//   Words                        a vector of sums
//   dot(sum, inputs, weights)    adds to each sum the products of four bytes, unsigned inputs times signed weights

constexpr int kDoubles = sizeof(Words) / sizeof(double);

template <int N>
TANDEM_TARGET TANDEM_INLINE void multiply_words(const Pass& pass, const Lines& lines, int32_t* sums) {
  constexpr int Rows = kLines<N>, kParts = kLanes * sizeof(int32_t) / sizeof(Words), M = N * kParts;
  Words sum[Rows][M]{};
  const int8_t* digits = pass.digits;
  for (int64_t c = 0; c < pass.chunks; ++c, digits += pass.chunk_bytes) {
    const uint8_t* in = lines.bytes + lines.offsets[c];
    const int64_t words = lines.words[c];
#pragma GCC unroll 2
    for (int64_t k = 0; k < words; ++k) {
      const int8_t* word = digits + k * 64;
      if constexpr (kParts == 1) {  // 32 registers keep all weights of four inputs beside the sums, 16 do not
        Words weights[M];
#pragma GCC unroll 6
        for (int i = 0; i < M; ++i) weights[i] = load<Words>(word + i * kTileBytes);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          const Words four = Words{} + word_at(in + r * lines.pitch + 4 * k);
#pragma GCC unroll 6
          for (int i = 0; i < M; ++i) sum[r][i] = dot(sum[r][i], four, weights[i]);
        }
      } else {
        Words four[Rows];
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) four[r] = Words{} + word_at(in + r * lines.pitch + 4 * k);
#pragma GCC unroll 6
        for (int i = 0; i < M; ++i) {
          const auto weights = load<Words>(word + i / kParts * kTileBytes + i % kParts * sizeof(Words));
#pragma GCC unroll 8
          for (int r = 0; r < Rows; ++r) sum[r][i] = dot(sum[r][i], four[r], weights);
        }
      }
    }
  }
  std::memcpy(sums, sum, sizeof(sum));
}
