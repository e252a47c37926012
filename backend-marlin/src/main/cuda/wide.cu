// A grouped product for many rows an expert, on Hopper: wgmma, the widened weights as its A operand in registers, NT rows of x as its B operand
// in shared memory, so that no widened weight ever goes through shared memory.
//
// Two warpgroups take 128 rows of the weights each (64 of gate and the 64 of up that belong to them), and the same rows of x. A step is 64
// columns: four products of 16 columns, at most one under way while the next step's weights are widened. After the loop the sums lie as mma has
// them, so the expand and the end are those of narrow.cu.
#include "tile.cuh"
#include "wgmma.cuh"

#ifndef EMU
DEV void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
DEV void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// What ordinary copies wrote is visible to the tensor cores.
DEV void fence_for_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#endif

BOTH int wide_stages(int q, int nt) { return nt >= 128 ? (code_bits(q) == 4 ? 6 : 5) : (code_bits(q) == 4 ? 5 : 4); }

template <int Q, class T, int NT, int SG, bool GATED>
DEV void wide(GEMM_PARAMETERS) {
  SHARED(memory);
  constexpr int NJ = NT / 8, STAGES = wide_stages(Q, NT), CODES = CHUNK * 16 * code_bits(Q) / 8, WORDS = code_bits(Q) / 4;
  constexpr int BLOCK_ROWS = GATED ? 128 : 256;
  if (wait == 0) wait_for_predecessor();
  const int lane = THREAD % 32, warp = THREAD / 32, g = lane / 4, q = lane % 4, group4 = warp / 4, own4 = warp % 4;
  const Tile t = find_tile(first, BLOCK_ROWS, ids, expert_map, mapping, gtile, nums, has_map, lora, 0, P, TOPK, N, EG, E, NS, GM);
  if (!t.some) return;
  const int tiles = ceil_div(N, 16), chunks = ceil_div(KD, CHUNK), groups = SG == 1 ? ceil_div(chunks, chunks_a_group) : chunks;
  const int local[2] = {GATED ? group4 * 64 + own4 * 16 : group4 * 128 + own4 * 16, GATED ? group4 * 64 + own4 * 16 : group4 * 128 + 64 + own4 * 16};
  const int n[2] = {t.block * BLOCK_ROWS + local[0], t.block * BLOCK_ROWS + local[1]};
  int64_t tile[2];
  tile[0] = (int64_t)(t.e * (GATED ? 2 : 1)) * tiles + min(n[0] / 16, tiles - 1);
  tile[1] = (int64_t)(t.e * (GATED ? 2 : 1) + (GATED ? 1 : 0)) * tiles + min(n[1] / 16, tiles - 1);

  // A stage: x, [NT][64] with its 16-byte columns swizzled as the tensor cores want them, then the codes and scales of each warp.
  const int extra = SG * 128 * (1 + has_zero), slot_bytes = 2 * (CODES + extra), stage_bytes = ceil_div(NT * 128 + 8 * slot_bytes, 1024) * 1024;
  const uint32_t base = shared_address(memory);
  constexpr int XROWS = NT * 8 >= 256 ? NT / 32 : 1;
  const uint16_t* from_x[XROWS];
  const int xcol = THREAD % 8;
  const bool copies_x = NT * 8 >= 256 || THREAD < NT * 8;
#pragma unroll
  for (int i = 0; i < XROWS; i++) {
    int row = min(t.row0 + THREAD / 8 + 32 * i, t.row1 - 1);
    if (gather) row = *(volatile const int*)(pairs + row) / TOPK;
    from_x[i] = x + (int64_t)row * KD + xcol * 8;
  }
  auto prefetch = [&](int c) {
    if (c < chunks) {
      const uint32_t to = base + (c % STAGES) * stage_bytes;
      const bool some = c * CHUNK + xcol * 8 < KD;
      if (copies_x) {
#pragma unroll
        for (int i = 0; i < XROWS; i++) {
          const int row = THREAD / 8 + 32 * i;
          copy16_or_zero(to + row * 128 + ((xcol ^ (row & 7)) << 4), some ? from_x[i] + c * CHUNK : x, some);
        }
      }
      const uint32_t slot = to + NT * 128 + warp * slot_bytes;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const uint8_t* from = w + (tile[i] * chunks + c) * CODES + lane * 16;
#pragma unroll
        for (int h = 0; h < CODES / 512; h++) copy16(slot + i * (CODES + extra) + h * 512 + lane * 16, from + h * 512);
        if constexpr (SG > 0) {
          int64_t at = ((tile[i] * groups + (SG == 1 ? c / chunks_a_group : c)) * 8 + g) * SG;
          copy_words<4 * SG>(slot + i * (CODES + extra) + CODES + lane * 4 * SG, ratio + at);
          if (has_zero) copy_words<4 * SG>(slot + i * (CODES + extra) + CODES + 128 * SG + lane * 4 * SG, zero + at);
        }
      }
    }
    copies_end();
  };
  if (wait == 1) wait_for_predecessor();
  float acc[2][NJ][4];
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < NJ; j++)
#pragma unroll
      for (int v = 0; v < 4; v++) acc[i][j][v] = 0.0f;
