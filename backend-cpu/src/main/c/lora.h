// LoRA: A's products of a segment, and B's products of some rows and one block. Included by rows.h.
//
// B's rows are far apart, often by a power of two, so lines of many of them share a few sets of every cache. What a task needs of B is therefore
// copied first: from each row one piece for several blocks, to where pieces of a block stand behind each other, [segment][target][rank][width].

#ifdef LORA_TILES
enum { STAGE_BYTES = 128 << 10 };
#else
enum { STAGE_BYTES = 64 << 10 };
#endif

// With LORA_TILES whoever includes this has tiles for B's products of rows of bf16 where B is bf16: expand_tiles(), and tile_step(q), the values of k of a tile.
// s then has pairs of bf16 whose sum is what A makes of x (one holds the upper bits, the other the lower ones), and B each value twice, so that products of
// 16 ranks are one tile. Pieces of B are [rank of a multiple of 16][16 outputs][2], for each 16 outputs.
enum { TILE_RANKS = 16, TILE_BYTES = TILE_RANKS * 64 };

INLINE int on_tiles(const struct moe_call *c, const struct moe_segment *g, int which) {
#ifdef LORA_TILES
  const struct moe_target *t = g->target + which, *other = g->target + (which == DOWN ? DOWN : UP - which);
  const struct moe_coded *q = which == DOWN ? c->type2 == TYPE_CODED ? c->coded2 : 0 : c->type13 == TYPE_CODED ? c->coded13 : 0;
  if (c->row_type != TYPE_BF16 || t->rank == 0 || t->b_type != TYPE_BF16 || t->rank > STAGE_BYTES / BLOCK / 4 || tile_step(q) != 32) return 0;
  return other->rank == 0 || other->s != t->s || other->b_type == TYPE_BF16;  // who shares s shares its form
#else
  (void)c, (void)g, (void)which;
  return 0;
#endif
}

INLINE int64_t tiles_of(int64_t ranks) { return (ranks + TILE_RANKS - 1) / TILE_RANKS; }

// c[row][column] += sum over ranks of s[row][rank] b[rank][column], for m rows and `vectors` vectors of columns.
INLINE void expand_few(const int m, const int vectors, const float *s, int64_t s_stride, const char *b, int64_t b_rank, int64_t ranks, float *c, const int type) {
  vf a[8][BLOCK / VL];
  for (int r = 0; r < m; r++)
    for (int j = 0; j < vectors; j++) a[r][j] = *(vf *)(c + r * BLOCK + j * VL);
  const char *sk = (const char *)s;
  for (int64_t k = 0; k < ranks; k++, b += b_rank, sk += 4) {
    vf w[BLOCK / VL];
    for (int j = 0; j < vectors; j++) w[j] = widen(b + j * VL * size_of(type), type);
    for (int r = 0; r < m; r++) {
      vf v = splat(*(const float *)(sk + r * s_stride));
      for (int j = 0; j < vectors; j++) a[r][j] += v * w[j];
    }
  }
  for (int r = 0; r < m; r++)
    for (int j = 0; j < vectors; j++) *(vf *)(c + r * BLOCK + j * VL) = a[r][j];
}

// Rows at once: so many sums that B's widened vectors and one of s stay in registers beside them.
#define MOST(vectors) (VL == 16 ? 8 : 8 / (vectors))

INLINE void expand_vectors(const int vectors, const float *s, int64_t s_stride, int64_t rows, const char *b, int64_t b_rank, int64_t ranks, float *c, const int type) {
  for (int64_t r = 0, m; r < rows; r += m, s = (const float *)((const char *)s + m * s_stride), c += m * BLOCK) {
    m = least(rows - r, MOST(vectors));
#define CASE(n) case n: if (n <= MOST(vectors)) expand_few(n, vectors, s, s_stride, b, b_rank, ranks, c, type); break;
    switch (m) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
#undef CASE
  }
}

INLINE void expand_block(const int64_t width, const float *s, int64_t s_stride, int64_t rows, const char *b, int64_t b_rank, int64_t ranks, float *c, const int type) {
  if (VL == 16) expand_vectors(width == HALF ? 1 : 2, s, s_stride, rows, b, b_rank, ranks, c, type);
  else for (int64_t i = 0; i < width; i += HALF) expand_vectors(HALF / VL, s, s_stride, rows, b + i * size_of(type), b_rank, ranks, c + i, type);
}

INLINE void expand(const int64_t width, const float *s, int64_t s_stride, int64_t rows, const char *b, int64_t ranks, int32_t type, float *c) {
  switch (type) {
    case TYPE_F32: expand_block(width, s, s_stride, rows, b, width * 4, ranks, c, TYPE_F32); break;
    case TYPE_BF16: expand_block(width, s, s_stride, rows, b, width * 2, ranks, c, TYPE_BF16); break;
    default: expand_block(width, s, s_stride, rows, b, width * 2, ranks, c, TYPE_F16); break;
  }
}

