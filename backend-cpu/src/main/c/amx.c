// AMX tiles: 16 rows of x by 32 values of k in bf16 (64 in int8), times as many values of k by 16 outputs. A packed block of bf16 is a row of pairs of such tiles.
//
// Setting up tiles takes as long as a dozen products, so a task does it once: 16 rows, or as many as it has if those are fewer. Rows that fill no tile stand
// in one with rows that have been computed before, and come out the same.
#define VL 16
#define NAME(x) x##_amx
#include "tiles.h"
#include "vectors.h"
#include "bytes512.h"
#include "scales.h"
#include "pairs.h"

struct config {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
} __attribute__((aligned(64)));

// Sums 0..3: [first or second 16 rows][first or second 16 outputs]; 4 and 5: rows of x; 6 and 7: weights, `bytes` of a row's values of k.
static void configure(int64_t rows, int64_t bytes, int64_t outputs) {
  struct config c = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    c.bytes[i] = (uint16_t)(outputs * 4);
    c.rows[i] = (uint8_t)rows;
  }
  c.bytes[4] = c.bytes[5] = (uint16_t)bytes;
  c.rows[6] = c.rows[7] = (uint8_t)(bytes / 4);
  TILE_CONFIG(c);
}

// Values of k of a tile of bf16.
INLINE int64_t tile_step(const struct moe_coded *q) { return !q || q->stretch % 32 == 0 ? 32 : q->stretch % 16 == 0 ? 16 : 8; }

// And of int8.
INLINE int64_t tile_step8(const struct moe_coded *q, int64_t k) {
  const int64_t both = run_of(q) | k;
  return both % 64 == 0 ? 64 : both % 32 == 0 ? 32 : both % 16 == 0 ? 16 : 8;
}

static void begin(const struct moe_coded *q, int64_t k, int64_t rows, int int8) {
  configure(least(rows, 16), int8 ? tile_step8(q, k) : tile_step(q) * 2, 16);
}

// What is fetched meanwhile: some lines at each step.
struct ahead {
  const char *at;
  int64_t lines;
};

INLINE void fetch_lines(struct ahead *f) {
  for (int64_t q = 0; q < f->lines; q++, f->at += 64) _mm_prefetch(f->at, _MM_HINT_T1);
}

// Up to 16 rows.
static void sixteen(const char *x, int64_t xs, const char *w, int64_t k, float *c, struct ahead f) {
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t i = 0; i < k; i += 32, w += 2048) {
    fetch_lines(&f);
    _tile_loadd(6, w, 64);
    _tile_loadd(7, w + 1024, 64);
    _tile_loadd(4, x + i * 2, xs);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, c, BLOCK * 4);
  _tile_stored(1, c + 16, BLOCK * 4);
}

// 16 rows, and 16 that begin `second` rows later; their sums are new, or what c has is continued.
static void thirty_two(const char *x, int64_t second, int64_t xs, const char *w, int64_t k, float *c, struct ahead f, int continued) {
  float *c2 = c + second * BLOCK;
  if (continued) {
    _tile_loadd(0, c, BLOCK * 4);
    _tile_loadd(1, c + 16, BLOCK * 4);
    _tile_loadd(2, c2, BLOCK * 4);
    _tile_loadd(3, c2 + 16, BLOCK * 4);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t i = 0; i < k; i += 32, w += 2048) {
    fetch_lines(&f);
    _tile_loadd(6, w, 64);
    _tile_stream_loadd(4, x + i * 2, xs);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w + 1024, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_stream_loadd(5, x + second * xs + i * 2, xs);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, BLOCK * 4);
  _tile_stored(1, c + 16, BLOCK * 4);
  _tile_stored(2, c2, BLOCK * 4);
  _tile_stored(3, c2 + 16, BLOCK * 4);
}

// What is left behind passes of 32 rows: fewer than 32 of `rows`.
static void rest(const char *x, int64_t xs, int64_t left, int64_t rows, const char *w, int64_t k, float *c, struct ahead f) {
  if (left > 16) thirty_two(x, left - 16, xs, w, k, c, f, 0);
  else if (rows > 16) sixteen(x + (left - 16) * xs, xs, w, k, c + (left - 16) * BLOCK, f);
  else sixteen(x, xs, w, k, c, f);
}

