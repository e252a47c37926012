// A grouped product for many rows an expert, on Hopper: wgmma, the widened weights as its A operand in registers, up to NT rows of x as its B operand
// in shared memory, so that no widened weight ever goes through shared memory.
//
// A block stays on its multiprocessor and takes tile after tile. Its third warpgroup brings: one warp the packed weights, three warps
// the rows of x, each a stage of its own (the fence that makes ordinary copies visible to the tensor cores waits for all copies of a thread,
// so a warp has no more than one stage under way). The other two widen and multiply, 128 rows of the weights each (64 of gate and the 64 of up that
// belong to them) with the same rows of x. They wait for stages, not for each other: while one ends a tile, the other multiplies.
// A step is 16 columns; the next step's weights are widened while the products of this one run. The products are as wide as a tile has rows, in
// steps of 32. After the loop the sums lie as mma has them.
#pragma once
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

constexpr int CONSUMERS = 256, MEET_ALL = 1, MEET_GROUP = 2;  // named barriers: of both groups, of each
constexpr int X_WARPS = 3, BATCH_2 = 64;
constexpr int WIDE_TILES = 16;  // row tiles of the weights a block

// Where things lie in shared memory: stages, each x [NT][64] with its 16-byte columns swizzled as the tensor cores want them, then codes, ratios and
// zero points of the row tiles; what the groups write their outputs through; barriers.
template <int Q, int NT, int SG, bool ZERO>
struct WideLayout {
  static constexpr int CODES = CHUNK * 16 * code_bits(Q) / 8, SCALES = SG * 32;
  static constexpr int AT_CODES = NT * 128, AT_RATIOS = AT_CODES + WIDE_TILES * CODES, AT_ZEROS = AT_RATIOS + WIDE_TILES * SCALES;
  static constexpr int STAGE = (AT_ZEROS + (ZERO ? WIDE_TILES * SCALES : 0) + 1023) / 1024 * 1024;
  static constexpr int OUTPUTS = NT * 128;  // of a group
  static constexpr int FIT = (224 * 1024 / (NT >= 64 ? 1 : 2) - 2 * OUTPUTS - 1024) / STAGE, STAGES = FIT < 8 ? FIT : 8;
  static constexpr int AT_OUTPUTS = STAGES * STAGE, AT_BARRIERS = AT_OUTPUTS + 2 * OUTPUTS;
};

// The expand for many pages a tile: B and s through shared memory, PAGES of them a step, three steps under way. acc[0] has rows `rows` of the
// block's 256 rows of B, acc[1] rows `rows2`.
template <class T, int NT>
DEV void expand_staged(int gated, float (&acc)[2][NT / 8][4], uint32_t base, const uint16_t* s, const int64_t* pga, const int64_t* pgb, const int64_t* pgm,
                       const int* seg_of, const Tile& t, int rows, int rows2, int block_n, int N, int RS, int SU, int lane, int warp) {
  constexpr int PAGES = NT >= 128 ? 4 : 2, WARPS = 8 / PAGES, EACH = NT / (16 * WARPS) > 0 ? NT / (16 * WARPS) : 1;
  constexpr int S_BYTES = NT * 32 * 2, PAGE_BYTES = 256 * 32 + S_BYTES, STEP_BYTES = PAGES * PAGE_BYTES;
  const int u = warp / WARPS, in = warp % WARPS * 32 + lane, half = in % 2, row = in / 2;
  int seg[EACH], lane_seg[NT / 32 > 0 ? NT / 32 : 1];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int r = t.row0 + row + 16 * WARPS * i;
    seg[i] = r >= t.lora0 && r < t.row1 ? seg_of[r] : -1;
  }
