// Rows of int8 times codes, for units that multiply signed bytes by unsigned ones and add four products to an int32. What a run of values of k makes is exact:
//   sum of x (code - zero) = sum of x code - zero (sum of x)
// Then it is scaled and added in f32, in the same order for one row and for many.

struct zeros {
  vi of[BLOCK / VL];
};

// What is subtracted from the unsigned codes of a group.
INLINE struct zeros zeros_of(const struct moe_coded *q, const char *w, int64_t group) {
  struct zeros z;
  for (int j = 0; j < BLOCK / VL; j++) {
    z.of[j] = (vi){} + (q->format != CODE_4 ? 128 : q->zeros ? 0 : 8);
    if (q->zeros) z.of[j] += __builtin_convertvector(zeros_at(q, w, group, j * VL), vi);
  }
  return z;
}

#ifdef __AVX512F__
// 16 outputs' words of eight 4-bit codes: the first four of a row of int8 and the others.
INLINE __m512i first_nibbles(__m512i words) { return _mm512_and_si512(words, _mm512_set1_epi8(15)); }
INLINE __m512i other_nibbles(__m512i words) { return _mm512_and_si512(_mm512_srli_epi16(words, 4), _mm512_set1_epi8(15)); }

// [k / 8][32] words become [k / 4][32][4] bytes.
INLINE void widen_nibbles(const char *codes, int64_t k, char *to, int64_t ahead) {
  for (int64_t i = 0; i < k; i += 8, codes += 128, to += 256) {
    const __m512i v0 = _mm512_loadu_si512(codes), v1 = _mm512_loadu_si512(codes + 64);
    if (ahead) {
      __builtin_prefetch(codes + ahead);
      __builtin_prefetch(codes + ahead + 64);
    }
    _mm512_store_si512(to, first_nibbles(v0));
    _mm512_store_si512(to + 64, first_nibbles(v1));
    _mm512_store_si512(to + 128, other_nibbles(v0));
    _mm512_store_si512(to + 192, other_nibbles(v1));
  }
}
#endif

// Each row times its own scale and the expert's factors.
INLINE void times_scales(const struct moe_coded *q, int64_t expert, const char *x, int64_t xs, int64_t rows, int64_t k, float *c) {
  const float *factor = q->factors + expert * 2;
  const int64_t run = run_of(q), at = k + (k + run - 1) / run * 4;
  for (int64_t r = 0; r < rows; r++, c += BLOCK) {
    const float scale = *(const float *)(x + r * xs + at);
    for (int64_t i = 0; i < BLOCK; i += VL) *(vf *)(c + i) *= scale * factor[i / HALF];
  }
}
