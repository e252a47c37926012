// What Java calls. No C library: the same file loads under glibc and musl.
#include <cpuid.h>
#include "moe.h"

// The compiler may call these.
HIDDEN void *memcpy(void *restrict to, const void *restrict from, __SIZE_TYPE__ n) {
  char *t = to;
  const char *f = from;
  while (n--) *t++ = *f++;
  return to;
}

HIDDEN void *memset(void *to, int v, __SIZE_TYPE__ n) {
  char *t = to;
  while (n--) *t++ = (char)v;
  return to;
}

static long system_call(long n, long a, long b) {
  long r;
  __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b) : "rcx", "r11", "memory");
  return r;
}

// The system keeps tiles in a thread's state only for a process that has asked for it.
int32_t permit_amx(void) {
  enum { SYS_ARCH_PRCTL = 158, ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
  return system_call(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

PUBLIC int32_t moe_isa(void) {
  uint32_t a, b, c, d, low, high;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return ISA_NONE;
  const uint32_t first = bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C;
  if ((c & first) != first) return ISA_NONE;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2)) return ISA_NONE;
  uint32_t wide = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL, tiles = d;
  if ((low & 0xe6) != 0xe6 || (b & wide) != wide) return ISA_AVX2;
  if (a < 1) return ISA_AVX512;
  __get_cpuid_count(7, 1, &a, &b, &c, &d);
  if (!(a & 1u << 5)) return ISA_AVX512;
  const uint32_t amx = 1u << 24 | 1u << 22;
  return (tiles & amx) == amx && (low >> 17 & 3) == 3 && permit_amx() ? ISA_AMX : ISA_BF16;
}

PUBLIC int64_t moe_abi(int32_t i) {
  const int64_t sizes[] = {sizeof(struct moe_call), sizeof(struct moe_segment), sizeof(struct moe_target)};
  return i >= 0 && i < 3 ? sizes[i] : -1;
}

static struct kernels table[ISAS];

const struct kernels *kernels_of(int64_t isa) { return table + isa; }

__attribute__((constructor)) static void fill(void) {
  table[ISA_AVX2] = kernels_avx2;
  table[ISA_AVX512] = kernels_avx512;
  table[ISA_BF16] = kernels_avx512;
  table[ISA_BF16].product[TYPE_BF16][TYPE_BF16] = product_bf16_avx512bf16;
  table[ISA_AMX] = table[ISA_BF16];
  table[ISA_AMX].product[TYPE_BF16][TYPE_BF16] = product_bf16_amx;
  table[ISA_AMX].done = done_amx;
}

PUBLIC void moe_gather(const struct moe_call *c, const char *hidden, int32_t type, const float *weight, int64_t first_token, int64_t from, int64_t to) {
  kernels_of(c->isa)->gather(c, hidden, type, weight, first_token, from, to);
}

PUBLIC void moe_shrink(const struct moe_call *c, int64_t segment, int32_t down) { kernels_of(c->isa)->shrink(c, segment, down); }

PUBLIC void moe_w13(const struct moe_call *c, int64_t expert, int64_t row, int64_t rows, int64_t block, int64_t blocks, int64_t segment, int64_t segments) {
  struct moe_task t = {expert, row, rows, block, blocks, segment, segments};
  kernels_of(c->isa)->w13(c, &t);
}

PUBLIC void moe_w2(const struct moe_call *c, int64_t expert, int64_t row, int64_t rows, int64_t block, int64_t blocks, int64_t segment, int64_t segments) {
  struct moe_task t = {expert, row, rows, block, blocks, segment, segments};
  kernels_of(c->isa)->w2(c, &t);
}

PUBLIC void moe_combine(const struct moe_call *c, const float *weight, int64_t first_token, int64_t from, int64_t to, char *out, int32_t type) {
  kernels_of(c->isa)->combine(c, weight, first_token, from, to, out, type);
}

// One block of 32 outputs: 16 rows of one matrix and 16 of another (or of the same one); rows beyond n0 and n1 and columns beyond k are zero.
PUBLIC void moe_pack(char *to, int32_t type, int64_t k, int64_t k_padded, const char *m0, int64_t stride0, int64_t n0, const char *m1, int64_t stride1, int64_t n1) {
  for (int half = 0; half < 2; half++) {
    const char *m = half ? m1 : m0;
    int64_t stride = half ? stride1 : stride0, n = half ? n1 : n0;
    for (int64_t r = 0; r < HALF; r++) {
      const char *from = m + r * stride;
      int64_t have = r < n ? k : 0;
      switch (type) {
        case TYPE_F32: {
          float *t = (float *)to + half * HALF + r;
          for (int64_t i = 0; i < k_padded; i++) t[i * BLOCK] = i < have ? ((const float *)from)[i] : 0;
          break;
        }
        case TYPE_F16: {
          uint16_t *t = (uint16_t *)to + half * HALF + r;
          for (int64_t i = 0; i < k_padded; i++) t[i * BLOCK] = i < have ? ((const uint16_t *)from)[i] : 0;
          break;
        }
        default: {
          // [k / 32][half][k / 2 % 16][row][2]
          uint32_t *t = (uint32_t *)to + half * 256 + r;
          const uint16_t *f = (const uint16_t *)from;
          for (int64_t i = 0; i < k_padded; i += 2) {
            uint32_t low = i < have ? f[i] : 0, high = i + 1 < have ? f[i + 1] : 0;
            t[i / 32 * 512 + i / 2 % 16 * 16] = high << 16 | low;
          }
        }
      }
    }
  }
}
