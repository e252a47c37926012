// The tile instructions that amx.c uses, in plain C: what the manual says they do, with its order of sums.
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct tile_state {
  int configured;
  int rows[8], bytes[8];
  uint8_t data[8][16][64];
};
static __thread struct tile_state tile_state;

// A tile as an operand: its data, checked.
static struct tile_state *tile_checked(int t, int rows, int bytes) {
  struct tile_state *s = &tile_state;
  if (!s->configured || t < 0 || t > 7 || s->rows[t] != rows || s->bytes[t] != bytes) abort();
  return s;
}
static void tile_configure(const void *p) {
  const uint8_t *b = p;
  if (b[0] != 1) abort();
  memset(&tile_state, 0, sizeof tile_state);
  tile_state.configured = 1;
  for (int i = 0; i < 8; i++) {
    uint16_t n;
    memcpy(&n, b + 16 + 2 * i, 2);
    tile_state.bytes[i] = n;
    tile_state.rows[i] = b[48 + i];
    if (n > 64 || b[48 + i] > 16 || n % 4 || (n == 0) != (b[48 + i] == 0)) abort();
  }
}
static void tile_zero(int t) {
  if (!tile_state.configured) abort();
  memset(tile_state.data[t], 0, sizeof tile_state.data[t]);
}
static void tile_load(int t, const void *p, int64_t stride) {
  struct tile_state *s = &tile_state;
  if (!s->configured) abort();
  memset(s->data[t], 0, sizeof s->data[t]);
  for (int r = 0; r < s->rows[t]; r++) memcpy(s->data[t][r], (const char *)p + r * stride, s->bytes[t]);
}
static void tile_store(int t, void *p, int64_t stride) {
  struct tile_state *s = &tile_state;
  if (!s->configured) abort();
  for (int r = 0; r < s->rows[t]; r++) memcpy((char *)p + r * stride, s->data[t][r], s->bytes[t]);
}
static float tile_bf16(const uint8_t *p) {
  uint32_t u = (uint32_t)p[1] << 24 | (uint32_t)p[0] << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
// Even values of k and odd ones have a sum each.
static __attribute__((noinline)) void tile_sums(struct tile_state *s, int c, int a, int b) {
  for (int m = 0; m < s->rows[c]; m++)
    for (int n = 0; n < s->bytes[c] / 4; n++) {
      float even = 0, odd = 0, v;
      for (int k = 0; k < s->bytes[a] / 4; k++) {
        even += tile_bf16(s->data[a][m] + 4 * k) * tile_bf16(s->data[b][k] + 4 * n);
        odd += tile_bf16(s->data[a][m] + 4 * k + 2) * tile_bf16(s->data[b][k] + 4 * n + 2);
      }
      memcpy(&v, s->data[c][m] + 4 * n, 4);
      v += even + odd;
      memcpy(s->data[c][m] + 4 * n, &v, 4);
    }
}
// Whatever the thread's mode is, denormal numbers are zeros.
static void tile_dp_bf16(int c, int a, int b) {
  struct tile_state *s = tile_checked(b, tile_state.bytes[a] / 4, tile_state.bytes[c]);
  if (s->rows[a] != s->rows[c]) abort();
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
  tile_sums(s, c, a, b);
  _mm_setcsr(mode);
}
static void tile_dp_sud(int c, int a, int b) {
  struct tile_state *s = tile_checked(b, tile_state.bytes[a] / 4, tile_state.bytes[c]);
  if (s->rows[a] != s->rows[c]) abort();
  for (int m = 0; m < s->rows[c]; m++)
    for (int k = 0; k < s->bytes[a]; k++)
      for (int n = 0; n < s->bytes[c] / 4; n++) {
        int32_t v;
        memcpy(&v, s->data[c][m] + 4 * n, 4);
        v += (int8_t)s->data[a][m][k] * s->data[b][k / 4][4 * n + k % 4];
        memcpy(s->data[c][m] + 4 * n, &v, 4);
      }
}
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbsud
#define _tile_release() memset(&tile_state, 0, sizeof tile_state)
#define _tile_zero(t) tile_zero(t)
#define _tile_loadd(t, p, stride) tile_load(t, p, stride)
#define _tile_stream_loadd(t, p, stride) tile_load(t, p, stride)
#define _tile_stored(t, p, stride) tile_store(t, p, stride)
#define _tile_dpbf16ps(c, a, b) tile_dp_bf16(c, a, b)
#define _tile_dpbsud(c, a, b) tile_dp_sud(c, a, b)
