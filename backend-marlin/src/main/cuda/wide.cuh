// A grouped product for many rows an expert, on Hopper: wgmma, the widened weights as its A operand in registers, up to NT rows of x as its B operand
// in shared memory, so that no widened weight ever goes through shared memory.
//
// A warpgroup takes 128 rows of the weights (64 of gate and the 64 of up that belong to them). A block has two, which share its rows of x, or at height 80
// one, and a multiprocessor three such blocks, which share nothing: while one begins or ends, the others multiply. A chunk is 64
// columns: four steps of 16, at most one under way while the next one's weights are widened. After the loop the sums lie as mma has them, so the
// expand is that of narrow.cuh. The end activates in registers and turns the outputs in shared memory, so that rows of y are written whole.
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

constexpr int MEET = 1, GROUP_BYTES = 20 * 1024;  // of the warpgroups: named barriers, shared memory at the end

// Warpgroups of a block, and blocks a multiprocessor.
BOTH int wide_groups(int nt) { return nt == 80 ? 1 : 2; }
BOTH int wide_blocks(int nt) { return nt >= 128 ? 1 : nt == 80 ? 3 : 2; }

// As many as fit, if three do. A KiB of each block is the system's.
BOTH int wide_stages(int q, int nt, int stage_bytes) {
  const int most = (nt >= 128 ? 6 : 5) - (code_bits(q) == 4 ? 0 : 1), fit = (nt >= 128 ? 222 : nt == 80 ? 228 / 3 - 1 : 110) * 1024 / stage_bytes;
  return fit < 3 ? 3 : fit < most ? fit : most;
}

// The expand for many pages a tile: B and s through shared memory, PAGES of them a step, three steps under way. acc[0] has rows `rows` of the
// block's ROWS rows of B, acc[1] rows `rows2`.
template <class T, int NT, int GROUPS = wide_groups(NT)>
DEV void expand_staged(int gated, float (&acc)[2][NT / 8][4], uint32_t base, const uint16_t* s, const int64_t* pga, const int64_t* pgb, const int64_t* pgm,
                       const int* seg_of, const Tile& t, int rows, int rows2, int block_n, int N, int RS, int SU, int lane, int warp) {
  constexpr int ROWS = GROUPS * 128, PAGES = GROUPS == 1 ? 1 : NT >= 128 ? 4 : 2, WARPS = 4 * GROUPS / PAGES, EACH = (NT + 16 * WARPS - 1) / (16 * WARPS);
  constexpr int S_BYTES = NT * 32 * 2, PAGE_BYTES = ROWS * 32 + S_BYTES, STEP_BYTES = PAGES * PAGE_BYTES;
  const int u = warp / WARPS, in = warp % WARPS * 32 + lane, half = in % 2, row = in / 2;
  int seg[EACH], lane_seg[(NT + 31) / 32];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int r = t.row0 + row + 16 * WARPS * i;
    seg[i] = r >= t.lora0 && r < t.row1 ? seg_of[r] : -1;
  }