// With that many passes k comes in pieces, whose weights then stay in the first-level cache; the sums go out and come back.
enum { PIECE_PASSES = 3, PIECE = 512 };

static void product_bf16(const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  const int64_t full = rows / 32, left = rows % 32, passes = full + (left > 0), piece = full >= PIECE_PASSES ? PIECE : k;
  // Lines of the block behind this one are spread over all passes, so that memory and tiles work at the same time. Some of this one's own come first where
  // nobody has fetched it.
  struct ahead next = {w + k * 64, first && passes > 1 ? (32 + passes - 1) / passes : 0};
  const struct ahead own = {w + 8192, 32};
  for (int64_t i = 0; i < k; i += piece) {
    const int64_t n = least(piece, k - i);
    for (int64_t pass = 0; pass < full; pass++) {
      thirty_two(x + pass * 32 * xs + i * 2, 16, xs, w + i * 64, n, c + pass * 32 * BLOCK, passes == 1 || (first == 2 && pass == 0 && i == 0) ? own : next, i > 0);
      next.at += n / 32 * next.lines * 64;
    }
  }
  if (left) rest(x + full * 32 * xs, xs, left, rows, w, k, c + full * 32 * BLOCK, passes == 1 ? own : next);
}

#include "coded_tiles.h"
#include "int8.h"

INLINE void coded8_tiles(const int format, const struct moe_coded *q, const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  char bytes[STRETCH * BLOCK] __attribute__((aligned(64)));
  float sums[32 * BLOCK] __attribute__((aligned(64)));
  const int64_t step = tile_step8(q, k), run = run_of(q);
  for (int64_t i = 0; i < rows * BLOCK; i += VL) *(vf *)(c + i) = (vf){};
  for (int64_t k0 = 0, n = 0, m; k0 < k; k0 += m, n++) {
    m = least(run, k - k0);
    const char *codes = w + k0 * (format == CODE_4 ? BLOCK / 2 : BLOCK);
    if (format == CODE_4) {
      widen_nibbles(codes, m, bytes, first ? 4096 : 0);
      codes = bytes;
    }
    const struct zeros z = zeros_of(q, w, k0 / q->group);
    const vf scale[2] = {scales_at(q, w, k0 / q->group, 0), scales_at(q, w, k0 / q->group, VL)};
    for (int64_t r = 0; r < rows;) {
      const struct window s = window_of(r, rows);
      stretch_tiles(1, x + s.at * xs + k0, s.second, xs, codes, m, step, sums);
      for (const int64_t end = least(r + 32, rows); r < end; r++) {
        const int32_t of_x = ((const int32_t *)(x + r * xs + k))[n];
        for (int j = 0; j < 2; j++) *(vf *)(c + r * BLOCK + j * VL) += __builtin_convertvector(*(const vi *)(sums_of(sums, s, r) + j * VL) - z.of[j] * of_x, vf) * scale[j];
      }
    }
  }
}

static void coded8(const struct moe_coded *q, int64_t expert, const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  if (q->format == CODE_4) coded8_tiles(CODE_4, q, x, xs, rows, w, k, c, first);
  else coded8_tiles(CODE_U8X4, q, x, xs, rows, w, k, c, first);
  times_scales(q, expert, x, xs, rows, k, c);
}

// Everything around the products.
#define LORA_TILES
#define AT_ONCE MAX_ROWS
static vh to_f16(vf v) { return (vh)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#include "rows.h"
#include "lora_tiles.h"

static void done(void) { _tile_release(); }

static int64_t peak(int64_t rounds) {
  configure(16, 64, 16);
  for (int64_t n = 0; n < rounds; n++) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return rounds * 4 * 16 * 16 * 32 * 2;
}

// Without products of f32 rows, which are those of AVX-512.
const struct kernels kernels_amx = {
  .product = {{0, 0, 0}, {0, product_bf16, 0}}, .coded = {0, coded}, .coded8 = coded8, .begin = begin, .done = done, .quantise = quantise_amx,
  .gather = gather_amx, .shrink = shrink, .w13 = w13_amx, .w2 = w2_amx, .peak = peak, .combine = combine_amx,
};