#pragma unroll
  for (int i = 0; i < (NT / 32 > 0 ? NT / 32 : 1); i++) {
    const int r = t.row0 + lane + 32 * i;
    lane_seg[i] = lane + 32 * i < NT && r >= t.lora0 && r < t.row1 ? seg_of[r] : -1;
  }
  int page = t.begin + u;
  int64_t word = page < t.end ? pgm[page] : 0, b1 = page < t.end ? pga[page] : 0, b2 = gated && page < t.end ? pgb[page] : 0;
  auto fill = [&](int step) {
    const uint32_t to = base + step % 3 * STEP_BYTES + u * PAGE_BYTES;
    if (page < t.end) {
#pragma unroll
      for (int i = 0; i < 16 / WARPS; i++) {
        const int r = row + 16 * WARPS * i;
        const bool second = gated && r >= 128;
        const int halves = (int)(word >> (second ? 58 : 56)) & 3, stride = ((int)(word >> (second ? 40 : 32)) & 0xFF) * 8;
        const int n = min(block_n + (second ? r - 128 : r), N - 1);
        const uint16_t* from = (const uint16_t*)0 + (second ? b2 : b1) * 8 + (int64_t)n * stride + half * 8;
        copy16_or_zero(to + r * 32 + (half ^ (r >> 2 & 1)) * 16, half < halves ? from : s, half < halves);
      }
      const int own = (int)word, col = ((int)(word >> 48) & 0xFF) * PAGE + half * 8;
      const int h1 = (int)(word >> 56) & 3, h2 = (int)(word >> 58) & 3, up = (word >> 60) & 1 ? 0 : SU;
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        const int r = row + 16 * WARPS * i;
        if (r < NT) {
          const uint16_t* from = s + (int64_t)(t.row0 + r) * RS + col;
          const uint32_t p = to + 256 * 32 + r * 32 + (half ^ (r >> 2 & 1)) * 16;
          bool some = seg[i] == own && half < h1;
          copy16_or_zero(p, some ? from : s, some);
          if (gated) {
            some = seg[i] == own && half < h2;
            copy16_or_zero(p + NT * 32, some ? from + up : s, some);
          }
        }
      }
    }
    copies_end();
    page += PAGES;
    word = page < t.end ? pgm[page] : 0;
    b1 = page < t.end ? pga[page] : 0;
    b2 = gated && page < t.end ? pgb[page] : 0;
  };
  fill(0);
  fill(1);
  const int steps = ceil_div(t.end - t.begin, PAGES);
  const int arow = lane % 16, ahalf = lane / 16;                      // matrices: rows 0..7 and 8..15 of ranks 0..7, then of ranks 8..15
  const int srow = lane % 8 + lane / 16 * 8, shalf = lane / 8 % 2;    // rows 0..7 of ranks 0..7 and of 8..15, then rows 8..15
  const uint32_t a1 = (rows + arow) * 32 + (ahalf ^ ((rows + arow) >> 2 & 1)) * 16, a2 = (rows2 + arow) * 32 + (ahalf ^ ((rows2 + arow) >> 2 & 1)) * 16;
  const uint32_t s1 = 256 * 32 + srow * 32 + (shalf ^ (srow >> 2 & 1)) * 16;
  for (int step = 0; step < steps; step++) {
    copies_wait<1>();
    some_sync<CONSUMERS>(MEET_ALL);
    fill(step + 2);
#pragma unroll 1
    for (int v = 0; v < PAGES; v++) {
      const int at = t.begin + step * PAGES + v;
      if (at >= t.end) break;
      const uint32_t p = base + step % 3 * STEP_BYTES + v * PAGE_BYTES;
      const int own = (int)pgm[at];
      uint32_t f1[4], f2[4];
      load_matrices(f1, p + a1);
      load_matrices(f2, p + a2);
#pragma unroll
      for (int j = 0; j < NT / 8; j += 2) {
        const uint32_t mask = lanes_with(lane_seg[j / 4] == own) >> (j % 4 * 8) & 0xFFFF;
        if (mask == 0) continue;
        uint32_t b[4];
        load_matrices(b, p + s1 + j * 256);
        multiply<T>(acc[0][j], f1, b[0], b[1]);
        multiply<T>(acc[0][j + 1], f1, b[2], b[3]);
        if (gated) load_matrices(b, p + s1 + NT * 32 + j * 256);
        multiply<T>(acc[1][j], f2, b[0], b[1]);
        multiply<T>(acc[1][j + 1], f2, b[2], b[3]);
      }
    }
  }
  copies_wait<0>();
}

// silu_gated with the instructions that are good to some last bits.
DEV float quick_silu_gated(float g, float u, float limit) {
  const float c = at_most(g, limit);
  return c * quick_reciprocal(1.0f + quick_exp2(c * -1.4426950408889634f)) * clip(u, limit);
}