#pragma unroll
  for (int i = 0; i < (NT + 31) / 32; i++) {
    const int r = t.row0 + lane + 32 * i;
    lane_seg[i] = lane + 32 * i < NT && r >= t.lora0 && r < t.row1 ? seg_of[r] : -1;
  }
  int page = t.begin + u;
  int64_t word = page < t.end ? pgm[page] : 0, b1 = page < t.end ? pga[page] : 0, b2 = gated && page < t.end ? pgb[page] : 0;
  auto fill = [&](int step) {
    const uint32_t to = base + step % 3 * STEP_BYTES + u * PAGE_BYTES;
    if (page < t.end) {
#pragma unroll
      for (int i = 0; i < ROWS / 16 / WARPS; i++) {
        const int r = row + 16 * WARPS * i;
        const bool second = gated && r >= ROWS / 2;
        const int halves = (int)(word >> (second ? 58 : 56)) & 3, stride = ((int)(word >> (second ? 40 : 32)) & 0xFF) * 8;
        const int n = min(block_n + (second ? r - ROWS / 2 : r), N - 1);
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
          const uint32_t p = to + ROWS * 32 + r * 32 + (half ^ (r >> 2 & 1)) * 16;
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
  const uint32_t s1 = ROWS * 32 + srow * 32 + (shalf ^ (srow >> 2 & 1)) * 16;
  for (int step = 0; step < steps; step++) {
    copies_wait<1>();
    block_sync();
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

// SiLU and gpt-oss's SwiGLU (both are that of activate_gated, with alpha 1 and beta 0 for the first), with instructions that are good to some last bits.
DEV float quick_gated(float g, float u, float alpha, float beta, float limit) {
  const float c = at_most(g, limit);
  return c * quick_reciprocal(1.0f + quick_exp2(c * alpha * -1.4426950408889634f)) * (clip(u, limit) + beta);
}

template <int N>
struct Value {
  static constexpr int value = N;
};

// warps_k == 2 (height 32, an even number of chunks): the warpgroups take every other chunk of the same 128 rows of the weights, for launches that
// would not fill the card.
template <int Q, class T, int NT, int SG, bool ZERO>
DEV void wide(GEMM_PARAMETERS) {
  SHARED(memory);
  constexpr int GROUPS = wide_groups(NT);
  constexpr bool SPLITS = NT == 32, DIRECT = SG == 1;
  using Weights = Stream<Q, SG, ZERO, DIRECT>;
  constexpr int NJ = NT / 8, WORDS = code_bits(Q) / 4, CODES = Weights::CODES;
  constexpr int slot_bytes = Weights::SLOT_BYTES, x_bytes = NT * 128 * (SPLITS ? 2 : 1), stage_bytes = (x_bytes + 4 * GROUPS * slot_bytes + 1023) / 1024 * 1024;
  constexpr int STAGES = wide_stages(Q, NT, stage_bytes);
  const int split = SPLITS && warps_k == 2 ? 1 : 0;
  const int BLOCK_ROWS = (gated ? 64 * GROUPS : 128 * GROUPS) >> split;
  if (wait == 0) {
    wait_for_predecessor();
    launch_dependents();  // what is next brings its first weights where a block of this launch has ended
  }
  const int lane = THREAD % 32, warp = THREAD / 32, g = lane / 4, q = lane % 4, group4 = warp / 4, own4 = warp % 4;
  const Tile t = find_tile(first, ids, expert_map, mapping, gtile, nums, has_map, lora, 0, P, TOPK, quotient(N + BLOCK_ROWS - 1, BLOCK_ROWS), EG, E, NS, GM,
                           BLOCK);
  if (!t.some) return;
  const int tiles = (N + 15) / 16, chunks = (KD + CHUNK - 1) / CHUNK, turns = chunks >> split;
  const int local0 = (split ? 0 : group4 * (gated ? 64 : 128)) + own4 * 16;
  const int local[2] = {local0, gated ? local0 : local0 + 64};
  const int n[2] = {t.block * BLOCK_ROWS + local[0], t.block * BLOCK_ROWS + local[1]};
  int64_t tile[2];
  tile[0] = (int64_t)(t.e * (gated ? 2 : 1)) * tiles + min(n[0] / 16, tiles - 1);
  tile[1] = (int64_t)(t.e * (gated ? 2 : 1) + (gated ? 1 : 0)) * tiles + min(n[1] / 16, tiles - 1);

  // A stage: x, [NT][64] (twice where the contraction is split) with its 16-byte columns swizzled as the tensor cores want them, then the slots of the warps.
  const uint32_t base = uniform(shared_address(memory)), base_end = base + STAGES * stage_bytes, own_slot = x_bytes + warp * slot_bytes;
  const uint32_t own_x = SPLITS ? uniform(split && group4 ? NT * 128 : 0) : 0;
  Weights stream(w, ratio, zero, tile, chunks, group_shift, lane);
  const int mine = split ? group4 : 0;  // chunks mine, mine + 2, ..
  // Pointers move on just before they are used, when the copies have long read them.
#pragma unroll
  for (int i = 0; i < 2; i++) stream.codes[i] += (mine - (1 << split)) * CODES;
  const int x_step = uniform(CHUNK << split), code_step = uniform(CODES / 2 << split);
  auto copy_weights = [&](uint32_t stage, int turn) {
#pragma unroll
    for (int i = 0; i < 2; i++) stream.codes[i] = (const uint8_t*)((const uint16_t*)stream.codes[i] + code_step);
    stream.copy_codes(stage + own_slot, 0, lane);
    stream.copy_ratios(stage + own_slot, (turn << split) + mine, lane);
  };
  // The first weights are asked for before it is known which rows of x they meet.
#pragma unroll
  for (int c = 0; c < STAGES - 2; c++)
    if (c < turns) copy_weights(base + c * stage_bytes, c);
  const float unit[2][2] = {{channel[tile[0] * 16 + g], channel[tile[0] * 16 + g + 8]}, {channel[tile[1] * 16 + g], channel[tile[1] * 16 + g + 8]}};
  if (wait == 1) wait_for_predecessor();
  // Rows of x: pointers, or where registers are few vectors from x on.
  constexpr bool PLACES = GROUPS == 1;
  constexpr int XSTEP = 16 * GROUPS, XROWS = NT / XSTEP > 0 ? NT / XSTEP : 1;
  [[maybe_unused]] const uint16_t* from_x[PLACES ? 1 : XROWS];
  [[maybe_unused]] uint32_t row_at[PLACES ? XROWS : 1];
  [[maybe_unused]] const uint4* from = (const uint4*)x;
  const int xcol = THREAD % 8;
  const uint32_t xto = THREAD / 8 * 128 + ((xcol ^ (THREAD / 8 & 7)) << 4);
  const int brings = t.row1 - t.row0 - THREAD / 8;  // rows that the tile has not are not brought: their sums go nowhere
#pragma unroll
  for (int i = 0; i < XROWS; i++) {
    int row = min(t.row0 + THREAD / 8 + XSTEP * i, t.row1 - 1);
    if (gather) row = quotient((int)load_new4(pairs + row), TOPK);
    if constexpr (PLACES) {
      row_at[i] = (uint32_t)row * (uint32_t)(KD / 8) + xcol;
    } else {
      from_x[i] = x + (int64_t)row * KD + xcol * 8 - (CHUNK << split);
      whole(from_x[i]);
    }
  }
  uint32_t to = base;
  int next = 0, rest = KD - xcol * 8;  // of the inputs, from this thread's column on
  auto prefetch = [&](auto weights) {
    if (next < turns) {
#pragma unroll
      for (int i = 0; i < XROWS; i++) {
        if constexpr (!PLACES) from_x[i] += x_step;
        if (brings > XSTEP * i) {
          if constexpr (PLACES) copy16_or_zero(to + xto + i * (XSTEP * 128), from + row_at[i], rest > 0);
          else copy16_or_zero(to + xto + i * (XSTEP * 128), from_x[i], rest > 0);
        }
      }
      if constexpr (PLACES) from += x_step / 8;
      if constexpr (SPLITS)
        if (split && brings > 0) copy16_or_zero(to + xto + NT * 128, from_x[0] + CHUNK, rest > CHUNK);
      rest -= x_step;
      if constexpr (decltype(weights)::value) copy_weights(to, next);
    }
    copies_end();
    next++;
    to += stage_bytes;
    if (to == base_end) to = base;
  };
  float acc[2][NJ][4];
#pragma unroll
  for (int c = 0; c < STAGES - 2; c++) prefetch(Value<0>{});

  // The products are as wide as the tile has rows, in steps. Where there is room for a group's sums (LAZY), its ratio is applied to them in f32
  // and not to every weight.
  constexpr bool LAZY = NT == 32 && SG == 1, LATE = LAZY && !ZERO;  // LATE: nothing of a group is needed before its end
  // FP4's scales are E8M0 or E4M3; with others a ratio is rounded first.
  constexpr int SCALED = SG > 0 && !LAZY && Q != E2M1 && code_bias<U4, T>() < 1000.0f;
  auto multiply_rows = [&](auto width, auto bits) {
    constexpr int NC = decltype(width)::value;
    [[maybe_unused]] constexpr bool FINE = decltype(bits)::value == 1;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < NC / 8; j++)
#pragma unroll
        for (int v = 0; v < 4; v++) {
          acc[i][j][v] = 0.0f;
          here(acc[i][j][v]);
        }
    [[maybe_unused]] float sum[2][LAZY ? NC / 8 : 1][4];
    uint32_t a[2][2][4], codes[2][4 * WORDS];
    // Of the chunk at hand; DIRECT: of its group and of the next one.
    [[maybe_unused]] uint32_t scale[2][SG > 0 ? SG : 1], zeros[2][SG > 0 ? SG : 1], scale_next[2], zeros_next[2], late[2];
    [[maybe_unused]] const int group_mask = uniform((1 << max(group_shift - split, 0)) - 1), group_step = split && group_shift == 0 ? 2 : 1;
    [[maybe_unused]] Factors factors[2];
    auto widen_step = [&](int step) {
      const int in = SG == 4 ? step : SG == 2 ? step / 2 : 0;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const uint32_t z0 = zero_word<Q, T>(zeros[i][in] & 0xFFFF), z1 = zero_word<Q, T>(zeros[i][in] >> 16);
        if constexpr (SG > 0 && !LAZY) {
          if constexpr (DIRECT) widen_scaled<Q, T, FINE>(a[step % 2][i], codes[i] + step * WORDS, z0, z1, factors[i]);
          else widen_scaled<Q, T, FINE>(a[step % 2][i], codes[i] + step * WORDS, z0, z1, factors_of<Q, T, FINE>(scale[i][in]));
        } else {
          widen<Q, T>(a[step % 2][i], codes[i] + step * WORDS, z0, z1);
        }
      }
    };
    auto load = [&](uint32_t slot) {
      if constexpr (DIRECT) stream.load_codes(slot, codes, lane);
      else stream.load(slot, codes, scale, zeros, lane);
    };
    auto take_group = [&](const uint32_t (&r)[2], const uint32_t (&z)[2]) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        scale[i][0] = r[i];
        zeros[i][0] = z[i];
        if constexpr (SG > 0 && !LAZY) factors[i] = factors_of<Q, T, FINE>(r[i]);
      }
    };
    if constexpr (LATE) {
      late[0] = late[1] = 0;
      zeros[0][0] = zeros[1][0] = (Q == U8 ? 128 : 8) * 0x10001;
      stream.next_group((mine >> group_shift) - group_step);  // one too far back
    } else if constexpr (DIRECT) {
      uint32_t r[2], z[2];
      stream.load_group(mine >> group_shift, r, z);
      take_group(r, z);
      stream.load_group(group_step, scale_next, zeros_next);
    }
    // A warp reads its own codes before it meets the others, so that its first product is issued as soon as x is there.
    uint32_t at = base;
    copies_wait<STAGES - 3>();
    load(at + own_slot);
    widen_step(0);
    for (int c = 0; c < turns; c++) {
      fence_for_products();
      block_sync();
      const uint64_t operand = (uint64_t)(((at + own_x) & 0x3FFFF) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
#pragma unroll
      for (int step = 0; step < 4; step++) {
        products_begin();
        if constexpr (LAZY) {
          const int more = step > 0 || (c & group_mask) != 0;
          Wgmma<T, NC>::run_more(&sum[0][0][0], a[step % 2][0], operand + step * 2, more);
          Wgmma<T, NC>::run_more(&sum[1][0][0], a[step % 2][1], operand + step * 2, more);
        } else {
          Wgmma<T, NC>::run(&acc[0][0][0], a[step % 2][0], operand + step * 2);
          Wgmma<T, NC>::run(&acc[1][0][0], a[step % 2][1], operand + step * 2);
        }
        products_end();
        if constexpr (LATE) {
          if (step == 0) stream.load_ratios(group_step, late, (c & group_mask) == 0);
        }
        if (step == 0) prefetch(Value<1>{});  // into the stage of two chunks ago: of the chunk just before, one product may still read
        products_wait<1>();
        if (step < 3) {
          widen_step(step + 1);
        } else {
          [[maybe_unused]] const uint32_t ratios[2] = {LATE ? late[0] : scale[0][0], LATE ? late[1] : scale[1][0]};
          if constexpr (DIRECT && !LATE) {
            if ((c & group_mask) == group_mask) {
              take_group(scale_next, zeros_next);
              stream.load_group(group_step, scale_next, zeros_next);
            }
          }
          if (c + 1 < turns) {
            at += stage_bytes;
            if (at == base_end) at = base;
            copies_wait<STAGES - 3>();
            load(at + own_slot);
            widen_step(0);
          }
          if constexpr (LAZY) {
            if ((c & group_mask) == group_mask || c + 1 == turns) {
              products_wait<0>();
#pragma unroll
              for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < NC / 8; j++)
#pragma unroll
                  for (int v = 0; v < 4; v++) {
                    here(sum[i][j][v]);
                    acc[i][j][v] += half_float((uint16_t)(ratios[i] >> v / 2 * 16)) * sum[i][j][v];
                  }
            }
          }
        }
      }
    }
    products_wait<0>();
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < NJ; j++)
#pragma unroll
        for (int v = 0; v < 4; v++) {
          if (j >= NC / 8) acc[i][j][v] = 0.0f;
          here(acc[i][j][v]);
        }
  };
  const int count = t.row1 - t.row0;
  // The narrowest of some widths that holds the tile's rows.
  auto multiply_in = [&](auto bits, auto... widths) {
    bool done = false;
    ((!done && count <= decltype(widths)::value ? (done = true, multiply_rows(widths, bits)) : void()), ...);
  };
  auto multiply = [&](auto bits) {
    if constexpr (NT == 32) multiply_in(bits, Value<8>{}, Value<16>{}, Value<24>{}, Value<32>{});
    else if constexpr (NT == 80) multiply_in(bits, Value<16>{}, Value<48>{}, Value<64>{}, Value<80>{});
    else if constexpr (NT == 64) multiply_in(bits, Value<32>{}, Value<40>{}, Value<48>{}, Value<64>{});
    else if constexpr (Q != E4M3 && decltype(bits)::value == 1) multiply_in(bits, Value<64>{}, Value<96>{}, Value<128>{}, Value<160>{});
    else multiply_in(bits, Value<64>{}, Value<80>{}, Value<96>{}, Value<112>{}, Value<128>{}, Value<144>{}, Value<160>{});
  };
  // FP8 with a scale in BF16 is rare: it has no code of its own.
  if (SCALED && (fine || Q == E4M3)) multiply(Value<SCALED>{});
  else multiply(Value<0>{});
  copies_wait<0>();
  if (wait != 0) launch_dependents();
  if (SPLITS && split) {
    // The second warpgroup's sums to the first; it goes on with what it has, and writes nothing.
    float* sums = (float*)memory + THREAD % 128;
    block_sync();  // the stages have been read
#pragma unroll
    for (int v = 0; v < 2 * NJ * 4; v++)
      if (group4 == 1) sums[v * 128] = (&acc[0][0][0])[v];
    block_sync();
#pragma unroll
    for (int v = 0; v < 2 * NJ * 4; v++)
      if (group4 == 0) (&acc[0][0][0])[v] += sums[v * 128];
    block_sync();
  }
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < NJ; j++)
#pragma unroll
      for (int v = 0; v < 4; v++) acc[i][j][v] *= unit[i][v / 2];
  if (lora) {
    if (wait == 2) wait_for_predecessor();
    block_sync();  // the stages have been read
    if (t.begin < t.end)
      expand_staged<T, NT>(gated, acc, base, s, pga, pgb, pgm, seg_of, t, local[0], gated ? 64 * GROUPS + local[1] : local[1], t.block * BLOCK_ROWS, N, RS, SU, lane,
                                  warp);
  }
  block_sync();  // the stages have been read
  const int group = group4, in_group = THREAD % 128;
  const uint32_t outputs = base + group * GROUP_BYTES;
  float2* scratch = (float2*)(memory + group * GROUP_BYTES);
  float biases[2][2];
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int h = 0; h < 2; h++)
      biases[i][h] = has_bias ? bias[((int64_t)t.e * (gated ? 2 : 1) + (gated ? i : 0)) * N + min(n[i] + g + 8 * h, N - 1)] : 0.0f;
  constexpr int SWIGLU_OAI = 3;
  if ((act > 0 && act != SWIGLU_OAI) || on_input) {
    // What few layers have goes through shared memory, so that its code is short.
#pragma unroll
    for (int j = 0; j < NJ; j += 4) {
      if (8 * j >= count) break;
#pragma unroll
      for (int v = 0; v < 4 * min(4, NJ - j); v++) scratch[v * 128 + in_group] = {acc[0][j + v / 4][v % 4], acc[1][j + v / 4][v % 4]};
#pragma unroll 1
      for (int v = 0; v < 4 * min(4, NJ - j); v++) {
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
      for (int v = 0; v < 4 * min(4, NJ - j); v++) {
        const float2 p = scratch[v * 128 + in_group];
        acc[0][j + v / 4][v % 4] = p.x;
        acc[1][j + v / 4][v % 4] = p.y;
      }
    }
    some_sync<128>(MEET + group);
  } else {
    const float own_alpha = act == SWIGLU_OAI ? alpha : 1.0f, own_beta = act == SWIGLU_OAI ? beta : 0.0f;
#pragma unroll
    for (int j = 0; j < NJ; j++) {
      if (8 * j >= count) break;
#pragma unroll
      for (int v = 0; v < 4; v++) {
#pragma unroll
        for (int i = 0; i < 2; i++) acc[i][j][v] += biases[i][v / 2];
        if (gated) acc[0][j][v] = quick_gated(acc[0][j][v], acc[1][j][v], own_alpha, own_beta, limit);
      }
    }
  }
  // Through shared memory, so that rows of y are written whole: 64 outputs of each at a time.
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if (i == 1) {
      if (gated) break;
      some_sync<128>(MEET + group);
    }
#pragma unroll
    for (int j = 0; j < NJ; j += 2) {
      if (8 * j >= count) break;
      const int row = 8 * j + lane / 16 * 8 + lane % 8, col = own4 * 2 + lane / 8 % 2;
      store_matrices_turned(outputs + row * 128 + ((col ^ row & 7) << 4), pack2<T>(acc[i][j][0], acc[i][j][1]), pack2<T>(acc[i][j][2], acc[i][j][3]),
                            pack2<T>(acc[i][j + 1][0], acc[i][j + 1][1]), pack2<T>(acc[i][j + 1][2], acc[i][j + 1][3]));
    }
    some_sync<128>(MEET + group);
    const int col = in_group % 8, n = t.block * BLOCK_ROWS + (split ? 0 : group * (gated ? 64 : 128)) + 64 * i + col * 8;
    if (n < N && !(split && group)) {
#pragma unroll 4
      for (int row = in_group / 8; row < count; row += 16)
        *(uint4*)(y + (int64_t)(t.row0 + row) * N + n) = shared16(outputs + row * 128 + ((col ^ row & 7) << 4));
    }
  }
}

#define WIDE(NAME, Q, T, NT, SG, ZERO) \
  KERNEL(128 * wide_groups(NT), wide_blocks(NT)) NAME(GEMM_PARAMETERS) { wide<Q, T, NT, SG, ZERO>(GEMM_ARGUMENTS); }
