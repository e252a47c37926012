"""The two grouped GEMMs of a MoE layer with LoRA riding in their accumulators.

first:  act[row] = f(x[token(row)] . w13[e]^T + bias + delta)      second: y[row] = act[row] . w2[e]^T + bias + delta

delta = s . B[slot, e]^T, where s comes from shrink.py. A tile is up to BM rows of one expert whatever their adapters. After the loop
over the contraction a second, short loop runs over the pages (16 ranks of one segment) of the segments the tile holds, G pages side by
side: a row takes part in the columns of its own segment only, everywhere else s is filled with zeros on its way into shared memory. So
there is no delta buffer, rows without adapter cost nothing, and time follows each adapter's own rank.

Both operands of the expand come from shared memory, on purpose. With s in registers (select instead of masked load) Triton 3.6 keeps
that loop's wgmma in flight across its back edge while the next iteration overwrites the registers they still read: wrong results that
depend on timing. KernelsTest checks the compiled kernels for it.

The page list is read one step ahead by hand, so the loads of B depend on values already in registers and the compiler pipelines them
to the full depth.
"""
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from activation import activate_gated, activate_single
from mxfp4 import one_row_mxfp4, rows_mxfp4
from table import B_ADDR, B_EXPERT, B_ROW, PAGE, RANK, SHARED_A, SLOT_WIDTH, TILE_WORDS, local_expert, pair_of, together


@triton.jit
def page_columns(pga, pgb, pgm, q, end, kp, PAIR: tl.constexpr):
    """One step of the page list, one entry a column: where B of the first and second projection lies, and the page word; 0 behind the
    end."""
    m = q + kp < end
    a = tl.load(pga + q + kp, mask=m, other=0)
    b = a
    if PAIR:
        b = tl.load(pgb + q + kp, mask=m, other=0)
    return a, b, tl.load(pgm + q + kp, mask=m, other=0)


@triton.jit
def expand_sorted(acc, acc2, origin, s, pga, pgb, pgm, rs, a, b, w, begin, end, rows, nc, RS, SU, PAIR: tl.constexpr, G: tl.constexpr,
                  XS: tl.constexpr):
    """rs: segments of the rows, or -1; begin..end: the tile's pages; a, b, w: the first step of the page list."""
    kr = tl.arange(0, G * PAGE)
    kp = kr // PAGE
    kc = kr % PAGE
    half = kr // 8 % 2
    sp = s + rows.to(tl.int64)[:, None] * RS + kc[None, :]
    for q in tl.range(begin, end, G, num_stages=XS):
        an, bn, wn = page_columns(pga, pgb, pgm, q + G, end, kp, PAIR)
        mine = rs[:, None] == (w & 0xFFFFFFFF).to(tl.int32)[None, :]
        sj = ((w >> 48) & 0xFF).to(tl.int32) * PAGE
        v1 = half < ((w >> 56) & 3).to(tl.int32)
        d1 = ((w >> 32) & 0xFF).to(tl.int32) * 8
        bp = origin + (a * 8)[None, :] + (nc[:, None] * d1[None, :] + kc[None, :])
        sv = tl.load(sp + sj[None, :], mask=mine & v1[None, :], other=0.0)
        acc = tl.dot(sv, tl.load(bp, mask=v1[None, :], other=0.0).T, acc)
        if PAIR:
            v2 = half < ((w >> 58) & 3).to(tl.int32)
            d2 = ((w >> 40) & 0xFF).to(tl.int32) * 8
            up = (1 - ((w >> 60) & 1).to(tl.int32)) * SU
            bp = origin + (b * 8)[None, :] + (nc[:, None] * d2[None, :] + kc[None, :])
            sv = tl.load(sp + (sj + up)[None, :], mask=mine & v2[None, :], other=0.0)
            acc2 = tl.dot(sv, tl.load(bp, mask=v2[None, :], other=0.0).T, acc2)
        a, b, w = an, bn, wn
    return acc, acc2


