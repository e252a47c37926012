"""s = x . A[slot, expert]^T for the rows that have an adapter: the first half of LoRA.

A tile is up to BS rows of one segment; the grid is tiles x rank chunks x splits of the contraction, and a program whose chunk lies
beyond its adapter's own rank leaves at once. A program's BR ranks are BR / 2 of the first and BR / 2 of the second projection where
there are two (FIRST), so that x is read once for both.

Splits are summed in a fixed order, never by atomic adds: each program leaves its f32 partial in memory and the last one to arrive
(a counter decides, the sum does not depend on it) adds all of them up. With NAIVE (one row a tile) the consumer adds them up instead.
"""
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from table import A_ADDR, A_EXPERT, RANK, SHARED_A, SLOT_WIDTH, pair_of


@triton.jit
def shrink_kernel(origin, x, s, part, arrived, table, ids, expert_map, mapping, pairs, stile, nums, has_map, TOPK, KD, EG, E, NS, RS, SU, NC,
                  SPLIT, early, FIRST: tl.constexpr, GATHER: tl.constexpr, NAIVE: tl.constexpr, BS: tl.constexpr, BR: tl.constexpr,
                  BK: tl.constexpr, EVEN_K: tl.constexpr, OF: tl.constexpr, PDL: tl.constexpr):
    """s[row, rank] and, with FIRST, s[row, SU + rank] of the second projection; rows of s are RS wide.

    NAIVE: tile = pair; f32 partials go to part[pair, split, RS]. Otherwise part is [program, BS, BR] and used with SPLIT > 1 only;
    arrived[tile, chunk] starts at zero and is left at zero. OF: which projection of the table, where there is one (0 or 2). early: as in
    gemm_kernel.
    """
    if PDL and OF == 0:
        gdc_wait()
        gdc_launch_dependents()
    if PDL and OF != 0 and NAIVE:
        if early != 0:
            gdc_launch_dependents()
    pid = tl.program_id(0)
    t = pid // (NC * SPLIT)
    sp = pid // NC % SPLIT
    ch = pid % NC
    if NAIVE:
        e, live, slot = pair_of(ids, mapping, expert_map, has_map, t, TOPK, EG, E, NS)
        live = live & (slot >= 0)
        row0 = t
        row1 = t + 1
    else:
        live = t < tl.load(nums + 1)
        e = tl.load(stile + t * 4, mask=live, other=0)
        row0 = tl.load(stile + t * 4 + 1, mask=live, other=0)
        row1 = tl.load(stile + t * 4 + 2, mask=live, other=0)
        slot = tl.load(stile + t * 4 + 3, mask=live, other=0)
    tr = table + slot.to(tl.int64) * SLOT_WIDTH
    rr = tl.arange(0, BR)
    r1 = tl.load(tr + RANK + OF, mask=live, other=0).to(tl.int32)
    a1 = tl.load(tr + A_ADDR + OF, mask=live, other=0) + tl.load(tr + A_EXPERT + OF, mask=live, other=0) * e
    if PDL and OF != 0:
        gdc_wait()  # only x is new; lists, ids and table are older than the kernel just before this one
        gdc_launch_dependents()
    if FIRST:
        HALF: tl.constexpr = BR // 2
        second = rr >= HALF
        rank = ch * HALF + rr % HALF
        r2 = tl.load(tr + RANK + 1, mask=live, other=0).to(tl.int32)
        r2 = tl.where(tl.load(tr + SHARED_A, mask=live, other=0) != 0, 0, r2)
        a2 = tl.load(tr + A_ADDR + 1, mask=live, other=0) + tl.load(tr + A_EXPERT + 1, mask=live, other=0) * e
        limit = tl.where(second, r2, r1)
        base = tl.where(second, a2, a1)
        col = rank + tl.where(second, SU, 0)
        some = ch * HALF < tl.maximum(r1, r2)
    else:
        rank = ch * BR + rr
        limit = tl.zeros((BR,), tl.int32) + r1
        base = tl.zeros((BR,), tl.int64) + a1
        col = rank
        some = ch * BR < r1
    if some:
        rm = rank < limit
        rows = row0 + tl.arange(0, BS)
        xm = rows < row1
        src = rows
        if GATHER:
            if not NAIVE:
                src = tl.load(pairs + rows, mask=xm, other=0)
            src = src // TOPK
        kk = tl.arange(0, BK)
        xp = x + src.to(tl.int64)[:, None] * KD + kk[None, :]
        ap = origin + tl.multiple_of(base + rank.to(tl.int64) * KD, 8)[:, None] + kk[None, :]
        step = tl.cdiv(tl.cdiv(KD, BK), SPLIT) * BK
        acc = tl.zeros((BS, BR), tl.float32)
        for k in range(sp * step, tl.minimum(sp * step + step, KD), BK):
            if EVEN_K:
                xv = tl.load(xp + k, mask=xm[:, None], other=0.0)
                av = tl.load(ap + k, mask=rm[:, None], other=0.0)
            else:
                km = (kk + k < KD)[None, :]
                xv = tl.load(xp + k, mask=xm[:, None] & km, other=0.0)
                av = tl.load(ap + k, mask=rm[:, None] & km, other=0.0)
            acc = tl.dot(xv, av.T, acc)
        if NAIVE:
            out = part + (t * SPLIT + sp).to(tl.int64) * RS + rows[:, None] * 0 + col[None, :]
            tl.store(out, acc, mask=xm[:, None] & rm[None, :])
        else:
            last = True
            if SPLIT > 1:
                ri = tl.arange(0, BS)[:, None] * BR + rr[None, :]
                tile = (t * NC + ch).to(tl.int64) * SPLIT
                tl.store(part + (tile + sp) * (BS * BR) + ri, acc)
                tl.debug_barrier()
                last = tl.atomic_add(arrived + t * NC + ch, 1, sem="acq_rel") == SPLIT - 1
                if last:
                    acc = tl.zeros((BS, BR), tl.float32)
                    for i in range(0, SPLIT):
                        acc += tl.load(part + (tile + i) * (BS * BR) + ri, cache_modifier=".cg")
                    tl.store(arrived + t * NC + ch, 0)
            if last:
                out = s + rows.to(tl.int64)[:, None] * RS + col[None, :]
                tl.store(out, acc.to(s.dtype.element_ty), mask=xm[:, None] & rm[None, :])
