"""The device-side slot table and what every kernel needs to know about a pair, as Triton helpers.

One row of SLOT_WIDTH int64 a LoRA slot; io.moe4j.cuda.ops.SlotTable writes it. "First" is the gate projection, or the only
one of an activation without gate; "second" is up; "down" is down. Addresses and strides count elements of two bytes from address 0
(kernels get a null pointer "origin" to add them to: a pointer made from an integer has no known alignment, and unaligned loads are not
pipelined). Ranks are padded to multiples of 8 (padding factors are zero), a missing projection has rank 0.
"""
import triton
import triton.language as tl

SLOT_WIDTH = tl.constexpr(24)
LIVE = tl.constexpr(0)  # 1: the slot has at least one factor for this layer
PAGES13 = tl.constexpr(1)  # pages of 16 ranks: the larger of first and second
PAGES2 = tl.constexpr(2)  # pages of 16 ranks of down
SHARED_A = tl.constexpr(3)  # 1: first and second have one A; it is shrunk once
A_ADDR = tl.constexpr(4)  # +0 first, +1 second, +2 down: A[0], rows of K elements
B_ADDR = tl.constexpr(7)  # +0..2: B[0]
A_EXPERT = tl.constexpr(10)  # +0..2: from one expert's A to the next, 0 where one serves all
B_EXPERT = tl.constexpr(13)  # +0..2: the same for B
B_ROW = tl.constexpr(16)  # +0..2: from one row of B to the next, a multiple of 8, below 2048
RANK = tl.constexpr(19)  # +0..2: rank, padded to a multiple of 8
PAGE = tl.constexpr(16)  # ranks a page
TILE_WORDS = tl.constexpr(8)  # int32 words of gtile, see sort.py


@triton.jit
def local_of(e, mask, expert_map, has_map, num_global, num_local):
    """The local expert of id e and whether it has one: -1, unknown ids and other ranks' experts have none."""
    ok = mask & (e >= 0) & (e < num_global)
    local = tl.load(expert_map + e, mask=ok & (has_map != 0), other=-1)
    e = tl.where(has_map != 0, local, e)
    ok = ok & (e >= 0) & (e < num_local)
    return tl.where(ok, e, 0), ok


@triton.jit
def local_expert(ids, expert_map, has_map, p, mask, num_global, num_local):
    """The same of pair p."""
    return local_of(tl.load(ids + p, mask=mask, other=-1), mask, expert_map, has_map, num_global, num_local)


@triton.jit
def known_slot(slot, num_slots):
    return tl.where((slot >= 0) & (slot < num_slots), slot, -1)


@triton.jit
def slot_of(mapping, t, mask, num_slots):
    """The slot of token t, or -1: no slot, or an unknown one."""
    return known_slot(tl.load(mapping + t, mask=mask, other=-1), num_slots)


@triton.jit
def together(a, b):
    """Two tensors of 32-bit words, neither before both are there: keeps the compiler from waiting for one load before it issues the
    other."""
    return tl.inline_asm_elementwise("mov.b32 $0, $2; mov.b32 $1, $3;", "=r,=r,r,r", [a, b], dtype=(tl.int32, tl.int32), is_pure=False,
                                     pack=1)


@triton.jit
def pair_of(ids, mapping, expert_map, has_map, p, TOPK, num_global, num_local, num_slots):
    """Expert of pair p, whether it has one, and the slot of its token."""
    slot = tl.load(mapping + p // TOPK)
    # Changes no expert, but depends on both loads: none of them is waited for before the other is on its way.
    e = tl.maximum(tl.load(ids + p), tl.minimum(slot, -1))
    e, ok = local_of(e, True, expert_map, has_map, num_global, num_local)
    return e, ok, known_slot(slot, num_slots)