@triton.jit
def factor_row(table, slot, e, OF: tl.constexpr):
    """For a tile of one row: rank, place and row stride of its adapter's B."""
    row = table + slot.to(tl.int64) * SLOT_WIDTH
    has = slot >= 0
    rank = tl.load(row + RANK + OF, mask=has, other=0).to(tl.int32)
    b = tl.load(row + B_ADDR + OF, mask=has, other=0) + tl.load(row + B_EXPERT + OF, mask=has, other=0) * e
    return tl.multiple_of(rank, 8), tl.multiple_of(b, 8), tl.multiple_of(tl.load(row + B_ROW + OF, mask=has, other=0), 8)


@triton.jit
def factor_bits(origin, b, d, rank, k, nc, G: tl.constexpr):
    """Ranks k.. of B, as bits."""
    kr = k + tl.arange(0, G * PAGE)
    p = origin.to(tl.pointer_type(tl.int16), bitcast=True) + b + nc.to(tl.int64)[:, None] * d + kr[None, :]
    return tl.load(p, mask=(kr < rank)[None, :], other=0)


@triton.jit
def splits_of(part, pair, col, rank, k, RS, SPLIT, G: tl.constexpr, BM: tl.constexpr):
    """Ranks k.. of what each program of the shrink left, [BM, G * PAGE] in f32 as bits; rows past SPLIT are zero."""
    si = tl.arange(0, BM)
    kr = k + tl.arange(0, G * PAGE)
    p = part.to(tl.pointer_type(tl.int32), bitcast=True) + (pair * SPLIT + si).to(tl.int64)[:, None] * RS + (col + kr)[None, :]
    return tl.load(p, mask=(si < SPLIT)[:, None] & (kr < rank)[None, :], other=0)


@triton.jit
def together_halves(a, b):
    """table.together for 16-bit words."""
    return tl.inline_asm_elementwise("mov.b32 $0, $2; mov.b32 $1, $3;", "=r,=r,r,r", [a, b], dtype=(tl.int16, tl.int16), is_pure=False,
                                     pack=2)


@triton.jit
def expand_one(acc, sv, bits, EL: tl.constexpr):
    """The expand of a tile of one row by the tensor cores: the splits of the shrink are the rows, summed after it."""
    return tl.dot(sv.to(tl.float32, bitcast=True).to(EL), bits.to(EL, bitcast=True).T, acc)


@triton.jit
def finish_one(acc, acc2, bias, tw, y, pair, e, rn, nc, has_bias, on_input, act, alpha, beta, limit, N, NW, FIRST: tl.constexpr,
               PAIR: tl.constexpr, ACT: tl.constexpr):
    """The end of a tile of one row: weight, bias, activation, store."""
    if FIRST:
        if on_input != 0:
            f = tl.load(tw + pair)
            acc = acc * f
            if PAIR:
                acc2 = acc2 * f
    if has_bias != 0:
        nb = bias + e.to(tl.int64) * NW + nc
        acc += tl.load(nb)
        if PAIR:
            acc2 += tl.load(nb + N)
    if PAIR:
        acc = activate_gated(acc, acc2, act, alpha, beta, limit, ACT)
    elif FIRST:
        acc = activate_single(acc, act)
    tl.store(y + pair.to(tl.int64) * N + rn, acc.to(y.dtype.element_ty), mask=rn < N)


