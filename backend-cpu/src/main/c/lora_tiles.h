// LoRA on tiles, for rows of bf16. Included by amx.c.

// B's products of positions from..to-1 of a segment are added to v, which begins with position `row`: a window of 16 of the task's positions around them is
// multiplied, in sums of its own, by pieces for 16 outputs, or by those for a first 16 and a second. The others' s may be anything.
INLINE void expand_tiles(const struct lora *l, const struct moe_segment *g, int which, int64_t from, int64_t to, const char *b, const char *second, float *v, int64_t row) {
  float d[16 * BLOCK] __attribute__((aligned(64)));
  const struct moe_target *t = g->target + which;
  const struct moe_task *task = l->t;
  const int64_t bytes = TILE_BYTES * (l->width / HALF), s_stride = l->c->s_stride;
  const int lane = l->width == HALF && !second && which == UP ? HALF : 0;
  for (int64_t p = from; p < to; p += 16) {
    const int64_t at = task->rows < 16 ? task->row : least(p, task->row + task->rows - 16);
    const char *s = (const char *)t->s + (at - g->from) * s_stride;
    _tile_zero(0);
    if (second) _tile_zero(1);
    for (int64_t i = 0; i < tiles_of(t->rank); i++) {
      _tile_loadd(4, s + i * 64, s_stride);
      _tile_loadd(6, b + i * bytes, 64);
      _tile_dpbf16ps(0, 4, 6);
      if (second) {
        _tile_loadd(7, second + i * bytes, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
    }
    _tile_stored(0, d, BLOCK * 4);
    if (second) _tile_stored(1, d + HALF, BLOCK * 4);
    float *to_row = v + (p - row) * BLOCK + lane;
    const float *from_row = d + (p - at) * BLOCK;
    for (int64_t q = p; q < least(p + 16, to); q++, to_row += BLOCK, from_row += BLOCK) {
      *(vf *)to_row += *(const vf *)from_row;
      if (second) *(vf *)(to_row + HALF) += *(const vf *)(from_row + HALF);
    }
  }
}

// 32 values of k of up to 16 rows of A, as tiles want them: [pair of values][row].
INLINE void transpose_pairs(const char *a, int64_t a_row, int64_t rows, __mmask32 there, char *to) {
  __m512i r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) r[i] = _mm512_maskz_loadu_epi16(i < rows ? there : 0, i < rows ? a + i * a_row : a);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    __m512i even0 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), odd0 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    __m512i even1 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88), odd1 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    _mm512_store_si512(to + j * 64, _mm512_shuffle_i32x4(even0, even1, 0x88));
    _mm512_store_si512(to + (4 + j) * 64, _mm512_shuffle_i32x4(odd0, odd1, 0x88));
    _mm512_store_si512(to + (8 + j) * 64, _mm512_shuffle_i32x4(even0, even1, 0xdd));
    _mm512_store_si512(to + (12 + j) * 64, _mm512_shuffle_i32x4(odd0, odd1, 0xdd));
  }
}

// A's products: A is transposed, 16 ranks and 128 values of k at a time, for up to 32 rows.
static void shrink_target(const struct moe_target *t, const char *x, int64_t xs, int64_t rows, int64_t in, int64_t s_stride) {
  enum { AHEAD = 1024 };
  char pairs[4][1024] __attribute__((aligned(64)));
  for (int64_t k0 = 0; k0 < t->rank; k0 += TILE_RANKS) {
    const int64_t ranks = least(TILE_RANKS, t->rank - k0);
    const char *a = t->a + k0 * t->a_row;
    configure(least(rows, 16), 64, ranks);
    for (int64_t r = 0; r < rows; r += 32) {
      const struct window s = window_of(r, rows);
      const char *x0 = x + s.at * xs, *x1 = x0 + s.second * xs;
      float *to = (float *)((char *)t->s + s.at * s_stride) + k0;
      if (r == 0)
        for (int64_t i = 0; i < ranks; i++)
          for (int64_t q = 0; q < least(AHEAD, in * 2); q += 64) _mm_prefetch(a + i * t->a_row + q, _MM_HINT_T1);
      _tile_zero(0);
      _tile_zero(2);
      for (int64_t i = 0; i < in; i += 128) {
        const int64_t steps = least(4, (in - i + 31) / 32);
        for (int64_t q = 0; q < steps; q++) {
          const int64_t at = i + q * 32;
          if (r == 0)
            for (int64_t j = 0; j < ranks; j++) _mm_prefetch(a + j * t->a_row + at * 2 + AHEAD, _MM_HINT_T1);
          transpose_pairs(a + at * 2, t->a_row, ranks, in - at >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << (in - at)) - 1, pairs[q]);
        }
        for (int64_t q = 0; q < steps; q++) {
          _tile_loadd(6, pairs[q], 64);
          _tile_loadd(4, x0 + (i + q * 32) * 2, xs);
          _tile_dpbf16ps(0, 4, 6);
          if (s.second) {
            _tile_loadd(5, x1 + (i + q * 32) * 2, xs);
            _tile_dpbf16ps(2, 5, 6);
          }
        }
      }
      _tile_stored(0, to, s_stride);
      if (s.second) _tile_stored(2, (char *)to + s.second * s_stride, s_stride);
    }
  }
}

// Rows of s for expand_tiles(): each number as its upper bits and, rounded to bf16, what they leave.
static void split(const struct moe_target *t, int64_t rows, int64_t s_stride) {
  const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t k = 0; k < t->rank; k += TILE_RANKS) {
      float *p = (float *)((char *)t->s + r * s_stride) + k;
      const __mmask16 there = (__mmask16)((1u << least(TILE_RANKS, t->rank - k)) - 1);
      const __m512i v = _mm512_castps_si512(_mm512_maskz_loadu_ps(there, p)), high = _mm512_and_si512(v, upper);
      const __m512 left = _mm512_sub_ps(_mm512_castsi512_ps(v), _mm512_castsi512_ps(high));
      // Infinity leaves nothing.
      const __mmask16 finite = _mm512_cmp_ps_mask(left, left, _CMP_ORD_Q);
      const __m512i low = _mm512_maskz_cvtepu16_epi32(finite, (__m256i)to_bf16((vf)left));
      _mm512_storeu_si512(p, _mm512_or_si512(high, low));
    }
}

static void shrink(const struct moe_call *c, int64_t segment, int32_t down) {
  const struct moe_segment *g = c->segments + segment;
  const int64_t rows = g->to - g->from, in = down ? c->intermediate : c->hidden, xs = down ? c->act_stride : c->x_stride;
  const char *x = down ? c->act + g->from * xs : c->x + g->from * xs;
  if (rows <= 0) return;
  for (int i = down ? DOWN : GATE; i <= (down ? DOWN : UP); i++) {
    const struct moe_target *t = g->target + i;
    if (t->rank == 0 || !t->own_shrink) continue;
    if (c->row_type == TYPE_BF16 && t->a_type == TYPE_BF16 && t->a_col == 2) shrink_target(t, x, xs, rows, in, c->s_stride);
    else shrink_target_avx512(c, t, x, xs, rows, in);
    if (on_tiles(c, g, i)) split(t, rows, c->s_stride);
  }
  _tile_release();
}
