// Codes widened to pairs of bf16, [k / 2][32 outputs][2]: what bf16 units multiply. Every value of a code is exact in bf16.
// Two values of k: a word's lower half and its upper one.
INLINE __m512i pair_of(vf even, vf odd) {
  const __m512i high = _mm512_set1_epi32((int)0xffff0000);
  return _mm512_or_si512(_mm512_srli_epi32((__m512i)even, 16), _mm512_and_si512((__m512i)odd, high));
}

// The 16 values of 4-bit codes in bf16, twice, since look-ups take five bits.
INLINE __m512i pair_table(const struct moe_coded *q) {
  if (q->format != CODE_4) return _mm512_setzero_si512();
  __m512i once = _mm512_srli_epi32((__m512i)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)q->table))), 16);
  return _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(once));
}

// Fields n and n + 4 of a word are neighbours in k, so a look-up of halves gives pairs.
INLINE __m512i pairs_of(__m512i table, __m512i words, int n) { return _mm512_permutexvar_epi16(n ? _mm512_srli_epi16(words, (unsigned)n * 4) : words, table); }

INLINE void widen_pairs(const int format, __m512i table, const char *codes, int64_t k, char *to, int64_t ahead) {
  if (format == CODE_4) {
    for (int64_t i = 0; i < k; i += 8, codes += 128, to += 512) {
      __m512i v0 = _mm512_loadu_si512(codes), v1 = _mm512_loadu_si512(codes + 64);
      if (ahead) {
        __builtin_prefetch(codes + ahead);
        __builtin_prefetch(codes + ahead + 64);
      }
#pragma GCC unroll 4
      for (int n = 0; n < 4; n++) {
        _mm512_store_si512(to + n * 128, pairs_of(table, v0, n));
        _mm512_store_si512(to + n * 128 + 64, pairs_of(table, v1, n));
      }
    }
    return;
  }
  for (int64_t i = 0; i < k; i += 2, codes += 2 * BLOCK, to += 128) {
    if (ahead) __builtin_prefetch(codes + ahead);
    _mm512_store_si512(to, pair_of(byte_value(codes, format), byte_value(codes + BLOCK, format)));
    _mm512_store_si512(to + 64, pair_of(byte_value(codes + VL, format), byte_value(codes + BLOCK + VL, format)));
  }
}