// Sums of a tile: NC rows of x with two 64-row tiles of the weights, all of the contraction.
template <int Q, class T, int NC, int NT, int SG, bool ZERO>
DEV void products(float (&acc)[2][NT / 8][4], uint32_t base, uint32_t full, uint32_t empty, int& stage, int& phase, int chunks, const int (&slot)[2], int lane) {
  using L = WideLayout<Q, NT, SG, ZERO>;
  constexpr int WORDS = code_bits(Q) / 4;
  // So many steps are widened while as many before them are multiplied: more where the sums leave registers for it.
  constexpr int BATCH = NC <= BATCH_2 ? 2 : 1;
  uint32_t a[2][BATCH][2][4], codes[2][4 * WORDS], scale[2][SG > 0 ? SG : 1], zeros[2][SG > 0 ? SG : 1];
  auto widen_step = [&](int step, uint32_t (&to)[2][4]) {
    const int group = SG == 4 ? step : SG == 2 ? step / 2 : 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t z0 = zero_word<Q, T>(zeros[i][group] & 0xFFFF), z1 = zero_word<Q, T>(zeros[i][group] >> 16);
      if constexpr (SG > 0) {
        widen_scaled<Q, T>(to[i], codes[i] + step * WORDS, z0, z1, factors_of<Q, T>(scale[i][group]));
      } else {
        widen<Q, T>(to[i], codes[i] + step * WORDS, z0, z1);
      }
    }
  };
  auto load = [&]() {
    barrier_wait(full + stage * 8, phase);
    const uint32_t at = base + stage * L::STAGE;
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int h = 0; h < WORDS; h++) *(uint4*)(codes[i] + 4 * h) = shared16(at + L::AT_CODES + slot[i] * L::CODES + lane * 16 + h * 512);
#pragma unroll
      for (int b = 0; b < (SG > 0 ? SG : 1); b++) {
        zeros[i][b] = (Q == U8 ? 128 : 8) * 0x10001;
        if constexpr (SG > 0) scale[i][b] = shared4(at + L::AT_RATIOS + slot[i] * L::SCALES + (lane / 4 * SG + b) * 4);
        if constexpr (ZERO) zeros[i][b] = shared4(at + L::AT_ZEROS + slot[i] * L::SCALES + (lane / 4 * SG + b) * 4);
      }
    }
  };
  auto widen_batch = [&](int batch) {
#pragma unroll
    for (int u = 0; u < BATCH; u++) widen_step(batch * BATCH + u, a[batch % 2][u]);
  };
  load();
  widen_batch(0);
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < NC / 8; j++)
#pragma unroll
      for (int v = 0; v < 4; v++) {
        acc[i][j][v] = 0.0f;
        here(acc[i][j][v]);
      }
  uint32_t before = 0;
  for (int c = 0; c < chunks; c++) {
    const uint32_t at = base + stage * L::STAGE, own = empty + stage * 8;
    const uint64_t operand = (uint64_t)((at & 0x3FFFF) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
#pragma unroll
    for (int batch = 0; batch < 4 / BATCH; batch++) {
      products_begin();
#pragma unroll
      for (int u = 0; u < BATCH; u++) {
        Wgmma<T, NC>::run(&acc[0][0][0], a[batch % 2][u][0], operand + (batch * BATCH + u) * 2);
        Wgmma<T, NC>::run(&acc[1][0][0], a[batch % 2][u][1], operand + (batch * BATCH + u) * 2);
      }
      products_end();
      products_wait<1>();
      if (batch == 0 && before != 0 && lane == 0) barrier_arrive(before);  // nothing reads the stage of the chunk before any more
      const bool last = batch == 4 / BATCH - 1;
      if (!last) widen_batch(batch + 1);
      // The codes have all been widened one batch before the last, so those of the next chunk may come.
      if (batch == 4 / BATCH - 2) {
        if (++stage == L::STAGES) {
          stage = 0;
          phase ^= 1;
        }
        if (c + 1 < chunks) load();
      }
      if (last && c + 1 < chunks) widen_batch(0);
    }
    before = own;
  }
  products_wait<0>();
  if (lane == 0) barrier_arrive(before);
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < NT / 8; j++)
#pragma unroll
      for (int v = 0; v < 4; v++) {
        if (j >= NC / 8) acc[i][j][v] = 0.0f;
        here(acc[i][j][v]);
      }
}