@triton.jit
def gemm_tile(origin, x, xd, w, ws, wd, bias, tw, y, table, pairs, seg_of, pga, pgb, pgm, s, part, slot, kend, mt, e, n0, row0, row1, r0,
              begin, end, has_bias, on_input, act, alpha, beta, limit, TOPK, N, KD, RS, SU, SPLIT, FIRST: tl.constexpr, GATED: tl.constexpr,
              ACT: tl.constexpr, GATHER: tl.constexpr, LORA: tl.constexpr, NAIVE: tl.constexpr, G: tl.constexpr, BM: tl.constexpr,
              BN: tl.constexpr, BK: tl.constexpr, EVEN_K: tl.constexpr, TMA: tl.constexpr, MX: tl.constexpr, XS: tl.constexpr,
              PDL: tl.constexpr):
    PAIR: tl.constexpr = FIRST and GATED
    EL: tl.constexpr = y.dtype.element_ty
    NW = N * 2 if PAIR else N
    rows = row0 + tl.arange(0, BM)
    rm = rows < row1
    rc = tl.minimum(rows, row1 - 1)
    src = rc
    if GATHER:
        if not NAIVE:
            src = tl.load(pairs + rc, cache_modifier=".cg")
        src = src // TOPK
    kk = tl.arange(0, BK)
    rn = n0 + tl.arange(0, BN)
    nc = tl.minimum(rn, N - 1)
    xp = x + src.to(tl.int64)[:, None] * KD + kk[None, :]
    wp = w + (e.to(tl.int64) * NW + nc)[:, None] * KD + kk[None, :]
    wr = e * NW + n0
    up = N.to(tl.int64) * KD
    acc = tl.zeros((BM, BN), tl.float32)
    acc2 = acc
    if PAIR:
        acc2 = tl.zeros((BM, BN), tl.float32)
    # The lists of the expand are old. Where it costs few registers they are asked for here, and have come when it begins.
    EARLY: tl.constexpr = LORA and not NAIVE and BM <= 32
    if EARLY:
        rs = tl.load(seg_of + rows, mask=rm & (rows >= r0), other=-1)
        pa, pb, pw = page_columns(pga, pgb, pgm, begin, end, tl.arange(0, G * PAGE) // PAGE, PAIR)
    if LORA and NAIVE:
        OF: tl.constexpr = 0 if FIRST else 2
        rank1, b1, d1 = factor_row(table, slot, e, OF)
        if PAIR:
            rank2, b2, d2 = factor_row(table, slot, e, 1)
            shared = tl.load(table + slot.to(tl.int64) * SLOT_WIDTH + SHARED_A, mask=slot >= 0, other=0).to(tl.int32)
    if PDL and not LORA and not FIRST:
        gdc_wait()  # only x is new; lists and ids are older than the kernel just before this one
    if MX:
        row = e.to(tl.int64) * NW + nc
        if NAIVE:
            acc, acc2 = one_row_mxfp4(x + (mt // TOPK if GATHER else mt).to(tl.int64) * KD, w, ws, row, N, KD, kend, PAIR, BM, BN, BK, XS)
        else:
            acc, acc2 = rows_mxfp4(acc, acc2, xp, rm, w, ws, row, N, KD, kend, PAIR, BM, BN, BK)
    else:
        for k in range(0, kend, BK):
            km = (kk + k < KD)[None, :]
            if TMA and not GATHER:
                xv = xd.load([row0, k])
            else:
                xv = tl.load(xp + k, mask=rm[:, None] if EVEN_K else rm[:, None] & km, other=0.0)
            if TMA:
                wv = wd.load([wr, k])
            elif EVEN_K:
                wv = tl.load(wp + k)
            else:
                wv = tl.load(wp + k, mask=km, other=0.0)
            acc = tl.dot(xv, wv.T, acc)
            if PAIR:
                if TMA:
                    uv = wd.load([wr + N, k])
                elif EVEN_K:
                    uv = tl.load(wp + up + k)
                else:
                    uv = tl.load(wp + up + k, mask=km, other=0.0)
                acc2 = tl.dot(xv, uv.T, acc2)
    if PDL:
        gdc_launch_dependents()
    if LORA:
        if NAIVE:
            # Every load is on its way before the first is waited for.
            bits1 = factor_bits(origin, b1, d1, rank1, 0, nc, G)
            if PAIR:
                bits2 = factor_bits(origin, b2, d2, rank2, 0, nc, G)
        if PDL:
            gdc_wait()  # s comes from the kernel just before this one; everything else is older
        if NAIVE:
            first = tl.arange(0, BM)[:, None] == 0
            acc = tl.where(first, acc, 0.0)
            sv1 = splits_of(part, mt, 0, rank1, 0, RS, SPLIT, G, BM)
            most = rank1
            if PAIR:
                col2 = (1 - shared) * SU
                acc2 = tl.where(first, acc2, 0.0)
                sv2 = splits_of(part, mt, col2, rank2, 0, RS, SPLIT, G, BM)
                most = tl.maximum(rank1, rank2)
            else:
                bits2 = bits1
                sv2 = sv1
            bits1, bits2 = together_halves(bits1, bits2)
            sv1, sv2 = together(sv1, sv2)
            acc = expand_one(acc, sv1, bits1, EL)
            if PAIR:
                acc2 = expand_one(acc2, sv2, bits2, EL)
            for k in tl.range(G * PAGE, most, G * PAGE, num_stages=1):
                acc = expand_one(acc, splits_of(part, mt, 0, rank1, k, RS, SPLIT, G, BM), factor_bits(origin, b1, d1, rank1, k, nc, G), EL)
                if PAIR:
                    acc2 = expand_one(acc2, splits_of(part, mt, col2, rank2, k, RS, SPLIT, G, BM),
                                      factor_bits(origin, b2, d2, rank2, k, nc, G), EL)
            acc = tl.sum(acc, 0)
            if PAIR:
                acc2 = tl.sum(acc2, 0)
        else:
            if not EARLY:
                rs = tl.load(seg_of + rows, mask=rm & (rows >= r0), other=-1)
                pa, pb, pw = page_columns(pga, pgb, pgm, begin, end, tl.arange(0, G * PAGE) // PAGE, PAIR)
            acc, acc2 = expand_sorted(acc, acc2, origin, s, pga, pgb, pgm, rs, pa, pb, pw, begin, end, rows, nc, RS, SU, PAIR, G, XS)
    if LORA and NAIVE:
        finish_one(acc, acc2, bias, tw, y, mt, e, rn, nc, has_bias, on_input, act, alpha, beta, limit, N, NW, FIRST, PAIR, ACT)
    else:
        if FIRST:
            if on_input != 0:
                pair = rc
                if not NAIVE:
                    pair = tl.load(pairs + rc)
                f = tl.load(tw + pair)[:, None]
                acc = acc * f
                if PAIR:
                    acc2 = acc2 * f
        if has_bias != 0:
            nb = bias + e.to(tl.int64) * NW + nc
            acc += tl.load(nb)[None, :]
            if PAIR:
                acc2 += tl.load(nb + N)[None, :]
        if PAIR:
            acc = activate_gated(acc, acc2, act, alpha, beta, limit, ACT)
        elif FIRST:
            acc = activate_single(acc, act)
        tl.store(y + rows.to(tl.int64)[:, None] * N + rn[None, :], acc.to(EL), mask=rm[:, None] & (rn < N)[None, :])


@triton.jit
def gemm_kernel(origin, x, xd, xh, w, ws, wd, bias, tw, y, table, ids, expert_map, mapping, pairs, gtile, nums, seg_of, pga, pgb, pgm,
                s, part, has_map, has_bias, on_input, act, alpha, beta, limit, P, TOPK, N, KD, EG, E, NS, RS, SU, SPLIT, GM, early,
                FIRST: tl.constexpr, GATED: tl.constexpr, ACT: tl.constexpr, GATHER: tl.constexpr, LORA: tl.constexpr,
                NAIVE: tl.constexpr, G: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN_K: tl.constexpr,
                TMA: tl.constexpr, TAIL: tl.constexpr, MX: tl.constexpr, XS: tl.constexpr, PDL: tl.constexpr):
    """x [rows, KD] (or [tokens, KD] with GATHER), w [E, N or 2N, KD], y [rows, N]; bias [E, N or 2N] f32; tw [tokens, TOPK] f32.

    MX: w is MXFP4, bytes [E, N or 2N, KD / 2] with exponents ws [E, N or 2N, KD / 32]; else ws is None.
    NAIVE: one pair a tile, no lists. TMA: w (and x, unless gathered) come by descriptors of boxes [BN, BK] and [BM, BK]; xh is x with
    boxes of half height, for TAIL: a tile with at most BM / 2 rows runs at half height. early (NAIVE): what comes next, as far as it does
    not wait, reads nothing of this kernel's nor of the one before it, so it may start while this one streams its weights.
    """
    if PDL and not LORA and FIRST:
        gdc_wait()
    if PDL and NAIVE:
        if early != 0:
            gdc_launch_dependents()
    nn = tl.cdiv(N, BN)
    pid = tl.program_id(0)
    nm = P if NAIVE else tl.load(nums, cache_modifier=".cg")
    if pid < nm * nn:
        if NAIVE:
            mt = pid % nm
            n0 = pid // nm * BN
        else:
            grp = pid // (GM * nn)
            gm = tl.minimum(nm - grp * GM, GM)
            mt = grp * GM + pid % (GM * nn) % gm
            n0 = pid % (GM * nn) // gm * BN
        slot = mt * 0 - 1
        kend = KD
        begin = mt * 0
        end = begin
        if NAIVE:
            # No branch and nothing that depends on a load of a load before the first copies are on their way.
            if LORA:
                e, go, slot = pair_of(ids, mapping, expert_map, has_map, mt, TOPK, EG, E, NS)
            else:
                e, go = local_expert(ids, expert_map, has_map, mt, True, EG, E)
            kend = tl.where(go, KD, 0)
            slot = tl.where(go, slot, -1)
            row0 = mt
            row1 = mt + 1
            r0 = mt
        else:
            about = gtile + mt * TILE_WORDS
            e = tl.load(about, cache_modifier=".cg")
            row0 = tl.load(about + 1, cache_modifier=".cg")
            row1 = tl.load(about + 2, cache_modifier=".cg")
            r0 = row1
            if LORA:
                PAGES: tl.constexpr = 4 if FIRST else 6
                r0 = tl.load(about + 3, cache_modifier=".cg")
                begin = tl.load(about + PAGES, cache_modifier=".cg")
                end = tl.load(about + PAGES + 1, cache_modifier=".cg")
        if TAIL:
            if row1 - row0 <= BM // 2:
                gemm_tile(origin, x, xh, w, ws, wd, bias, tw, y, table, pairs, seg_of, pga, pgb, pgm, s, part, slot, kend, mt, e, n0, row0,
                          row1, r0, begin, end, has_bias, on_input, act, alpha, beta, limit, TOPK, N, KD, RS, SU, SPLIT, FIRST, GATED, ACT,
                          GATHER, LORA, NAIVE, G, BM // 2, BN, BK, EVEN_K, TMA, MX, XS, PDL)
            else:
                gemm_tile(origin, x, xd, w, ws, wd, bias, tw, y, table, pairs, seg_of, pga, pgb, pgm, s, part, slot, kend, mt, e, n0, row0,
                          row1, r0, begin, end, has_bias, on_input, act, alpha, beta, limit, TOPK, N, KD, RS, SU, SPLIT, FIRST, GATED, ACT,
                          GATHER, LORA, NAIVE, G, BM, BN, BK, EVEN_K, TMA, MX, XS, PDL)
        else:
            gemm_tile(origin, x, xd, w, ws, wd, bias, tw, y, table, pairs, seg_of, pga, pgb, pgm, s, part, slot, kend, mt, e, n0, row0, row1,
                      r0, begin, end, has_bias, on_input, act, alpha, beta, limit, TOPK, N, KD, RS, SU, SPLIT, FIRST, GATED, ACT, GATHER,
                      LORA, NAIVE, G, BM, BN, BK, EVEN_K, TMA, MX, XS, PDL)
