"""One MoE layer through this module's products and backend-triton's sort, shrinks and combine, launched from Python: the shortest description of
a forward."""
import os
import sys

import torch

import gpu
from gpu import GEMM, PERMUTE, REPACK_CODES, REPACK_SCALES

ROOT = os.environ.get("MOE_ROOT", os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../.."))
KERNELS = os.path.join(ROOT, "{0}/src/main/resources/META-INF/moe4j/kernels/{1}")
TRITON = gpu.Library(KERNELS.format("backend-triton", "backend-triton"))
TRITON_CUDA = gpu.Library(KERNELS.format("backend-triton", "backend-triton-cuda"))
SHARED = gpu.Library(KERNELS.format("moe-cuda", "moe-cuda"))
OWN = gpu.Cubins(os.environ.get("CUBINS", "/tmp/cubins"))

W = 24
U4, U8, E4M3, E2M1 = range(4)
CODES = ["u4", "u8", "e4m3", "e2m1"]
BITS = [4, 8, 8, 4]
ELEMENT = {torch.bfloat16: "bf16", torch.float16: "f16"}


def cdiv(a, b):
    return -(-a // b)


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
                    if id(a) not in packed:
                        packed[id(a)] = torch.nn.functional.pad(a, (0, 0, 0, r8 - r)).contiguous()
                    a, b = packed[id(a)], torch.nn.functional.pad(b, (0, r8 - r)).contiguous()
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


class Packed:
    """Weights [E, M, N, K] as the products read them."""

    def __init__(self, q, E, M, N, K, SG, chunks_a_group, asym):
        self.q, self.E, self.M, self.N, self.K, self.SG, self.chunks_a_group, self.has_zero = q, E, M, N, K, SG, chunks_a_group, int(asym)
        self.group_shift = (chunks_a_group & -chunks_a_group).bit_length() - 1
        self.chunks_a_group = chunks_a_group = 1 << self.group_shift
        self.tiles, self.chunks = cdiv(N, 16), cdiv(K, 64)
        self.groups = cdiv(self.chunks, chunks_a_group) if SG == 1 else self.chunks
        i32 = lambda *z: torch.empty(z, dtype=torch.int32, device=gpu.DEV)
        self.codes = i32(E, M, self.tiles, self.chunks, 128 if BITS[q] == 4 else 256)
        self.ratio = i32(E, M, self.tiles, self.groups, 8, max(SG, 1)) if SG else i32(4)
        self.zero = torch.empty_like(self.ratio) if asym else i32(4)
        self.channel = torch.empty(E, M, self.tiles * 16, dtype=torch.float32, device=gpu.DEV)
        self.perm = None

    def bytes_an_expert(self):
        size = lambda t: t.numel() * t.element_size()
        return (size(self.codes) + (size(self.ratio) if self.SG else 0) + (size(self.zero) if self.has_zero else 0) + size(self.channel)) // self.E


def random_packed(q, E, M, N, K, SG, chunks_a_group, asym=False):
    """For timing: random codes."""
    p = Packed(q, E, M, N, K, SG, chunks_a_group, asym)
    p.codes.random_(-2 ** 31, 2 ** 31 - 1)
    if q == E4M3:
        p.codes &= 0x77777777
        p.codes |= 0x30303030
    if SG:
        r = torch.rand(p.ratio.numel() * 2, device=gpu.DEV) * 0.5 + 0.5
        p.ratio.copy_(r.half().view(torch.int32).view(p.ratio.shape))
    if asym:
        p.zero.fill_(0x00080008)
    p.channel.fill_(K ** -0.5 / {U4: 4, U8: 70, E4M3: 100, E2M1: 2}[q])
    return p


def shrink_choice(dtype, of, KD, BS, tiles, rank, gather, naive):
    """Constants of the shrink kernel and its splits, after backend-triton's rules."""
    two = of == "pair"
    total = rank * (2 if two else 1)
    even = KD % 64 == 0
    for step in (128, 64):
        if KD % step and step == 128:
            continue
        found = [k["constants"] for k in TRITON.kernels if k["name"] == "shrink" and k["arch"] == "sm_90a" and k["constants"]["type"] == dtype
                 and k["constants"]["of"] == of and k["constants"]["step"] == str(step) and k["constants"]["any"] == str(int(not even))
                 and k["constants"]["rows"] == str(BS) and k["constants"]["gather"] == str(int(gather)) and k["constants"]["naive"] == str(int(naive))]
        if found:
            break
    widths = sorted(int(c["ranks"]) for c in found)
    fits = [b for b in widths if b >= total] or [widths[-1]]
    i = widths.index(fits[0])
    while i > 0 and tiles * cdiv(total, widths[i]) < 132:
        i -= 1
    BR, split = widths[i], 1
    chunks = cdiv(total, BR)
    while tiles * chunks * split < 264 and KD // (split * 2) >= 2 * step and split < (16 if naive or BS == 16 else 8):
        split *= 2
    return dict(next(c for c in found if c["ranks"] == str(BR))), BR, split


class Layer:
    """plan: dict(kind=("narrow"|"wide", same of w2), NT, wk=(w13, w2), GM)."""

    def __init__(self, p13, p2, T, topk, H, I, plan, dtype=torch.bfloat16, slots=None, gated=True, act=0, params=(1.0, 0.0, float("inf")), b13=None,
                 b2=None, expert_map=None, on_input=False, naive=None):
        dev = gpu.DEV
        self.p13, self.p2, self.T, self.K, self.H, self.I, self.plan, self.slots, self.dt = p13, p2, T, topk, H, I, plan, slots, dtype
        self.gated, self.act, self.params, self.b13, self.b2, self.map, self.on_input = gated, act, params, b13, b2, expert_map, int(on_input)
        E = self.E = p13.E
        self.EG = expert_map.numel() if expert_map is not None else E
        P = self.P = T * topk
        self.naive = (T == 1 or P * 4 <= E) if naive is None else naive
        n = self.n = slots.n if slots else 0
        self.R = cdiv(slots.max_rank, 16) * 16 if slots else 0
        self.RS = 2 * self.R if gated else self.R
        i32 = lambda *z: torch.empty(z, dtype=torch.int32, device=dev)
        i64 = lambda *z: torch.empty(z, dtype=torch.int64, device=dev)
        el = lambda *z: torch.empty(z, dtype=dtype, device=dev)
        NA = self.NA = n + 1
        NK = E * NA
        self.key_of, self.rank_of, self.pairs, self.pos_of, self.seg_of = i32(P), i32(P), i32(P), i32(P), i32(P)
        self.off, self.gt_off, self.seg_id, self.st_off, self.nums = i32(NK + 1), i32(E), i32(NK), i32(NK), i32(4)
        nseg = self.nseg = min(P, E * n)
        self.seg_pg13, self.seg_pg2 = i32(max(nseg, 1)), i32(max(nseg, 1))
        pages = max(nseg * (self.R // 16), 1)
        self.pg13a, self.pg13b, self.pg13m, self.pg2a, self.pg2m = (i64(pages) for _ in range(5))
        NT = plan["NT"]
        self.max_gt = P if self.naive else min(P, P // NT + min(E, P))
        rows = P / max(nseg, 1)
        self.BS = 16 if self.naive or rows <= 24 else 64
        self.max_st = (P if self.naive else min(P, P // self.BS + nseg)) if slots else 0
        self.gtile, self.stile = i32(self.max_gt, 8), i32(max(self.max_st, 1), 4)
        self.mid, self.y, self.out = el(P, I), el(P, H), el(T, H)
        self.xs = el(P, H) if p13.perm is not None else None
        self.ms = el(P, I) if p2.perm is not None else None
        parts = nc = 0
        if slots:
            self.s1, self.s2 = el(P, self.RS), el(P, self.R)
            tiles = P if self.naive else nseg * max(1, round(rows / self.BS))
            self.sh = [shrink_choice(ELEMENT[dtype], ("pair" if gated else "single") if f else "down", H if f else I, self.BS, tiles, slots.max_rank,
                                     f, self.naive) for f in (True, False)]
            for i, (c, BR, split) in enumerate(self.sh):
                ch = cdiv(self.R, BR // 2 if i == 0 and gated else BR)
                nc = max(nc, ch)
                parts = max(parts, P * split * self.RS if self.naive else self.max_st * ch * split * self.BS * BR if split > 1 else 0)
        self.part = torch.empty(max(parts, 1), dtype=torch.float32, device=dev)
        NS = 4 * E if slots else 0
        self.zero = i32(NK + NS + self.max_st * max(nc, 1))
        self.cnt, self.stats, self.arrived = self.zero[:NK], self.zero[NK:], self.zero[NK + NS:]

    def buffers(self):
        own = [self.map, self.b13, self.b2]
        return [b for b in vars(self).values() if isinstance(b, torch.Tensor) and all(b is not o for o in own)]

    def common(self, ids, mapping, tw):
        lora = self.slots is not None
        return dict(ids=ids, expert_map=self.map, map=self.map, mapping=mapping, table=self.slots.table if lora else None, tw=tw, pairs=self.pairs,
                    pos_of=self.pos_of, seg_of=self.seg_of, gtile=self.gtile, stile=self.stile, nums=self.nums, has_map=int(self.map is not None),
                    on_input=self.on_input, P=self.P, TOPK=self.K, EG=self.EG, E=self.E, NA=self.NA, NS=self.n, BM=self.plan["NT"], BS=self.BS,
                    cnt=self.cnt, stats=self.stats, key_of=self.key_of, rank_of=self.rank_of, off=self.off, gt_off=self.gt_off, seg_id=self.seg_id,
                    st_off=self.st_off, seg_pg13=self.seg_pg13, seg_pg2=self.seg_pg2, pg13a=self.pg13a, pg13b=self.pg13b, pg13m=self.pg13m,
                    pg2a=self.pg2a, pg2m=self.pg2m, origin=None, part=self.part, arrived=self.arrived, early=0)

    def route(self, a):
        if self.naive:
            return
        lora, P, NA = int(self.slots is not None), self.P, self.NA
        blocks = 1
        while blocks < 8 and P > blocks * 8192:
            blocks *= 2
        each = cdiv(P, blocks)
        shared = 8 * self.n * W + 4 * ((6 if lora else 3) * self.E * NA + 1 + self.E + each)
        if P <= blocks * 8192 and shared <= 200 * 1024:
            counters = self.arrived.numel() if lora else 0
            TRITON_CUDA.get("sort", lora=lora)(blocks, dict(
                a, tiles=self.gtile, shrink=self.stile, total=self.off[-1:], pairs_count=P, topk=self.K, num_global=self.EG, num_local=self.E, keys=NA,
                tile_rows=self.plan["NT"], shrink_rows=self.BS, counters=counters), shared=shared, cluster=blocks)
            return
        n = self.zero.numel() if lora else self.cnt.numel()
        TRITON.get("clear")(cdiv(n, 1024), dict(zero=self.zero, n=n))
        TRITON.get("count", lora=lora)(cdiv(P, 256), a)
        TRITON.get("place", lora=lora, experts=128 if self.E <= 128 else 512, pairs=0,
                   slots=(4 if NA <= 4 else 16 if NA <= 16 or self.E > 128 else 64) if lora else 1)(self.E, a)
        TRITON.get("scatter", lora=lora)(cdiv(P, 256), a)

    def shrink(self, first, x, a):
        c, BR, split = self.sh[0 if first else 1]
        nc = cdiv(self.R, BR // 2 if first and self.gated else BR)
        TRITON.get("shrink", **c)(self.max_st * nc * split, dict(
            a, x=x, s=self.s1 if first else self.s2, KD=self.H if first else self.I, RS=self.RS if first else self.R, SU=self.R, NC=nc, SPLIT=split))

    def gemm(self, first, x, a):
        i = 0 if first else 1
        p, kind, wk, NT = (self.p13, self.p2)[i], self.plan["kind"][i], self.plan["wk"][i], self.plan["NT"]
        N, K = (self.I, self.H) if first else (self.H, self.I)
        lora, gated = self.slots is not None, first and self.gated
        gather = first and p.perm is None
        extra = p.SG * 128 * (1 + p.has_zero)
        slot = 2 * (BITS[p.q] * 128 + extra)
        phase = 0
        if kind == "wide":
            rows = 128 if gated else 256
            stages = (6 if BITS[p.q] == 4 else 5) if NT >= 128 else 5 if BITS[p.q] == 4 else 4
            shared = max(stages * cdiv(NT * 128 + 8 * slot, 1024) * 1024, NT * (rows + 8) * 2,
                         3 * (4 if NT >= 128 else 2) * (8192 + NT * 32 * (1 + gated)) if lora else 0)
        else:
            rows = 8 // wk * (16 if gated else 32)
            height = 1 if self.naive else NT
            phase = min(p.chunks, max(wk, self.plan.get("x_bytes", 33000) // (height * 128) // wk * wk))
            shared = max(cdiv(height * (phase * 64 + 8) * 2, 128) * 128 + 8 * (4 if BITS[p.q] == 4 else 3) * slot, NT * 1024, 8 * self.R)
        name = f"moe_{kind}_{CODES[p.q]}_{ELEMENT[self.dt]}_{NT}_{p.SG}{'z' * p.has_zero}_{int(gated)}"
        pg = (self.pg13a, self.pg13b, self.pg13m) if first else (self.pg2a, self.pg2a, self.pg2m)
        alpha, beta, limit = self.params
        OWN.get(name, GEMM)(self.max_gt * cdiv(N, rows), dict(
            a, x=x, w=p.codes, ratio=p.ratio, zero=p.zero, channel=p.channel, bias=self.b13 if first else self.b2, y=self.mid if first else self.y,
            pga=pg[0], pgb=pg[1], pgm=pg[2], s=(self.s1 if first else self.s2) if lora else None, has_bias=int((self.b13 if first else self.b2) is not None),
            on_input=self.on_input if first else 0, first=int(first), gather=int(gather), lora=int(lora), naive=int(self.naive),
            act=self.act if first else -1, alpha=alpha, beta=beta, limit=limit, N=N, KD=K, RS=self.RS if first else self.R, SU=self.R,
            SPLIT=self.sh[i][2] if lora else 1, GM=self.plan.get("GM", 8), wait=2 if lora else 0 if first or p.perm is not None else 1,
            group_shift=p.group_shift, warps_k=wk, phase=phase), shared=shared)

    def permute(self, first, x, a):
        p, out = (self.p13, self.xs) if first else (self.p2, self.ms)
        if p.perm is None:
            return x
        OWN.get("moe_permute_inputs", PERMUTE)(self.max_gt, dict(a, x=x, out=out, perm=p.perm, gather=int(first), naive=int(self.naive), KD=x.shape[1]))
        return out

    def combine(self, a):
        width = 1024 if self.T >= 64 else 256
        el = ELEMENT[self.dt]
        TRITON.get("combine", type=el, out=el, k=self.K if self.K in (1, 2, 4, 6, 8) else 0, naive=int(self.naive), width=width)(
            (self.T, cdiv(self.H, width)), dict(a, y=self.y, out=self.out, N=self.H, keep=0))

    def forward(self, x, ids, tw, mapping=None):
        a = self.common(ids, ids if mapping is None else mapping, tw)
        self.route(a)
        x13 = self.permute(True, x, a)
        if self.slots:
            self.shrink(True, x, a)
        self.gemm(True, x13, a)
        mid = self.permute(False, self.mid, a)
        if self.slots:
            self.shrink(False, self.mid, a)
        self.gemm(False, mid, a)
        self.combine(a)
        return self.out


def pack(fmt, E, M, N, K, g):
    """fmt: dict(q, group (0 a row, -1 blocks), scale, asym, layout). Random weights: what they stand for [E, M, N, K] f64, and Packed."""
    dev, q, layout, asym = gpu.DEV, fmt["q"], fmt["layout"], fmt.get("asym", False)
    bits = BITS[q]
    per = 32 // bits
    group = K if fmt["group"] == 0 else 128 if fmt["group"] < 0 else fmt["group"]
    SG = 0 if fmt["group"] == 0 else 1 if group % 64 == 0 else 2 if group % 32 == 0 else 4
    p = Packed(q, E, M, N, K, SG, group // 64 if SG == 1 else 1, asym)
    G, bn = cdiv(K, group), 128 if fmt["group"] < 0 else 1
    SN = cdiv(N, bn)
    for t in (p.codes, p.ratio, p.zero):
        t.fill_(-559038737)
    dq = torch.empty(E, M, N, K, dtype=torch.float64, device=dev)
    e4 = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).double().to(dev)
    e2 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64, device=dev)
    codes = torch.randint(0, 1 << bits, (E, M, N, K), generator=g).to(dev)
    if q == E4M3:
        codes = torch.where((codes & 127) == 127, codes - 1, codes)
    lo = int(layout == "gptq")
    z = (torch.randint(0, 1 << bits, (E, M, N, G), generator=g) + lo).to(dev) if asym else torch.full((E, M, N, G), 128 if q == U8 else 8, device=dev)
    spread = (2.0 ** -torch.randint(0, 4, (E, M, SN, G), generator=g).double()) * (1 + torch.rand(E, M, SN, G, generator=g).double()) / K ** 0.5
    spread = (spread / {U4: 4, U8: 100, E4M3: 100, E2M1: 3}[q]).to(dev)
    kind = fmt["scale"]
    if kind == "e8m0":
        raw = torch.randint(118, 124, (E, M, SN, G), generator=g).to(torch.uint8).to(dev)
        s = 2.0 ** (raw.double() - 127)
    elif kind == "e4m3":
        raw = torch.randint(1, 100, (E, M, SN, G), generator=g).to(torch.uint8).to(dev)
        s = e4[raw.long()]
    else:
        raw = spread.to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind])
        s = raw.double()
    unit = torch.rand(E, M, 1, 1, generator=g).double().to(dev) * 0.01 + 0.002 if fmt.get("global") else None
    unit = unit.float() if unit is not None else None
    if unit is not None:
        s = s * unit.double()
    perm = None
    if fmt.get("order"):
        perm = torch.stack([torch.randperm(K, generator=g) for _ in range(E)]).to(torch.int32).to(dev)
        p.perm = perm
    kg = (torch.arange(K, device=dev) if perm is None else perm.long().argsort(1)) // group
    sn = torch.arange(N, device=dev) // bn
    v = (codes - (z[..., kg] if perm is None else torch.gather(z, 3, kg[:, None, None, :].expand(E, M, N, K)))).double() if q in (U4, U8) else e4[codes] if q == E4M3 else e2[codes]
    pick = lambda t: t[..., kg] if perm is None else torch.gather(t, 3, kg[:, None, None, :].expand(E, M, N, K))
    dq.copy_(v * pick(s[:, :, sn]))
    order = [0, 4, 1, 5, 2, 6, 3, 7]

    def words(c, axis, awq=False):
        c = torch.nn.functional.pad(c.movedim(axis, -1), (0, -c.shape[axis] % per))
        c = c.reshape(*c.shape[:-1], -1, per)
        shift = torch.tensor([bits * (order[i] if awq else i) for i in range(per)], device=dev)
        w = (c.long() << shift).sum(-1)
        return torch.where(w >= 2 ** 31, w - 2 ** 32, w).to(torch.int32).movedim(-1, axis)

    flip = 0
    if layout == "bytes":
        flip = 0x80 if q == U8 else 0
        data, ks, ns, wb, along = (codes ^ flip).to(torch.uint8).contiguous(), 1, K, 1, 1
    elif layout == "gptq":
        data, ks, ns, wb, along = words(codes.movedim(-1, -2), 2).contiguous(), N, 1, 4, 1
    elif layout == "awq":
        data, ks, ns, wb, along = words(codes.movedim(-1, -2), 3, True).contiguous(), cdiv(N, per), 1, 4, 0
    else:
        data, ks, ns, wb, along = words(codes, 3).contiguous(), 1, cdiv(K, per), 4, 1
    turned = layout in ("gptq", "awq")
    scales = (raw.movedim(-1, -2) if turned else raw).contiguous()
    zw, zn, zg = None, 1, 1
    if asym:
        c = z - lo
        if layout == "ct":
            zw = words(c, 2).contiguous()
            zn, zg = G, 1
        else:
            zw = words(c.movedim(-1, -2), 3, layout == "awq").contiguous()
            zn, zg = 1, cdiv(N, per)
    types = ["f32", "f16", "bf16", "e4m3", "e8m0"]
    rc, rs = OWN.get("moe_repack_codes", REPACK_CODES, 256, False), OWN.get("moe_repack_scales", REPACK_SCALES, 128, False)
    for e in range(E):
        for m in range(M):
            rc(cdiv(p.codes[e, m].numel(), 256), dict(data=data[e, m], perm=perm[e] if perm is not None else None, out=p.codes[e, m], k_stride=ks, n_stride=ns, word_bytes=wb, bits=bits,
                                                      along_k=along, awq=int(layout == "awq"), flip=flip, N=N, KD=K))
            args = dict(scales=scales[e, m], zeros=zw[e, m] if asym else None, ratio=p.ratio[e, m] if SG else None, zero=p.zero[e, m] if asym else None,
                        channel=p.channel[e, m], n_stride=1 if turned else G, g_stride=SN if turned else 1, zero_n_stride=zn, zero_g_stride=zg,
                        type=types.index(kind), divide=0, n_block=bn, group=group, zero_bits=bits, zero_along_k=0,
                        zero_awq=int(layout == "awq"), zero_flip=0, zero_add=lo if asym else 0,
                        zero_word_bytes=4, SG=SG, group_shift=p.group_shift, N=N, KD=K)
            args["global"] = unit[e, m] if unit is not None else None
            rs(cdiv(p.tiles * 16, 128), args)
    if not gpu.DRY:
        torch.cuda.synchronize()
    return dq, p
