"""Pairs sorted by (expert, adapter), and the lists that the GEMMs and shrinks run over.

A pair p = t * K + j is one choice of an expert by a token. Row order: by expert, inside an expert rows without adapter first, then by
slot. The order inside a segment (the rows of one expert and one adapter) is free, because no row's arithmetic depends on its
neighbours: results are the same whatever order the counters gave. Four launches, all asynchronous, nothing read by the host:

    clear -> count -> place (-> scatter when there are many pairs)

Lists (int32 unless said): pairs[row] = pair; pos_of[pair] = row or -1; seg_of[row] = segment or -1; gtile[8] = expert, first row, end
row, first row with an adapter, first and end page of w13 and of w2 (with adapters only); stile[4] = expert, first row, end row, slot;
nums = GEMM tiles, shrink tiles; seg_pg13 / seg_pg2[segment] = first page. A page is 16 ranks of one segment: pg13a / pg13b / pg2a = place
of B[slot, expert, 0, 16 * page] over 8 elements (int64), pg13m / pg2m = everything else in one word (int64), see page_word.
"""
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from table import (B_ADDR, B_EXPERT, B_ROW, LIVE, PAGE, PAGES13, PAGES2, RANK, SHARED_A, SLOT_WIDTH, TILE_WORDS, local_expert, slot_of)