// Which targets a task of w13 or w2 adds, and how wide a piece of their B is.
struct lora {
  const struct moe_call *c;
  const struct moe_task *t;
  int first, last;
  int64_t width, size;            // columns of a block; of the whole matrix
  int64_t block_bytes;            // of the pieces of a block; 0 = no adapter
  int64_t blocks;                 // that are copied at once; 0 = pieces are too large
};

#ifdef LORA_TILES
INLINE void expand_tiles(const struct lora *l, const struct moe_segment *g, int which, int64_t from, int64_t to, const char *b, const char *second, float *v, int64_t row);
#endif

// Whether a segment's target has the factors of the segment before it, which then stand there once.
INLINE int repeats(const struct lora *l, int64_t segment, int which) {
  if (segment == l->t->segment) return 0;
  const struct moe_target *a = l->c->segments[segment].target + which, *b = l->c->segments[segment - 1].target + which;
  return a->b == b->b && a->rank == b->rank && a->b_out == b->b_out && a->b_rank == b->b_rank && a->b_type == b->b_type &&
         on_tiles(l->c, l->c->segments + segment, which) == on_tiles(l->c, l->c->segments + segment - 1, which);
}

INLINE int64_t piece_bytes(const struct lora *l, int64_t segment, int which) {
  const struct moe_target *t = l->c->segments[segment].target + which;
  if (on_tiles(l->c, l->c->segments + segment, which)) return tiles_of(t->rank) * TILE_BYTES * (l->width / HALF);
  return t->rank * l->width * size_of(t->b_type);
}

INLINE struct lora lora_of(const struct moe_call *c, const struct moe_task *t, int first, int last, int64_t width, int64_t size) {
  struct lora l = {c, t, first, last, width, size, 0, 0};
  for (int64_t i = t->segment; i < t->segment + t->segments; i++)
    for (int which = first; which <= last; which++)
      if (!repeats(&l, i, which)) l.block_bytes += piece_bytes(&l, i, which);
  if (l.block_bytes) l.blocks = least(t->blocks, STAGE_BYTES / l.block_bytes);
  return l;
}

// Copies ranks k0..k0+ranks-1 of `blocks` blocks from `out` on, block_bytes apart; columns behind the matrix are zero.
INLINE void stage_target(const struct lora *l, const struct moe_target *t, int64_t k0, int64_t ranks, int64_t out, int64_t blocks, char *to) {
  int64_t size = size_of(t->b_type), bytes = l->width * size, n = l->size - out;
  int dense = t->b_out == size && n >= blocks * l->width;
  const char *b = t->b + out * t->b_out + k0 * t->b_rank;
  for (int64_t k = 0; k < ranks; k++, b += t->b_rank, to += bytes)
    for (int64_t j = 0; j < blocks; j++) {
      char *p = to + j * l->block_bytes;
      if (dense)
        for (int64_t i = 0; i < bytes; i += VL * 2) *(vh *)(p + i) = *(const vh *)(b + j * bytes + i);
      else if (size == 4)
        for (int64_t i = 0; i < l->width; i++) ((uint32_t *)p)[i] = j * l->width + i < n ? *(const uint32_t *)(b + (j * l->width + i) * t->b_out) : 0;
      else
        for (int64_t i = 0; i < l->width; i++) ((uint16_t *)p)[i] = j * l->width + i < n ? *(const uint16_t *)(b + (j * l->width + i) * t->b_out) : 0;
    }
}

// The same for tiles, all ranks.
INLINE void stage_tiles(const struct lora *l, const struct moe_target *t, int64_t out, int64_t blocks, char *to) {
#ifdef LORA_TILES
  const int64_t halves = l->width / HALF, n = l->size - out;
  const int dense = t->b_out == 2 && n >= blocks * l->width;
  for (int64_t k = 0; k < tiles_of(t->rank) * TILE_RANKS; k++) {
    char *p = to + k / TILE_RANKS * TILE_BYTES * halves + k % TILE_RANKS * 64;
    const char *b = t->b + out * t->b_out + k * t->b_rank;
    if (k < t->rank && dense)
      for (int64_t j = 0; j < blocks; j++, p += l->block_bytes)
        for (int64_t h = 0; h < halves; h++, b += HALF * 2) {
          const vu w = __builtin_convertvector(*(const vh *)b, vu);
          *(vu *)(p + h * TILE_BYTES) = w << 16 | w;
        }
    else
      for (int64_t j = 0; j < blocks; j++, p += l->block_bytes)
        for (int64_t h = 0; h < halves; h++) {
          vu w = {};
          for (int64_t i = 0, at = (j * halves + h) * HALF; k < t->rank && i < HALF && at + i < n; i++) w[i] = *(const uint16_t *)(b + (at + i) * t->b_out);
          *(vu *)(p + h * TILE_BYTES) = w << 16 | w;
        }
  }
#else
  (void)l, (void)t, (void)out, (void)blocks, (void)to;
#endif
}

