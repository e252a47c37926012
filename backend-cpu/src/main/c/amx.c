// AMX tiles, bf16: 16 rows of x by 32 values of k, times 32 values of k by 16 outputs. A packed block is a row of pairs of such tiles.
#define VL 16
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

// Sums 0..3: [first or second 16 rows][first or second 16 outputs]; 4 and 5: rows of x; 6 and 7: weights, `step` values of k.
static void configure(int64_t first, int64_t second, int64_t step) {
  struct config c = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    c.bytes[i] = 64;
    c.rows[i] = 16;
  }
  c.bytes[4] = c.bytes[5] = (uint16_t)(step * 2);
  c.rows[6] = c.rows[7] = (uint8_t)(step / 2);
  c.rows[0] = c.rows[1] = c.rows[4] = (uint8_t)first;
  if (second) c.rows[2] = c.rows[3] = c.rows[5] = (uint8_t)second;
  TILE_CONFIG(c);
}

// Up to 16 rows: one pass, at the speed of memory.
static void sixteen(const char *x, int64_t xs, const char *w, int64_t k, float *c, int64_t ahead) {
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t i = 0; i < k; i += 32, w += 2048) {
    for (int q = 0; ahead && q < 2048; q += 64) _mm_prefetch(w + ahead + q, _MM_HINT_T0);
    _tile_loadd(6, w, 64);
    _tile_loadd(7, w + 1024, 64);
    _tile_loadd(4, x + i * 2, xs);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, c, BLOCK * 4);
  _tile_stored(1, c + 16, BLOCK * 4);
}

// Up to 32 rows; each step fetches some lines from `next` on.
static void thirty_two(const char *x, int64_t xs, const char *w, int64_t k, float *c, const char *next, int64_t lines) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < k; i += 32, w += 2048) {
    for (int64_t q = 0; q < lines; q++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
    _tile_loadd(6, w, 64);
    _tile_loadd(4, x + i * 2, xs);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w + 1024, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, x + 16 * xs + i * 2, xs);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, BLOCK * 4);
  _tile_stored(1, c + 16, BLOCK * 4);
  _tile_stored(2, c + 16 * BLOCK, BLOCK * 4);
  _tile_stored(3, c + 16 * BLOCK + 16, BLOCK * 4);
}

// Tried on the same machine, and no faster at any size: k in pieces of 512 or 1024 whose weights stay in the first-level cache (the sums go out and
// come back), streaming loads of x, every second line fetched, 256 rows at once. Single points move by a third between runs there.
void product_bf16_amx(const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  int64_t full = rows / 32, left = rows % 32;
  if (full) {
    configure(16, 16, 32);
    // The block behind this one, spread over all passes, so that memory and tiles work at the same time.
    const char *next = full == 1 ? w + 8192 : w + k * 64;
    int64_t lines = first ? (32 + full - 1) / full : 0;
    for (int64_t r = 0; r < full; r++, next += k / 32 * lines * 64, x += 32 * xs, c += 32 * BLOCK) thirty_two(x, xs, w, k, c, next, lines);
  }
  if (left > 16) {
    configure(16, left - 16, 32);
    thirty_two(x, xs, w, k, c, w + 8192, full ? 0 : 32);
  } else if (left) {
    configure(left, 0, 32);
    sixteen(x, xs, w, k, c, full ? 0 : 8192);
  }
}

// Weights in codes: a stretch becomes bf16 in the first-level cache and is multiplied there, so that it is widened once for all rows.
static void stretch_tiles(const char *x, int64_t xs, int64_t rows, const char *pairs, int64_t k, int64_t step, float *sums) {
  _tile_zero(0);
  _tile_zero(1);
  if (rows > 16) {
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < k; i += step, pairs += step * 64) {
      _tile_loadd(6, pairs, 128);
      _tile_loadd(4, x + i * 2, xs);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, pairs + 64, 128);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, x + 16 * xs + i * 2, xs);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(2, sums + 16 * BLOCK, BLOCK * 4);
    _tile_stored(3, sums + 16 * BLOCK + 16, BLOCK * 4);
  } else
    for (int64_t i = 0; i < k; i += step, pairs += step * 64) {
      _tile_loadd(6, pairs, 128);
      _tile_loadd(7, pairs + 64, 128);
      _tile_loadd(4, x + i * 2, xs);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
  _tile_stored(0, sums, BLOCK * 4);
  _tile_stored(1, sums + 16, BLOCK * 4);
}

INLINE void coded_tiles(const int format, const struct moe_coded *q, const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  char pairs[STRETCH * BLOCK * 2] __attribute__((aligned(64)));
  float sums[32 * BLOCK] __attribute__((aligned(64)));
  const __m512i table = pair_table(q);
  const int64_t code_bytes = format == CODE_4 ? BLOCK / 2 : BLOCK, step = q->stretch % 32 == 0 ? 32 : q->stretch % 16 == 0 ? 16 : 8;
  for (int64_t r0 = 0; r0 < rows;) {
    // Full tiles first, then what is left; each configuration once, all stretches.
    int64_t n = rows - r0 >= 32 ? (rows - r0) / 32 * 32 : rows - r0;
    configure(least(n, 16), n > 16 ? (n >= 32 ? 16 : n - 16) : 0, step);
    for (int64_t i = 0; i < n * BLOCK; i += VL) *(vf *)(c + r0 * BLOCK + i) = (vf){};
    int64_t group = 0, left = q->group;
    for (int64_t k0 = 0, m; k0 < k; k0 += m) {
      m = least(least(q->stretch, k - k0), left);
      widen_pairs(format, table, w + k0 * code_bytes, m, pairs, first && r0 == 0 ? 4096 : 0);
      const vf scale[2] = {scales_at(q, w, group, 0), scales_at(q, w, group, VL)};
      for (int64_t r = r0; r < r0 + n; r += 32) {
        int64_t some = least(32, r0 + n - r);
        stretch_tiles(x + r * xs + k0 * 2, xs, some, pairs, m, step, sums);
        float *to = c + r * BLOCK;
        for (int64_t i = 0; i < some * BLOCK; i += BLOCK)
          for (int j = 0; j < 2; j++) *(vf *)(to + i + j * VL) += *(const vf *)(sums + i + j * VL) * scale[j];
      }
      left -= m;
      if (left == 0) {
        group++;
        left = q->group;
      }
    }
    r0 += n;
  }
}

void coded_amx(const struct moe_coded *q, int64_t expert, const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  switch (q->format) {
    case CODE_4: coded_tiles(CODE_4, q, x, xs, rows, w, k, c, first); break;
    case CODE_I8: coded_tiles(CODE_I8, q, x, xs, rows, w, k, c, first); break;
    default: coded_tiles(CODE_E4M3, q, x, xs, rows, w, k, c, first); break;
  }
  const float *factor = q->factors + expert * 2;
  for (int64_t r = 0; r < rows; r++, c += BLOCK)
    for (int64_t i = 0; i < BLOCK; i += VL) *(vf *)(c + i) *= factor[i / HALF];
}

void done_amx(void) { _tile_release(); }

int64_t peak_amx(int64_t rounds) {
  configure(16, 16, 32);
  for (int64_t n = 0; n < rounds; n++) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return rounds * 4 * 16 * 16 * 32 * 2;
}
