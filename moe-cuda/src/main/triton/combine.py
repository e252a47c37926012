"""The weighted sum over the experts of a token, of rows in the order of sort.py or of the pairs themselves."""
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from table import local_expert


@triton.jit
def combine_kernel(y, pos_of, ids, expert_map, tw, out, has_map, on_input, keep, N, TOPK, EG, E, K: tl.constexpr, NAIVE: tl.constexpr,
                   BN: tl.constexpr, PDL: tl.constexpr):
    """out[t] = sum over j of tw[t, j] * y[row of pair (t, j)] in f32, in the order of j, one rounding; pairs without a row add nothing.
    on_input: the weights were applied already. keep: rows of out without any pair are left alone instead of zeroed (TOPK = 1).
    K: TOPK if it is known at compile time, else 0."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    t = tl.program_id(0)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros((BN,), tl.float32)
    if K > 0:
        for j in tl.static_range(K):
            acc = combine_one(acc, y, pos_of, ids, expert_map, tw, has_map, on_input, t * K + j, c, N, EG, E, NAIVE)
    else:
        for j in range(0, TOPK):
            acc = combine_one(acc, y, pos_of, ids, expert_map, tw, has_map, on_input, t * TOPK + j, c, N, EG, E, NAIVE)
    m = c < N
    if keep != 0:
        m = m & (tl.load(pos_of + t) >= 0)
    tl.store(out + t.to(tl.int64) * N + c, acc.to(out.dtype.element_ty), mask=m)


@triton.jit
def combine_one(acc, y, pos_of, ids, expert_map, tw, has_map, on_input, p, c, N, EG, E, NAIVE: tl.constexpr):
    if NAIVE:
        e, ok = local_expert(ids, expert_map, has_map, p, True, EG, E)
        r = p
    else:
        r = tl.load(pos_of + p)
        ok = r >= 0
    f = tl.load(tw + p, mask=on_input == 0, other=1.0)
    v = tl.load(y + r.to(tl.int64) * N + c, mask=(c < N) & ok, other=0.0)
    return acc + tl.where(ok, f, 0.0) * v.to(tl.float32)
