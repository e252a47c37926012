// The weights of a checkpoint as narrow.cu and wide.cu read them, on the card, straight from the file's bytes. One matrix of one expert a launch.
#include "widen.cuh"

// Where a code stands in the source: words of `bytes` bytes, each of several codes that are neighbours along the contraction (along_k) or along
// the rows. order: AWQ's order of the eight codes of a word. flip: xor'ed to the code (signed integers to unsigned).
struct Source {
  const uint8_t* data;
  int64_t k_stride, n_stride;  // words
  int word_bytes, bits, along_k, awq, flip;
};

DEV uint32_t code_at(const Source& s, int n, int k) {
  const int per = s.word_bytes * 8 / s.bits;
  const int64_t at = s.along_k ? (k / per) * s.k_stride + n * s.n_stride : k * s.k_stride + (n / per) * s.n_stride;
  int field = s.along_k ? k % per : n % per;
  if (s.awq) field = field / 2 + field % 2 * 4;
  const uint32_t word = s.word_bytes == 1 ? s.data[at] : ((const uint32_t*)s.data)[at];
  return ((word >> (field * s.bits)) & ((1u << s.bits) - 1)) ^ (uint32_t)s.flip;
}

// out: [row tiles][chunks] tiles. channel: of the outputs, already written; an output with a code that is no number becomes none itself (E4M3, where
// `nan`). KD: columns of out. perm: column k of out is column perm[k] of the source or, where that is negative, none; or null.
KERNEL(256, 1) moe_repack_codes(const uint8_t* data, const int* perm, uint32_t* out, float* channel, int64_t k_stride, int64_t n_stride, int word_bytes, int bits,
                                int along_k, int awq, int flip, int nan, int N, int KD) {
  const Source s = {data, k_stride, n_stride, word_bytes, bits, along_k, awq, flip};
  const int chunks = (KD + 63) / 64, words = bits == 4 ? 128 : 256;
  const int64_t total = (int64_t)((N + 15) / 16) * chunks * words, at = (int64_t)BLOCK * 256 + THREAD;
  if (at >= total) return;
  const int in = (int)(at % words), chunk = (int)(at / words % chunks), tile = (int)(at / words / chunks);
  const int part = in % 128, lane = part / 4, g = lane / 4, q = lane % 4;
  // 4 bits: word = step. 8 bits: the first and second half of the tile are steps 0, 1 and 2, 3, two words each.
  const int step = bits == 4 ? part % 4 : in / 128 * 2 + part % 4 / 2, fields = 32 / bits;
  uint32_t word = 0;
  for (int f = 0; f < fields; f++) {
    const int reg = bits == 4 ? f % 4 : part % 2 * 2 + f % 2, high = bits == 4 ? f / 4 : f / 2;
    const int n = tile * 16 + g + reg % 2 * 8, k = chunk * 64 + step * 16 + 2 * q + high + reg / 2 * 8;
    if (n < N && k < KD) {
      const int from = perm ? perm[k] : k;
      if (from < 0) continue;
      const uint32_t code = code_at(s, n, from);
      if (nan && (code & 0x7F) == 0x7F) channel[n] = bits_float(0x7FFFFFFF);
      word |= code << (f * bits);
    }
  }
  out[at] = word;
}

enum { F32_SCALE, F16_SCALE, BF16_SCALE, E4M3_SCALE, E8M0_SCALE };

DEV float scale_at(const void* p, int type, int64_t at) {
  if (type == F32_SCALE) return ((const float*)p)[at];
  if (type == F16_SCALE) return half_float(((const uint16_t*)p)[at]);
  if (type == BF16_SCALE) return bits_float((uint32_t)((const uint16_t*)p)[at] << 16);
  const uint32_t v = ((const uint8_t*)p)[at];
  if (type == E8M0_SCALE) return bits_float(v == 255 ? 0x7FFFFFFF : v == 0 ? 0x400000 : v << 23);
  if ((v & 0x7F) == 0x7F) return bits_float(0x7FFFFFFF);
  const float m = (float)(v & 7), f = (v >> 3 & 15) == 0 ? m * bits_float(118u << 23) : (1.0f + m * 0.125f) * bits_float(((v >> 3 & 15) + 120) << 23);
  return v & 0x80 ? -f : f;
}

// Scales of a row: channel, a power of two above all of them, and each one's ratio to it in f16: exact for scales of 11 bits and fewer. Without
// ratios (out == null) channel is the scale. global: multiplied to all, by division where `divide`. SG, group_chunks: how out counts groups, see
// tile.cuh; group: columns of a group of the source, a multiple of 16 (or all of KD).
// n_block: rows that share a scale. zero points: as codes of a weight [rows, groups], or null: then all are zero_add; zero_add: stored zero points
// are less by it. The source has `in` columns, they are columns k0.. of out; others there have ratio 0. One group over everything: the channel scale is its scale, the ratio 1.
KERNEL(128, 1) moe_repack_scales(const void* scales, const float* global, const uint8_t* zeros, uint16_t* ratio, uint16_t* zero, float* channel,
                                 int64_t n_stride, int64_t g_stride, int64_t zero_n_stride, int64_t zero_g_stride, int type, int divide, int n_block,
                                 int group, int zero_bits, int zero_along_k, int zero_awq, int zero_flip, int zero_add, int zero_word_bytes, int SG, int group_shift, int N, int KD, int k0, int in) {
  const int n = BLOCK * 128 + THREAD, rows = (N + 15) / 16 * 16;
  if (n >= rows) return;
  const bool live = n < N;
  float unit = 1.0f;
  if (global) unit = divide ? 1.0f / *global : *global;
  const int64_t base = (int64_t)(n / n_block) * n_stride;
  if (SG == 0) {
    channel[n] = live ? scale_at(scales, type, base) * unit : 0.0f;
    return;
  }
  const int given = (in + group - 1) / group;
  float most = 0.0f;
  bool finite = true;
  for (int i = 0; live && i < given; i++) {
    const float v = scale_at(scales, type, base + i * g_stride), a = v < 0 ? -v : v;
    finite = finite && a <= 3.4e38f;
    most = a > most ? a : most;
  }
  const uint32_t exponent = (float_bits(most) >> 23) + 1;  // most < 2^(exponent - 127)
  const float power = given == 1 ? (live ? scale_at(scales, type, base) : 1.0f) : bits_float((exponent > 254 ? 254 : exponent) << 23);
  channel[n] = !live ? 0.0f : finite ? power * unit : bits_float(0x7FFFFFFF);
  const int chunks = (KD + 63) / 64, columns = SG == 1 ? 64 << group_shift : 64 / SG;
  const int groups = SG == 1 ? (chunks + (1 << group_shift) - 1) >> group_shift : chunks * SG;
  const Source z = {zeros, zero_g_stride, zero_n_stride, zero_word_bytes, zero_bits, zero_along_k, zero_awq, zero_flip};
  for (int i = 0; i < groups; i++) {
    const int k = i * columns - k0, from = k / group, per = SG;
    const bool some = live && k >= 0 && k < in;
    const int64_t at = (((int64_t)(n / 16) * (groups / per) + i / per) * 8 + n % 8) * per + i % per;
    const float v = some ? scale_at(scales, type, base + from * g_stride) : 0.0f;
    ratio[at * 2 + n % 16 / 8] = float_half(!some ? 0.0f : given == 1 ? 1.0f : v / power);
    if (zero) zero[at * 2 + n % 16 / 8] = (uint16_t)((some && zeros ? code_at(z, n, from) : 0) + zero_add);
  }
}