#pragma unroll
  for (int c = 0; c < STAGES - 2; c++) prefetch(c);
  for (int c = 0; c < chunks; c++) {
    copies_wait<STAGES - 3>();
    fence_for_products();
    block_sync();
    prefetch(c + STAGES - 2);  // into the stage that was multiplied two steps ago: of the step just before, one product may still read
    const uint32_t at = base + (c % STAGES) * stage_bytes, slot = at + NT * 128 + warp * slot_bytes;
    const uint64_t operand = (uint64_t)((at & 0x3FFFF) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
    uint32_t codes[2][4 * WORDS], scale[2][SG > 0 ? SG : 1], zeros[2][SG > 0 ? SG : 1];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t own = slot + i * (CODES + extra);
#pragma unroll
      for (int h = 0; h < WORDS; h++) *(uint4*)(codes[i] + 4 * h) = shared16(own + h * 512 + lane * 16);
      zeros[i][0] = (Q == U8 ? 128 : 8) * 0x10001;
      if constexpr (SG > 0) {
#pragma unroll
        for (int b = 0; b < SG; b++) {
          scale[i][b] = shared4(own + CODES + (lane * SG + b) * 4);
          zeros[i][b] = (Q == U8 ? 128 : 8) * 0x10001;
          if (has_zero) zeros[i][b] = shared4(own + CODES + 128 * SG + (lane * SG + b) * 4);
        }
      }
    }
    uint32_t a[2][2][4];
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const int group = SG == 4 ? step : SG == 2 ? step / 2 : 0;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const uint32_t z0 = zero_word<Q, T>(zeros[i][group] & 0xFFFF), z1 = zero_word<Q, T>(zeros[i][group] >> 16);
        if constexpr (SG > 0) {
          uint32_t s0, s1;
          scale_words<Q, T>(s0, s1, scale[i][group]);
          widen_scaled<Q, T>(a[step % 2][i], codes[i] + step * WORDS, z0, z1, s0, s1);
        } else {
          widen<Q, T>(a[step % 2][i], codes[i] + step * WORDS, z0, z1);
        }
      }
      products_begin();
      Wgmma<T, NT>::run(&acc[0][0][0], a[step % 2][0], operand + step * 2);
      Wgmma<T, NT>::run(&acc[1][0][0], a[step % 2][1], operand + step * 2);
      products_end();
      products_wait<1>();
    }
  }
  products_wait<0>();
  copies_wait<0>();
  launch_dependents();
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const float c0 = channel[tile[i] * 16 + g], c1 = channel[tile[i] * 16 + g + 8];
#pragma unroll
    for (int j = 0; j < NJ; j++) {
      acc[i][j][0] *= c0;
      acc[i][j][1] *= c0;
      acc[i][j][2] *= c1;
      acc[i][j][3] *= c1;
    }
  }
  if (lora) {
    if (wait == 2) wait_for_predecessor();
    int seg[NJ];
#pragma unroll
    for (int j = 0; j < NJ; j++) {
      const int row = t.row0 + 8 * j + g;
      seg[j] = row >= t.lora0 && row < t.row1 ? seg_of[row] : -1;
    }
    expand_pages<T, 2, NJ, GATED, 2>(acc, s, pga, pgb, pgm, seg, t.row0, n, t.begin, t.end, 1, N, RS, SU, lane);
  }
  // Rows of y through shared memory, so that they are written whole.
  block_sync();
  constexpr int STRIDE = BLOCK_ROWS + 8;
  uint16_t* out = (uint16_t*)memory;
  float b[2][2] = {};
  if (has_bias) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int col = min(n[i] + g + 8 * half, N - 1);
        b[i][half] = bias[GATED ? ((int64_t)t.e * 2 + i) * N + col : (int64_t)t.e * N + col];
      }
  }
#pragma unroll
  for (int j = 0; j < NJ; j++)
#pragma unroll
    for (int v = 0; v < 4; v++) {
      const int r = 8 * j + 2 * q + v % 2, down = g + v / 2 * 8;
      float f = 1.0f;
      if (on_input) f = tw[*(volatile const int*)(pairs + min(t.row0 + r, t.row1 - 1))];
      const float v0 = acc[0][j][v] * f + b[0][v / 2], v1 = acc[1][j][v] * f + b[1][v / 2];
      if constexpr (GATED) {
        out[r * STRIDE + local[0] + down] = round_to<T>(activate_gated(v0, v1, act, alpha, beta, limit));
      } else {
        out[r * STRIDE + local[0] + down] = round_to<T>(activate_single(v0, act));
        out[r * STRIDE + local[1] + down] = round_to<T>(activate_single(v1, act));
      }
    }
  block_sync();
  for (int i = THREAD; i < NT * (BLOCK_ROWS / 8); i += 256) {
    const int r = i / (BLOCK_ROWS / 8), c = i % (BLOCK_ROWS / 8) * 8, col = t.block * BLOCK_ROWS + c;
    if (t.row0 + r < t.row1 && col < N) *(uint4*)(y + (int64_t)(t.row0 + r) * N + col) = *(const uint4*)(out + r * STRIDE + c);
  }
}

#define WIDE(NAME, Q, T, NT, SG, GATED, BLOCKS) \
  KERNEL(256, BLOCKS) NAME(GEMM_PARAMETERS) { wide<Q, T, NT, SG, GATED>(GEMM_ARGUMENTS); }

#ifdef ONE_KERNEL
ONE_KERNEL
#elif !defined(EMU)
#include "wide_kernels.inc"
#endif