INLINE void stage_one(const struct lora *l, int64_t segment, int which, int64_t out, int64_t blocks, char *to) {
  const struct moe_target *t = l->c->segments[segment].target + which;
  if (on_tiles(l->c, l->c->segments + segment, which)) stage_tiles(l, t, out, blocks, to);
  else stage_target(l, t, 0, t->rank, out, blocks, to);
}

// Into the second-level cache where tiles push everything out of the first.
#ifdef LORA_TILES
#define FETCH(p) __builtin_prefetch(p, 0, 2)
#else
#define FETCH(p) __builtin_prefetch(p)
#endif

INLINE void fetch_target(const struct lora *l, const struct moe_target *t, int64_t out, int64_t blocks) {
  int64_t size = size_of(t->b_type);
  const char *b = t->b + out * t->b_out;
  if (t->b_out == size)
    for (int64_t k = 0; k < t->rank; k++, b += t->b_rank)
      for (int64_t i = 0; i < blocks * l->width * size; i += 64) FETCH(b + i);
}

// Copies the pieces of some blocks; while those of a target are copied, the next one's are fetched.
INLINE void stage(const struct lora *l, int64_t out, int64_t blocks, char *to) {
  int64_t before = -1;
  int before_which = 0;
  for (int64_t i = l->t->segment; i < l->t->segment + l->t->segments; i++)
    for (int which = l->first; which <= l->last; which++) {
      const struct moe_target *t = l->c->segments[i].target + which;
      if (t->rank == 0 || repeats(l, i, which)) continue;
      fetch_target(l, t, out, blocks);
      if (before >= 0) {
        stage_one(l, before, before_which, out, blocks, to);
        to += piece_bytes(l, before, before_which);
      }
      before = i;
      before_which = which;
    }
  if (before >= 0) stage_one(l, before, before_which, out, blocks, to);
}

// Between two products: fetches a share of what the next stage() will copy.
INLINE void fetch_ahead(const struct lora *l, int64_t block) {
  int64_t done = block % l->blocks, next = block - done + l->blocks, left = l->t->blocks - next;
  if (left <= 0) return;
  for (int64_t i = l->t->segments * done / l->blocks; i < l->t->segments * (done + 1) / l->blocks; i++)
    for (int which = l->first; which <= l->last; which++) {
      const struct moe_target *t = l->c->segments[l->t->segment + i].target + which;
      if (t->rank && !repeats(l, l->t->segment + i, which)) fetch_target(l, t, (l->t->block + next) * l->width, least(left, l->blocks));
    }
}

// Adds deltas to the rows of `part`: of the block whose pieces are `staged`, or, where those are too large, of the block that begins with `out`.
INLINE void expand_rows(const struct lora *l, const struct moe_task *part, int64_t out, const char *staged, char *scratch, float *v) {
  const char *last[3] = {0, 0, 0};
  for (int64_t i = part->segment; i < part->segment + part->segments; i++) {
    const struct moe_segment *g = l->c->segments + i;
    int64_t from = g->from > part->row ? g->from : part->row, to = g->to < part->row + part->rows ? g->to : part->row + part->rows;
    for (int which = l->first; which <= l->last; which++) {
      const struct moe_target *t = g->target + which;
      if (t->rank == 0) continue;
      if (l->blocks && !repeats(l, i, which)) {
        last[which] = staged;
        staged += piece_bytes(l, i, which);
      }
      if (from >= to) continue;
      float *c = v + (from - part->row) * BLOCK + (which == UP && l->width == HALF ? HALF : 0);
      const float *s = (const float *)((const char *)t->s + (from - g->from) * l->c->s_stride);
#ifdef LORA_TILES
      if (on_tiles(l->c, g, which)) {
        const char *b = last[which], *second = 0;
        if (!l->blocks) stage_tiles(l, t, out, 1, scratch), b = scratch;
        if (which == DOWN || l->width == BLOCK) second = b + TILE_BYTES;
        else if (which == GATE && l->blocks && g->target[UP].s == t->s && g->target[UP].rank) continue;  // with up, whose piece is the next one
        else if (which == UP && l->blocks && g->target[GATE].s == t->s && g->target[GATE].rank) second = b, b = last[GATE];
        expand_tiles(l, g, which, from, to, b, second, v, part->row);
        continue;
      }
#endif
      int64_t most = l->blocks ? t->rank : STAGE_BYTES / (BLOCK * 4);
      for (int64_t k = 0; k < t->rank; k += most) {
        int64_t ranks = least(most, t->rank - k);
        const char *b = last[which];
        if (!l->blocks) stage_target(l, t, k, ranks, out, 1, scratch), b = scratch;
        if (l->width == HALF) expand(HALF, s + k, l->c->s_stride, to - from, b, ranks, t->b_type, c);
        else expand(BLOCK, s + k, l->c->s_stride, to - from, b, ranks, t->b_type, c);
      }
    }
  }
}

