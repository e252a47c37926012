"""One MoE layer on a GPU through the product's Triton kernels, launched from Python: what the kernel tests and the bench run on.

The Java side (GroupedExperts, GemmLaunches) makes the same launches from compiled PTX; this file is the shortest description of them.
"""
import os
import sys

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "../../main/triton"), os.path.join(HERE, "../../../../moe-cuda/src/main/triton")]
import combine  # noqa: E402
import gemm  # noqa: E402
import shrink as shrinks  # noqa: E402
import sort  # noqa: E402
from variants import t as tile  # noqa: E402

W = 24


def np2(n):
    return 1 << (max(n, 1) - 1).bit_length()


def cdiv(a, b):
    return -(-a // b)


class Origin:
    """A null pointer of some dtype."""

    def __init__(self, dtype):
        self.dtype = dtype

    def data_ptr(self):
        return 0


class Slots:
    """Factors of the slots: each a dict target -> (A [E or 1, r, in], B [E or 1, out, r]); targets "first", "second", "down"."""

    def __init__(self, slots, dev):
        self.slots, self.keep = slots, []
        rows = []
        self.max_rank = 0
        for f in slots:
            row = [0] * W
            shared = bool(f) and "first" in f and "second" in f and f["first"][0] is f["second"][0]
            packed = {}
            for i, name in enumerate(("first", "second", "down")):
                if not f or name not in f:
                    continue
                a, b = f[name]
                r = a.shape[1]
                r8 = cdiv(r, 8) * 8
                if r8 != r:
                    key = id(a)
                    if key not in packed:
                        packed[key] = torch.nn.functional.pad(a, (0, 0, 0, r8 - r)).contiguous()
                    a, b = packed[key], torch.nn.functional.pad(b, (0, r8 - r)).contiguous()
                self.keep += [a, b]
                row[4 + i], row[7 + i] = a.data_ptr() // 2, b.data_ptr() // 2
                row[10 + i] = a.stride(0) if a.shape[0] > 1 else 0
                row[13 + i] = b.stride(0) if b.shape[0] > 1 else 0
                row[16 + i], row[19 + i] = b.stride(1), r8
                self.max_rank = max(self.max_rank, r8)
            row[0] = int(any(row[19:22]))
            row[1], row[2], row[3] = cdiv(max(row[19], row[20]), 16), cdiv(row[21], 16), int(shared)
            rows.append(row)
        self.n = len(slots)
        self.table = torch.tensor(rows, dtype=torch.int64).to(dev)


class Layer:
    launch = staticmethod(lambda kernel, grid, *args, **meta: kernel[grid](*args, **meta))

    def __init__(self, w13, w2, T, topk, cfg, slots=None, gated=True, act=0, params=(1.0, 0.0, float("inf")), b13=None, b2=None,
                 expert_map=None, on_input=False, out_dtype=None, naive=None, mx=None):
        """mx: (bytes, exponents) of w13 and of w2 in MXFP4; w13 and w2 then only say the shapes and what they stand for."""
        self.mx = mx
        self.w13, self.w2, self.T, self.K, self.c, self.slots = w13, w2, T, topk, cfg, slots
        self.E, self.H, self.I = w2.shape
        self.dt, dev = w2.dtype, w2.device
        self.origin = Origin(self.dt)
        self.gated, self.act, self.params, self.b13, self.b2, self.map, self.on_input = gated, act, params, b13, b2, expert_map, int(on_input)
        self.EG = expert_map.numel() if expert_map is not None else self.E
        self.P = P = T * topk
        self.naive = (T == 1 or P * 4 <= self.E) if naive is None else naive
        self.n = slots.n if slots else 0
        self.R = cdiv(slots.max_rank, 16) * 16 if slots else 0
        self.RS = 2 * self.R if gated else self.R
        i32 = lambda *z: torch.empty(z, dtype=torch.int32, device=dev)
        i64 = lambda *z: torch.empty(z, dtype=torch.int64, device=dev)
        NA = self.NA = self.n + 1
        NK = self.E * NA
        self.key_of, self.rank_of, self.pairs, self.pos_of, self.seg_of = i32(P), i32(P), i32(P), i32(P), i32(P)
        self.off, self.gt_off, self.seg_id, self.st_off, self.nums = i32(NK + 1), i32(self.E), i32(NK), i32(NK), i32(4)
        self.nseg = nseg = min(P, self.E * self.n)
        self.seg_pg13, self.seg_pg2 = i32(max(nseg, 1)), i32(max(nseg, 1))
        pages = nseg * (self.R // 16)
        self.pg13a, self.pg13b, self.pg13m, self.pg2a, self.pg2m = (i64(max(pages, 1)) for _ in range(5))
        BM = cfg["w13"].BM
        self.max_gt = P if self.naive else min(P, P // BM + min(self.E, P))
        self.max_st = P if self.naive else min(P, P // cfg["BS"] + nseg) if slots else 0
        self.gtile, self.stile = i32(self.max_gt, 8), i32(max(self.max_st, 1), 4)
        self.perm = bool(cfg.get("PERM")) and not self.naive
        self.xs = torch.empty(P, self.H, dtype=self.dt, device=dev) if self.perm else None
        self.mid = torch.empty(P, self.I, dtype=self.dt, device=dev)
        self.y = torch.empty(P, self.H, dtype=self.dt, device=dev)
        self.out = torch.empty(T, self.H, dtype=out_dtype or self.dt, device=dev)
        nc = parts = 0
        if slots:
            self.s1 = torch.empty(P, max(self.RS, 1), dtype=self.dt, device=dev)
            self.s2 = torch.empty(P, max(self.R, 1), dtype=self.dt, device=dev)
            for first in (True, False):
                c = cfg["sh13" if first else "sh2"]
                ch = self.chunks(first)
                nc = max(nc, ch)
                parts = max(parts, P * c["SPLIT"] * self.RS if self.naive else
                            self.max_st * ch * c["SPLIT"] * cfg["BS"] * c["BR"] if c["SPLIT"] > 1 else 0)
        self.part = torch.empty(max(parts, 1), dtype=torch.float32, device=dev)
        NS = 4 * self.E if slots else 0
        self.zero = i32(NK + NS + self.max_st * max(nc, 1))
        self.cnt, self.stats, self.arrived = self.zero[:NK], self.zero[NK:], self.zero[NK + NS:]
        self.desc = {}

    def chunks(self, first):
        c = self.c["sh13" if first else "sh2"]
        return cdiv(self.R, c["BR"] // 2 if first and self.gated else c["BR"])

    def buffers(self):
        return [b for b in vars(self).values() if isinstance(b, torch.Tensor)]

    def _desc(self, t, rows, cols, box):
        k = (t.data_ptr(), tuple(box))
        if k not in self.desc:
            self.desc[k] = TensorDescriptor(t, [rows, cols], [cols, 1], list(box))
        return self.desc[k]

    def meta(self, warps, stages=None):
        m = dict(PDL=self.c["PDL"], launch_pdl=self.c["PDL"], num_warps=warps)
        return m if stages is None else dict(m, num_stages=stages)

    def has_map(self):
        return int(self.map is not None)

    def route(self, ids, mapping):
        if self.naive:
            return
        c, P, NA = self.c, self.P, self.NA
        mp = ids if self.map is None else self.map
        table = self.slots.table if self.slots else self.off
        lora = self.n > 0
        BM, BS = c["w13"].BM, c["BS"]
        n = self.zero.numel() if lora else self.cnt.numel()
        self.launch(sort.clear_kernel, (cdiv(n, 1024),), self.zero, n, BLOCK=1024, **self.meta(4))
        self.launch(sort.count_kernel, (cdiv(P, 256),), ids, mp, mapping, table, self.cnt, self.stats, self.key_of, self.rank_of,
                    self.has_map(), P, self.K, self.EG, self.E, NA, BS, LORA=lora, BP=256, **self.meta(4))
        one = P <= 4096
        E2 = 128 if self.E <= 128 else 512
        BA = (4 if NA <= 4 else 16 if NA <= 16 or E2 > 128 else 64) if lora else 1
        self.launch(sort.place_kernel, (self.E,), table, self.cnt, self.stats, self.key_of, self.rank_of, self.off, self.gt_off, self.seg_id, self.st_off,
                    self.seg_pg13, self.seg_pg2, self.pg13a, self.pg13b, self.pg13m, self.pg2a, self.pg2m, self.nums, self.pairs,
                    self.pos_of, self.gtile, self.stile, self.seg_of, P, self.E, NA, BM, BS, LORA=lora, SCATTER=one, E2=E2, BA=BA,
                    BP=256 if P <= 256 or not one else 1024, **self.meta(8))
        if not one:
            self.launch(sort.scatter_kernel, (cdiv(P, 256),), table, self.cnt, self.key_of, self.rank_of, self.off, self.gt_off, self.seg_id,
                        self.st_off, self.seg_pg13, self.seg_pg2, self.pairs, self.pos_of, self.gtile, self.stile, self.seg_of, P, NA, BM, BS, LORA=lora, BP=256,
                        **self.meta(4))

    def permute(self, x):
        self.launch(sort.permute_kernel, (self.T,), x, self.pos_of, self.xs, self.H, self.K, BH=1024 if self.H <= 1024 else 4096, **self.meta(4))

    def shrink(self, first, x, ids, mapping):
        c = self.c["sh13" if first else "sh2"]
        s = self.s1 if first else self.s2
        KD = x.shape[1]
        nc = self.chunks(first)
        mp = ids if self.map is None else self.map
        self.launch(shrinks.shrink_kernel, (self.max_st * nc * c["SPLIT"],), self.origin, x, s, self.part, self.arrived, self.slots.table, ids, mp,
                    mapping, self.pairs, self.stile, self.nums, self.has_map(), self.K, KD, self.EG, self.E, self.n, self.RS if first else self.R,
                    self.R, nc, c["SPLIT"], 0, FIRST=first and self.gated, GATHER=first and not self.perm, NAIVE=self.naive,
                    BS=self.c["BS"], BR=c["BR"], BK=c["BK"], EVEN_K=KD % c["BK"] == 0, OF=0 if first else 2,
                    **self.meta(c["warps"], c["stages"]))

    def gemm(self, first, x, ids, mapping, tw):
        c = self.c["w13" if first else "w2"]
        w, y = (self.w13, self.mid) if first else (self.w2, self.y)
        ws = None
        if self.mx:
            w, ws = self.mx[0 if first else 1]
        b = self.b13 if first else self.b2
        N, KD = (self.I, self.H) if first else (self.H, self.I)
        gather = first and not self.perm
        tail = c.tail and not self.naive
        tma = c.tma
        wd = self._desc(w, w.shape[0] * w.shape[1], KD, (c.BN, c.BK)) if tma else None
        xd = self._desc(x, self.P, KD, (c.BM, c.BK)) if tma and not gather else None
        xh = self._desc(x, self.P, KD, (c.BM // 2, c.BK)) if tma and not gather and tail else None
        lora = self.slots is not None
        dummy = self.off
        s, pg = (x, (dummy,) * 3) if not lora else (self.s1, (self.pg13a, self.pg13b, self.pg13m)) if first else (self.s2, (self.pg2a, self.pg2a, self.pg2m))
        mp = ids if self.map is None else self.map
        alpha, beta, limit = self.params
        act = -1 if self.act != 0 or limit != float("inf") else 0
        self.launch(gemm.gemm_kernel, (self.max_gt * cdiv(N, c.BN),), self.origin, x, xd, xh, w, ws, wd, b if b is not None else tw, tw, y,
                    self.slots.table if lora else dummy, ids, mp, mapping, self.pairs, self.gtile, self.nums, self.seg_of,
                    *pg, s, self.part, self.has_map(), int(b is not None), self.on_input,
                    self.act, float(alpha), float(beta), float(limit), self.P, self.K, N, KD, self.EG, self.E, self.n,
                    self.RS if first else self.R, self.R, self.c["sh13" if first else "sh2"]["SPLIT"] if lora else 1, self.c.get("GM", 8), 0,
                    FIRST=first, GATED=self.gated and first, ACT=act if first else 0, GATHER=gather, LORA=lora, NAIVE=self.naive, G=c.G, BM=c.BM,
                    BN=c.BN, BK=c.BK, EVEN_K=KD % c.BK == 0, TMA=tma, TAIL=tail, MX=ws is not None, XS=c.stages if ws is not None and self.naive else c.XS, **self.meta(c.warps, c.stages))

    def combine(self, tw, ids):
        BN = 1024 if self.T >= 64 else 256
        mp = ids if self.map is None else self.map
        self.launch(combine.combine_kernel, (self.T, cdiv(self.H, BN)), self.y, self.pos_of, ids, mp, tw, self.out, self.has_map(), self.on_input, 0,
                    self.H, self.K, self.EG, self.E, K=self.K if self.K in (1, 2, 4, 6, 8) else 0, NAIVE=self.naive, BN=BN, **self.meta(4))

    def forward(self, x, ids, tw, mapping=None):
        mapping = ids if mapping is None else mapping
        self.route(ids, mapping)
        if self.perm:
            self.permute(x)
            x = self.xs
        if self.slots:
            self.shrink(True, x, ids, mapping)
        self.gemm(True, x, ids, mapping, tw)
        if self.slots:
            self.shrink(False, self.mid, ids, mapping)
        self.gemm(False, self.mid, ids, mapping, tw)
        self.combine(tw, ids)
        return self.out