template <int Q, class T, int NT, int SG, bool ZERO>
DEV void wide(GEMM_PARAMETERS) {
  SHARED(memory);
  using L = WideLayout<Q, NT, SG, ZERO>;
  constexpr int NJ = NT / 8;
  const int lane = THREAD % 32, warp = THREAD / 32, BLOCK_ROWS = gated ? 128 : 256;
  const uint32_t base = shared_address(memory), full = base + L::AT_BARRIERS, empty = full + 8 * L::STAGES, released = empty + 8 * L::STAGES;
  if (THREAD == 0) {
    for (int i = 0; i < L::STAGES; i++) {
      barrier_init(full + 8 * i, 64);
      barrier_init(empty + 8 * i, 8);
    }
    barrier_init(released, 8);
    barriers_ready();
  }
  if (wait == 0) wait_for_predecessor();
  block_sync();
  const int tiles = ceil_div(N, 16), chunks = ceil_div(KD, CHUNK);
  auto tile_of = [&](int pid) {
    return find_tile(first, BLOCK_ROWS, ids, expert_map, mapping, gtile, nums, has_map, lora, 0, P, TOPK, N, EG, E, NS, GM, pid);
  };
  if (warp >= 8) {
    registers_down<NT >= 64 ? 72 : 64>();
    int stage, phase = 1, released_phase = 0;
    if (warp == 8) {
      // The weights.
      const int groups = SG == 1 ? (chunks + (1 << group_shift) - 1) >> group_shift : chunks;
      stage = 0;
      for (int pid = BLOCK;; pid += BLOCKS) {
        const Tile t = tile_of(pid);
        if (!t.some) break;
        // Row tiles lie `stride` bytes apart, those of up behind those of gate. There may be fewer than a block has.
        const int64_t tile = (int64_t)t.e * (gated ? 2 : 1) * tiles + t.block * (gated ? 8 : 16);
        const int stride = chunks * L::CODES, left = tiles - t.block * (gated ? 8 : 16);
        const int64_t second = (int64_t)tiles * stride - (gated ? 8 : 0) * (int64_t)stride;
        const uint8_t* codes = w + tile * stride + lane * 16;
        // Of ratios and zero points a lane has one 16-byte piece in 32.
        constexpr int PIECES = SG > 0 ? SG * 2 : 1;
        int64_t piece[SG > 0 ? SG : 1];
        bool has_piece[SG > 0 ? SG : 1];
#pragma unroll
        for (int u = 0; u < SG; u++) {
          const int i = (u * 32 + lane) / PIECES;
          has_piece[u] = (gated ? i % 8 : i) < left;
          piece[u] = (tile + (gated && i >= 8 ? tiles - 8 : 0) + i) * groups * SG * 8 + (u * 32 + lane) % PIECES * 4;
        }
        for (int c = 0; c < chunks; c++) {
          const uint32_t at = base + stage * L::STAGE;
          barrier_wait(empty + 8 * stage, phase);
          const uint8_t* from = codes + (int64_t)c * L::CODES;
#pragma unroll
          for (int i = 0; i < WIDE_TILES; i++) {
            if (i == 8) from += gated ? second : 0;
#pragma unroll
            for (int h = 0; h < L::CODES / 512; h++)
              copy16_or_zero(at + L::AT_CODES + i * L::CODES + h * 512 + lane * 16, from + h * 512, (gated ? i % 8 : i) < left);
            from += stride;
          }
          const int group = (SG == 1 ? c >> group_shift : c) * 8 * SG;
#pragma unroll
          for (int u = 0; u < SG; u++) {
            copy16_or_zero(at + L::AT_RATIOS + (u * 32 + lane) * 16, ratio + piece[u] + group, has_piece[u]);
            if constexpr (ZERO) copy16_or_zero(at + L::AT_ZEROS + (u * 32 + lane) * 16, zero + piece[u] + group, has_piece[u]);
          }
          barrier_arrive_with_copies(full + 8 * stage);
          if (++stage == L::STAGES) {
            stage = 0;
            phase ^= 1;
          }
        }
        if (lora) {
          barrier_wait(released, released_phase);
          released_phase ^= 1;
        }
      }
    } else {
      // The rows of x: a warp every third stage, four rows of 128 bytes an instruction.
      if (wait == 1) wait_for_predecessor();
      stage = warp - 9;
      int c = warp - 9;
      const int xcol = lane % 8, xrow = lane / 8;
      auto rows_of = [&](const Tile& t, int (&rows)[NT / 32]) {
#pragma unroll
        for (int i = 0; i < NT / 32; i++) {
          int row = min(t.row0 + 32 * i + lane, t.row1 - 1);
          rows[i] = gather && t.some ? (int)load_new4(pairs + row) / TOPK : row;
        }
      };
      int pid = BLOCK, rows[NT / 32], next_rows[NT / 32];
      Tile t = tile_of(pid), next = t;
      rows_of(t, rows);
      while (t.some) {
        bool fetched = false;
        const int count = t.row1 - t.row0;
        for (; c < chunks; c += X_WARPS) {
          const uint32_t at = base + stage * L::STAGE;
          barrier_wait(empty + 8 * stage, phase);
          const uint16_t* from = x + c * CHUNK + xcol * 8;
          const bool some = c * CHUNK + xcol * 8 < KD;
#pragma unroll
          for (int q = 0; q < NT / 32; q++) {
            if (32 * q >= count) break;
#pragma unroll
            for (int i = 0; i < 8; i++) {
              const int row = from_lane(rows[q], 4 * i + xrow);
              copy16_or_zero(at + (32 * q + 4 * i + xrow) * 128 + ((xcol ^ (4 * i + xrow) & 7) << 4), some ? from + (int64_t)row * KD : x, some);
            }
          }
          copies_end();
          if (!fetched) {
            next = tile_of(pid + BLOCKS);
            rows_of(next, next_rows);
            fetched = true;
          }
          copies_wait<0>();
          fence_for_products();
          barrier_arrive(full + 8 * stage);
          stage += X_WARPS;
          if (stage >= L::STAGES) {
            stage -= L::STAGES;
            phase ^= 1;
          }
        }
        c -= chunks;
        if (!fetched) {
          next = tile_of(pid + BLOCKS);
          rows_of(next, next_rows);
        }
        if (lora) {
          barrier_wait(released, released_phase);
          released_phase ^= 1;
        }
        t = next;
        pid += BLOCKS;
#pragma unroll
        for (int i = 0; i < NT / 32; i++) rows[i] = next_rows[i];
      }
    }
  } else {
    registers_up<NT >= 64 ? 216 : 88>();
    const int g = lane / 4, q = lane % 4, group = warp / 4, own4 = warp % 4, in_group = THREAD % 128;
    const int local[2] = {gated ? group * 64 + own4 * 16 : group * 128 + own4 * 16, gated ? group * 64 + own4 * 16 : group * 128 + 64 + own4 * 16};
    const int slot[2] = {local[0] / 16, gated ? 8 + local[1] / 16 : local[1] / 16};
    const uint32_t outputs = base + L::AT_OUTPUTS + group * L::OUTPUTS;
    float2* scratch = (float2*)(memory + L::AT_OUTPUTS + group * L::OUTPUTS);
    int stage = 0, phase = 0;
    int pid = BLOCK;
    Tile t = tile_of(pid);
    while (t.some) {
      const Tile next = tile_of(pid + BLOCKS);
      const int count = t.row1 - t.row0;
      float unit[2][2], biases[2][2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int n = t.block * BLOCK_ROWS + local[i];
        const int64_t tile = (int64_t)(t.e * (gated ? 2 : 1) + (gated ? i : 0)) * tiles + min(n / 16, tiles - 1);
#pragma unroll
        for (int h = 0; h < 2; h++) {
          unit[i][h] = channel[tile * 16 + g + 8 * h];
          biases[i][h] = has_bias ? bias[((int64_t)t.e * (gated ? 2 : 1) + (gated ? i : 0)) * N + min(n + g + 8 * h, N - 1)] : 0.0f;
        }
      }
      float acc[2][NJ][4];
      if constexpr (NT >= 128) {
        if (count > 96) products<Q, T, 128, NT, SG, ZERO>(acc, base, full, empty, stage, phase, chunks, slot, lane);
        else if (count > 64) products<Q, T, 96, NT, SG, ZERO>(acc, base, full, empty, stage, phase, chunks, slot, lane);
      }
      if constexpr (NT >= 64) {
        if (count > 32 && count <= 64) products<Q, T, 64, NT, SG, ZERO>(acc, base, full, empty, stage, phase, chunks, slot, lane);
      }
      if (count <= 32) products<Q, T, 32, NT, SG, ZERO>(acc, base, full, empty, stage, phase, chunks, slot, lane);
      if (!next.some) launch_dependents();
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < NJ; j++)
#pragma unroll
          for (int v = 0; v < 4; v++) acc[i][j][v] *= unit[i][v / 2];
      if (lora) {
        if (wait == 2) wait_for_predecessor();
        if (t.begin < t.end) {
          some_sync<CONSUMERS>(MEET_ALL);  // the stages have been read
          expand_staged<T, NT>(gated, acc, base, s, pga, pgb, pgm, seg_of, t, local[0], gated ? 128 + local[1] : local[1], t.block * BLOCK_ROWS, N, RS, SU, lane,
                               warp);
          some_sync<CONSUMERS>(MEET_ALL);
        }
        if (lane == 0) barrier_arrive(released);
      }
      some_sync<128>(MEET_GROUP + group);  // the outputs of the tile before have been read
      if (act > 0 || on_input) {
        // What few layers have goes through shared memory, so that its code is short.
#pragma unroll
        for (int j = 0; j < NJ; j += 4) {
          if (8 * j >= count) break;
#pragma unroll
          for (int v = 0; v < 16; v++) scratch[v * 128 + in_group] = {acc[0][j + v / 4][v % 4], acc[1][j + v / 4][v % 4]};
#pragma unroll 1
          for (int v = 0; v < 16; v++) {
            float2 p = scratch[v * 128 + in_group];
            const float f = on_input ? tw[(int)load_new4(pairs + min(t.row0 + 8 * j + v / 4 * 8 + 2 * q + v % 2, t.row1 - 1))] : 1.0f;
            p.x = p.x * f + (v & 2 ? biases[0][1] : biases[0][0]);
            p.y = p.y * f + (v & 2 ? biases[1][1] : biases[1][0]);
            if (gated) {
              p.x = activate_gated(p.x, p.y, act, alpha, beta, limit);
            } else {
              p.x = activate_single(p.x, act);
              p.y = activate_single(p.y, act);
            }
            scratch[v * 128 + in_group] = p;
          }
#pragma unroll
          for (int v = 0; v < 16; v++) {
            const float2 p = scratch[v * 128 + in_group];
            acc[0][j + v / 4][v % 4] = p.x;
            acc[1][j + v / 4][v % 4] = p.y;
          }
        }
        some_sync<128>(MEET_GROUP + group);
      } else {
#pragma unroll
        for (int j = 0; j < NJ; j++) {
          if (8 * j >= count) break;
#pragma unroll
          for (int v = 0; v < 4; v++) {
#pragma unroll
            for (int i = 0; i < 2; i++) acc[i][j][v] += biases[i][v / 2];
            if (gated) acc[0][j][v] = quick_silu_gated(acc[0][j][v], acc[1][j][v], limit);
          }
        }
      }
      // Through shared memory, so that rows of y are written whole: 64 outputs of each at a time.
#pragma unroll
      for (int i = 0; i < 2; i++) {
        if (i == 1) {
          if (gated) break;
          some_sync<128>(MEET_GROUP + group);
        }
#pragma unroll
        for (int j = 0; j < NJ; j += 2) {
          if (8 * j >= count) break;
          const int row = 8 * j + lane / 16 * 8 + lane % 8, col = own4 * 2 + lane / 8 % 2;
          store_matrices_turned(outputs + row * 128 + ((col ^ row & 7) << 4), pack2<T>(acc[i][j][0], acc[i][j][1]), pack2<T>(acc[i][j][2], acc[i][j][3]),
                                pack2<T>(acc[i][j + 1][0], acc[i][j + 1][1]), pack2<T>(acc[i][j + 1][2], acc[i][j + 1][3]));
        }
        some_sync<128>(MEET_GROUP + group);
        const int col = in_group % 8, n = t.block * BLOCK_ROWS + (gated ? group * 64 : group * 128 + 64 * i) + col * 8;
        if (n < N) {
#pragma unroll 4
          for (int row = in_group / 8; row < count; row += 16)
            *(uint4*)(y + (int64_t)(t.row0 + row) * N + n) = shared16(outputs + row * 128 + ((col ^ row & 7) << 4));
        }
      }
      t = next;
      pid += BLOCKS;
    }
  }
}

#define WIDE(NAME, Q, T, NT, SG, ZERO) \
  KERNEL(384, (NT >= 64 ? 1 : 2)) NAME(GEMM_PARAMETERS) { wide<Q, T, NT, SG, ZERO>(GEMM_ARGUMENTS); }