#ifndef LORA_TILES
INLINE float sum_of(vf v) {
  float s[VL];
  *(vf *)s = v;
  for (int n = VL / 2; n; n /= 2)
    for (int i = 0; i < n; i++) s[i] += s[i + n];
  return s[0];
}

INLINE void shrink_typed(const struct moe_target *t, const char *x, int64_t x_stride, int64_t rows, int64_t in, int64_t s_stride, int32_t a_type, int32_t row_type) {
  int64_t size = size_of(row_type), a_size = size_of(a_type);
  for (int64_t k0 = 0; k0 < t->rank; k0 += 4)
    for (int64_t r0 = 0; r0 < rows; r0 += 4) {
      int64_t ks = least(4, t->rank - k0), rs = least(4, rows - r0);
      vf sum[4][4] = {};
      // The last ranks and rows are read twice rather than asked for each time.
      const char *a[4], *p[4];
      for (int j = 0; j < 4; j++) {
        a[j] = t->a + (k0 + least(j, ks - 1)) * t->a_row;
        p[j] = x + (r0 + least(j, rs - 1)) * x_stride;
      }
      int64_t i = 0;
      if (t->a_col == a_size)
        for (; i + VL <= in; i += VL) {
          vf w[4], v[4];
          for (int j = 0; j < 4; j++) {
            w[j] = widen(a[j] + i * a_size, a_type);
            v[j] = widen(p[j] + i * size, row_type);
            __builtin_prefetch(a[j] + i * a_size + 1024);
          }
          for (int j = 0; j < 4; j++)
            for (int r = 0; r < 4; r++) sum[j][r] += w[j] * v[r];
        }
      for (; i < in; i += VL)
        for (int j = 0; j < 4; j++) {
          vf w = widen_part(a[j] + i * t->a_col, t->a_col, in - i, a_type);
          for (int r = 0; r < 4; r++) sum[j][r] += w * widen(p[r] + i * size, row_type);
        }
      for (int j = 0; j < ks; j++)
        for (int r = 0; r < rs; r++) ((float *)((char *)t->s + (r0 + r) * s_stride))[k0 + j] = sum_of(sum[j][r]);
    }
}

HIDDEN void NAME(shrink_target)(const struct moe_call *c, const struct moe_target *t, const char *x, int64_t x_stride, int64_t rows, int64_t in) {
  switch (t->a_type * 2 + (c->row_type == TYPE_BF16)) {
    case TYPE_F32 * 2: shrink_typed(t, x, x_stride, rows, in, c->s_stride, TYPE_F32, TYPE_F32); break;
    case TYPE_BF16 * 2: shrink_typed(t, x, x_stride, rows, in, c->s_stride, TYPE_BF16, TYPE_F32); break;
    case TYPE_F16 * 2: shrink_typed(t, x, x_stride, rows, in, c->s_stride, TYPE_F16, TYPE_F32); break;
    case TYPE_F32 * 2 + 1: shrink_typed(t, x, x_stride, rows, in, c->s_stride, TYPE_F32, TYPE_BF16); break;
    case TYPE_BF16 * 2 + 1: shrink_typed(t, x, x_stride, rows, in, c->s_stride, TYPE_BF16, TYPE_BF16); break;
    default: shrink_typed(t, x, x_stride, rows, in, c->s_stride, TYPE_F16, TYPE_BF16); break;
  }
}

static void NAME(shrink)(const struct moe_call *c, int64_t segment, int32_t down) {
  const struct moe_segment *g = c->segments + segment;
  int64_t rows = g->to - g->from;
  if (down) {
    if (g->target[DOWN].rank && g->target[DOWN].own_shrink) NAME(shrink_target)(c, g->target + DOWN, c->act + g->from * c->act_stride, c->act_stride, rows, c->intermediate);
    return;
  }
  for (int i = GATE; i <= UP; i++)
    if (g->target[i].rank && g->target[i].own_shrink) NAME(shrink_target)(c, g->target + i, c->x + g->from * c->x_stride, c->x_stride, rows, c->hidden);
}
#endif
