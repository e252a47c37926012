// AMX tiles, bf16: 16 rows of x by 32 values of k, times 32 values of k by 16 outputs. A packed block is a row of pairs of such tiles.
#include <immintrin.h>
#include "moe.h"

struct config {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
} __attribute__((aligned(64)));

// Sums 0..3: [first or second 16 rows][first or second 16 outputs]; 4 and 5: rows of x; 6 and 7: weights.
static void configure(int64_t first, int64_t second) {
  struct config c = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    c.bytes[i] = 64;
    c.rows[i] = 16;
  }
  c.rows[0] = c.rows[1] = c.rows[4] = (uint8_t)first;
  if (second) c.rows[2] = c.rows[3] = c.rows[5] = (uint8_t)second;
  _tile_loadconfig(&c);
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

// Walking k in stretches whose weights stay in the first-level cache brought nothing: the sums went out and came back instead.
void product_bf16_amx(const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  int64_t full = rows / 32, left = rows % 32;
  if (full) {
    configure(16, 16);
    // The block behind this one, spread over all passes, so that memory and tiles work at the same time.
    const char *next = full == 1 ? w + 8192 : w + k * 64;
    int64_t lines = first ? (32 + full - 1) / full : 0;
    for (int64_t r = 0; r < full; r++, next += k / 32 * lines * 64, x += 32 * xs, c += 32 * BLOCK) thirty_two(x, xs, w, k, c, next, lines);
  }
  if (left > 16) {
    configure(16, left - 16);
    thirty_two(x, xs, w, k, c, w + 8192, full ? 0 : 32);
  } else if (left) {
    configure(left, 0);
    sixteen(x, xs, w, k, c, full ? 0 : 8192);
  }
}

void done_amx(void) { _tile_release(); }