@triton.jit
def clear_kernel(zero, n, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """zero[0:n] = 0."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(zero + i, tl.zeros((BLOCK,), tl.int32), mask=i < n)


@triton.jit
def count_kernel(ids, expert_map, mapping, table, cnt, stats, key_of, rank_of, has_map, P, TOPK, EG, E, NA, BS, LORA: tl.constexpr,
                 BP: tl.constexpr, PDL: tl.constexpr):
    """cnt[expert, adapter + 1] = pairs; key_of[p] = expert * NA + adapter + 1, or -1 for a pair without local expert; stats[4, expert]
    = segments, shrink tiles, pages of w13, pages of w2. Integer sums: the same in whatever order they are made."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    m = p < P
    e, ok = local_expert(ids, expert_map, has_map, p, m, EG, E)
    key = e * NA
    if LORA:
        slot = slot_of(mapping, p // TOPK, m, NA - 1)
        row = table + slot.to(tl.int64) * SLOT_WIDTH
        live = tl.load(row + LIVE, mask=slot >= 0, other=0)
        n13 = tl.load(row + PAGES13, mask=slot >= 0, other=0).to(tl.int32)
        n2 = tl.load(row + PAGES2, mask=slot >= 0, other=0).to(tl.int32)
        lora = ok & (live != 0)
        key += tl.where(lora, slot + 1, 0)
    tl.store(key_of + p, tl.where(ok, key, -1), mask=m)
    rank = tl.atomic_add(cnt + key, 1, mask=ok, sem="relaxed")
    tl.store(rank_of + p, tl.where(ok, rank, 0), mask=m)
    if LORA:
        one = tl.zeros((BP,), tl.int32) + 1
        new = lora & (rank == 0)
        tl.atomic_add(stats + e, one, mask=new, sem="relaxed")
        tl.atomic_add(stats + E + e, one, mask=lora & (rank % BS == 0), sem="relaxed")
        tl.atomic_add(stats + 2 * E + e, n13, mask=new, sem="relaxed")
        tl.atomic_add(stats + 3 * E + e, n2, mask=new, sem="relaxed")


@triton.jit
def page_word(seg, j, row_first, row_second, rank_first, rank_second, shared):
    """Bits 0..31 segment, 32..39 and 40..47 row strides of B over 8, 48..55 page number in the segment, 56..57 and 58..59 valid ranks
    of the page over 8, 60 shared A."""
    v1 = tl.minimum(tl.maximum(rank_first - j * PAGE, 0), PAGE) // 8
    v2 = tl.minimum(tl.maximum(rank_second - j * PAGE, 0), PAGE) // 8
    return (seg.to(tl.int64) | ((row_first // 8) << 32) | ((row_second // 8) << 40) | (j.to(tl.int64) << 48) | (v1 << 56) | (v2 << 58)
            | (shared << 60))


@triton.jit
def scatter_pairs(p, m, key, rank, e, a, e0, e1, l0, tile0, table, off, cnt, seg_id, st_off, seg_pg13, seg_pg2, pairs, pos_of, gtile, stile,
                  seg_of, BM, BS, LORA: tl.constexpr):
    """Each pair finds its row; the first row of a tile publishes the tile and where its pages begin, the last one where they end. Per pair
    (or once for all): expert e, its rows e0..e1, its first row with an adapter l0, its first tile tile0."""
    o = tl.load(off + key, mask=m, other=0)
    if LORA:  # a row without adapter has the id of the expert's first segment
        sid = tl.load(seg_id + key, mask=m, other=0)
        st0 = tl.load(st_off + key, mask=m, other=0)
        own = tl.load(cnt + key, mask=m, other=0)
        slot = table + (a - 1).to(tl.int64) * SLOT_WIDTH
        n13 = tl.load(slot + PAGES13, mask=m & (a > 0), other=0).to(tl.int32)
        n2 = tl.load(slot + PAGES2, mask=m & (a > 0), other=0).to(tl.int32)
    pos = o + rank
    tl.store(pairs + pos, p, mask=m)
    tl.store(pos_of + p, pos, mask=m)
    q = pos - e0
    f = m & (q % BM == 0)
    g = gtile + (tile0 + q // BM) * TILE_WORDS
    row1 = tl.minimum(pos + BM, e1)
    tl.store(g, tl.zeros_like(p) + e, mask=f)
    tl.store(g + 1, pos, mask=f)
    tl.store(g + 2, row1, mask=f)
    if LORA:
        r0 = tl.maximum(pos, l0)
        tl.store(g + 3, r0, mask=f)
        tl.store(seg_of + pos, tl.where(a > 0, sid, -1), mask=m)
        last = m & ((q % BM == BM - 1) | (pos == e1 - 1))
        some = (f & (r0 < row1)) | (last & (a > 0))  # else the tile has no pages: 0..0
        pg13 = tl.load(seg_pg13 + sid, mask=some, other=0)
        pg2 = tl.load(seg_pg2 + sid, mask=some, other=0)
        tl.store(g + 4, pg13, mask=f)
        tl.store(g + 5, pg13 + n13, mask=last)
        tl.store(g + 6, pg2, mask=f)
        tl.store(g + 7, pg2 + n2, mask=last)
        f = m & (a > 0) & (rank % BS == 0)
        t = stile + (st0 + rank // BS) * 4
        tl.store(t, tl.zeros_like(p) + e, mask=f)
        tl.store(t + 1, pos, mask=f)
        tl.store(t + 2, tl.minimum(pos + BS, o + own), mask=f)
        tl.store(t + 3, a - 1, mask=f)


@triton.jit
def slot_rows(table, cnt, a, m, x, first, LORA: tl.constexpr):
    """Of slots a - 1 and expert x: pairs, and with LORA what the page list needs, all asked for at once."""
    own = tl.load(cnt + first + a, mask=m, other=0)
    n13 = own
    n2 = own
    shared = own.to(tl.int64)
    b1 = shared
    b2 = shared
    b3 = shared
    w1 = shared
    w2 = shared
    w3 = shared
    r1 = shared
    r2 = shared
    r3 = shared
    if LORA:
        am = m & (a > 0)
        row = table + (a - 1).to(tl.int64) * SLOT_WIDTH
        n13 = tl.load(row + PAGES13, mask=am, other=0).to(tl.int32)
        n2 = tl.load(row + PAGES2, mask=am, other=0).to(tl.int32)
        shared = tl.load(row + SHARED_A, mask=am, other=0)
        b1 = tl.load(row + B_ADDR, mask=am, other=0) + tl.load(row + B_EXPERT, mask=am, other=0) * x
        b2 = tl.load(row + B_ADDR + 1, mask=am, other=0) + tl.load(row + B_EXPERT + 1, mask=am, other=0) * x
        b3 = tl.load(row + B_ADDR + 2, mask=am, other=0) + tl.load(row + B_EXPERT + 2, mask=am, other=0) * x
        w1 = tl.load(row + B_ROW, mask=am, other=0)
        w2 = tl.load(row + B_ROW + 1, mask=am, other=0)
        w3 = tl.load(row + B_ROW + 2, mask=am, other=0)
        r1 = tl.load(row + RANK, mask=am, other=0)
        r2 = tl.load(row + RANK + 1, mask=am, other=0)
        r3 = tl.load(row + RANK + 2, mask=am, other=0)
    return own, n13, n2, shared, b1, b2, b3, w1, w2, w3, r1, r2, r3


@triton.jit
def place_kernel(table, cnt, stats, key_of, rank_of, off, gt_off, seg_id, st_off, seg_pg13, seg_pg2, pg13a, pg13b, pg13m, pg2a, pg2m, nums,
                 pairs, pos_of, gtile, stile, seg_of, P, E, NA, BM, BS, LORA: tl.constexpr, SCATTER: tl.constexpr, E2: tl.constexpr,
                 BA: tl.constexpr, BP: tl.constexpr, PDL: tl.constexpr):
    """One program an expert. What lies before the expert comes from reductions over all counts, so no program waits for another."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    x = tl.program_id(0)
    first = x * NA
    es = tl.arange(0, E2)
    aa = tl.arange(0, BA)
    pp = tl.arange(0, BP)
    em = es < E
    # Loads first: everything after them waits for the slowest, once.
    if LORA:
        live = tl.load(stats + es, mask=em, other=0)
        tiles = tl.load(stats + E + es, mask=em, other=0)
        p13 = tl.load(stats + 2 * E + es, mask=em, other=0)
        p2 = tl.load(stats + 3 * E + es, mask=em, other=0)
    base = tl.load(cnt + first)
    own, n13, n2, shared, b1, b2, b3, w1, w2, w3, r1, r2, r3 = slot_rows(table, cnt, aa, aa < NA, x, first, LORA)
    if SCATTER:
        key = tl.load(key_of + pp, mask=pp < P, other=-1)
        rank = tl.load(rank_of + pp, mask=pp < P, other=0)
    ce = tl.zeros((E2,), tl.int32)
    for a0 in range(0, NA, BA):
        a = a0 + aa
        ce += tl.sum(tl.load(cnt + es[:, None] * NA + a[None, :], mask=em[:, None] & (a < NA)[None, :], other=0), 1)
    before = es < x
    gt = (ce + BM - 1) // BM
    tile0 = tl.sum(tl.where(before, gt, 0), 0)
    tl.store(gt_off + x, tile0)
    o0 = tl.sum(tl.where(before, ce, 0), 0)
    e0 = o0
    e1 = o0 + tl.sum(tl.where(es == x, ce, 0), 0)
    if LORA:
        s0 = tl.sum(tl.where(before, live, 0), 0)
        t0 = tl.sum(tl.where(before, tiles, 0), 0)
        q13 = tl.sum(tl.where(before, p13, 0), 0)
        q2 = tl.sum(tl.where(before, p2, 0), 0)
    if x == 0:
        tl.store(off + E * NA, tl.sum(ce, 0))
        tl.store(nums, tl.sum(gt, 0))
        if LORA:
            tl.store(nums + 1, tl.sum(tiles, 0))
    for a0 in range(0, NA, BA):
        a = a0 + aa
        m = a < NA
        tl.store(off + first + a, o0 + tl.cumsum(own, 0) - own, mask=m)
        o0 += tl.sum(own, 0)
        if LORA:
            on = (own > 0) & m & (a > 0)
            n13 = tl.where(on, n13, 0)
            n2 = tl.where(on, n2, 0)
            ol = on.to(tl.int32)
            ot = tl.where(on, (own + BS - 1) // BS, 0)
            sid = s0 + tl.cumsum(ol, 0) - ol
            f13 = q13 + tl.cumsum(n13, 0) - n13
            f2 = q2 + tl.cumsum(n2, 0) - n2
            tl.store(seg_id + first + a, sid, mask=m)
            tl.store(st_off + first + a, t0 + tl.cumsum(ot, 0) - ot, mask=m)
            tl.store(seg_pg13 + sid, f13, mask=on)
            tl.store(seg_pg2 + sid, f2, mask=on)
            s0 += tl.sum(ol, 0)
            t0 += tl.sum(ot, 0)
            q13 += tl.sum(n13, 0)
            q2 += tl.sum(n2, 0)
            for j in range(0, tl.max(tl.maximum(n13, n2), 0)):
                jj = tl.zeros((BA,), tl.int64) + j
                k = j < n13
                tl.store(pg13a + f13 + j, (b1 + j * PAGE) // 8, mask=k)
                tl.store(pg13b + f13 + j, (b2 + j * PAGE) // 8, mask=k)
                tl.store(pg13m + f13 + j, page_word(sid, jj, w1, w2, r1, r2, shared), mask=k)
                k = j < n2
                tl.store(pg2a + f2 + j, (b3 + j * PAGE) // 8, mask=k)
                tl.store(pg2m + f2 + j, page_word(sid, jj, w3, w3, r3, r3, shared), mask=k)
        own, n13, n2, shared, b1, b2, b3, w1, w2, w3, r1, r2, r3 = slot_rows(table, cnt, a + BA, a + BA < NA, x, first, LORA)
    if SCATTER:
        tl.debug_barrier()
        for i in range(0, P, BP):
            p = i + pp
            m = (key >= first) & (key < first + NA)
            scatter_pairs(p, m, key, rank, x, key - first, e0, e1, e0 + base, tile0, table, off, cnt, seg_id, st_off, seg_pg13, seg_pg2, pairs,
                          pos_of, gtile, stile, seg_of, BM, BS, LORA)
            if x == 0:
                tl.store(pos_of + p, tl.zeros((BP,), tl.int32) - 1, mask=(p < P) & (key < 0))
            key = tl.load(key_of + p + BP, mask=p + BP < P, other=-1)
            rank = tl.load(rank_of + p + BP, mask=p + BP < P, other=0)


@triton.jit
def scatter_kernel(table, cnt, key_of, rank_of, off, gt_off, seg_id, st_off, seg_pg13, seg_pg2, pairs, pos_of, gtile, stile, seg_of, P, NA, BM,
                   BS, LORA: tl.constexpr, BP: tl.constexpr, PDL: tl.constexpr):
    """What place_kernel does itself for few pairs, spread over the whole card."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    key = tl.load(key_of + p, mask=p < P, other=-1)
    rank = tl.load(rank_of + p, mask=p < P, other=0)
    m = key >= 0
    tl.store(pos_of + p, tl.zeros((BP,), tl.int32) - 1, mask=(p < P) & (m == 0))
    key = tl.maximum(key, 0)
    e = key // NA
    e0 = tl.load(off + e * NA, mask=m, other=0)
    e1 = tl.load(off + e * NA + NA, mask=m, other=0)
    l0 = tl.load(off + e * NA + 1, mask=m, other=0)
    tile0 = tl.load(gt_off + e, mask=m, other=0)
    scatter_pairs(p, m, key, rank, e, key % NA, e0, e1, l0, tile0, table, off, cnt, seg_id, st_off, seg_pg13, seg_pg2, pairs, pos_of, gtile,
                  stile, seg_of, BM, BS, LORA)


@triton.jit
def permute_kernel(x, pos_of, xs, H, TOPK, BH: tl.constexpr, PDL: tl.constexpr):
    """xs[row] = x[token(row)], rounded to xs's dtype: lets the first GEMM read its activations with the bulk copy engine."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    t = tl.program_id(0)
    c = tl.arange(0, BH)
    for h in range(0, H, BH):
        v = tl.load(x + t.to(tl.int64) * H + h + c, mask=h + c < H)
        for j in range(0, TOPK):
            r = tl.load(pos_of + t * TOPK + j)
            tl.store(xs + r.to(tl.int64) * H + h + c, v, mask=(h + c < H) & (r >= 0))


@triton.jit
def batched_ids_kernel(counts, mapping, ids, slots, has_slots, n, ROWS, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """The batched format as pairs: row r of expert e is pair e * ROWS + r of that expert, and does not exist past its count. Nobody has
    written the slots of such rows; has_slots: slots[row] = mapping[row] where there is one, else -1."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    e = i // ROWS
    used = i % ROWS < tl.load(counts + e, mask=i < n, other=0)
    tl.store(ids + i, tl.where(used, e, -1), mask=i < n)
    slot = tl.load(mapping + i, mask=used & (i < n) & (has_slots != 0), other=-1)
    tl.store(slots + i, slot, mask=(i < n) & (has_slots != 0))


@triton.jit
def pack_kernel(x, out, n, ROWS, COLUMNS, TO_ROWS, TO_COLUMNS, s0, s1, s2, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """out [experts, TO_ROWS, TO_COLUMNS] = x[e * s0 + row * s1 + column * s2] in out's dtype, zero past ROWS and COLUMNS: factors whose
    rank or layout the other kernels cannot read as they lie."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = i % TO_COLUMNS
    r = i // TO_COLUMNS % TO_ROWS
    e = i // TO_COLUMNS // TO_ROWS
    v = tl.load(x + e * s0 + r * s1 + c * s2, mask=(i < n) & (r < ROWS) & (c < COLUMNS), other=0.0)
    tl.store(out + i, v.to(out.dtype.element_ty), mask=i < n)
