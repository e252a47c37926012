"""The product's kernels against float32, over every feature, each case twice (bit-identical) on poisoned buffers.

usage: test_kernels.py [--warm WORKERS] [--only TEXT,TEXT]
"""
import os
import sys
import zlib

import torch

import layer as L
from config import config, tile
from warm import warm

PORT16, PORT64 = tile("16x32x64-ptr-w4-s4-any"), tile("64x64x64-ptr-w4-s3-any")
PORT16B = tile("16x64x64-ptr-w4-s4-any")
BIG = (tile("128x128x64-tma-w8-s4-tail"), tile("128x256x64-tma-w8-s4-tail"))
MID = (tile("64x64x64-tma-w4-s4"), tile("64x128x64-tma-w4-s4"))
LOW = (tile("32x64x64-tma-w4-s4"), tile("32x64x64-tma-w4-s5"))
ONE = (tile("16x32x128-ptr-w4-s4"), tile("16x64x128-tma-w4-s4"))

KINDS = ["silu", "gelu", "gelu_tanh", "swigluoai", "swiglu_step", "silu_no_mul", "gelu_no_mul", "gelu_tanh_no_mul", "relu2_no_mul"]


def activation(kind, g, u, alpha, beta, limit):
    F = torch.nn.functional
    clip = lambda v: v.clamp(-limit, limit)
    return {
        0: lambda: F.silu(g.clamp(max=limit)) * clip(u), 1: lambda: F.gelu(g) * u, 2: lambda: F.gelu(g, approximate="tanh") * u,
        3: lambda: g.clamp(max=limit) * torch.sigmoid(alpha * g.clamp(max=limit)) * (clip(u) + beta),
        4: lambda: F.silu(g).clamp(max=limit) * clip(u), 5: lambda: F.silu(g), 6: lambda: F.gelu(g),
        7: lambda: F.gelu(g, approximate="tanh"), 8: lambda: F.relu(g) ** 2,
    }[kind]()


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def mxfp4(w, g):
    """Random weights of w's shape and about its size: what they stand for, and (bytes, exponents)."""
    E, N, K = w.shape
    codes = torch.randint(0, 16, (E, N, K), generator=g)
    middle = int(torch.tensor(K ** -0.5 / 3).log2().floor()) + 127
    exponents = torch.randint(middle - 2, middle + 2, (E, N, K // 32), generator=g)
    values = E2M1[codes] * (2.0 ** (exponents - 127).double()).float().repeat_interleave(32, 2)
    data = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8), exponents.to(torch.uint8)
    return values.to(w.dtype).to(w.device), tuple(d.contiguous().to(w.device) for d in data)


class Case:
    def __init__(self, name, E=8, k=2, H=96, I=112, T=40, tiles=(PORT64, PORT64), dtype=torch.bfloat16, act=0, params=(1.0, 0.0, float("inf")),
                 bias=False, emap=False, drop=False, on_input=False, slots=None, perm=False, naive=None, out=None, shared_a=False,
                 shared_e=False, mx=False):
        vars(self).update(locals())

    def build(self, dev):
        g = torch.Generator().manual_seed(zlib.crc32(self.name.encode()) % 1000 + self.T)
        meta = dev == "meta"
        rn = lambda *s, scale=1.0: (torch.randn(*s, generator=g) * scale).to(self.dtype).to(dev)
        E, H, I, k, T = self.E, self.H, self.I, self.k, self.T
        gated = self.act < 5
        two = 2 if gated else 1
        w13, w2 = rn(E, two * I, H, scale=H ** -0.5), rn(E, H, I, scale=I ** -0.5)
        packed = None
        if self.mx:
            w13, first = mxfp4(w13, g)
            w2, second = mxfp4(w2, g)
            packed = (first, second)
        EG = E
        emap = None
        if self.emap:
            EG = 2 * E
            perm = torch.randperm(EG, generator=g)
            emap = torch.full((EG,), -1, dtype=torch.int32)
            emap[perm[:E]] = torch.arange(E, dtype=torch.int32)
        ids = torch.rand(T, EG, generator=g).topk(k, dim=1).indices.to(torch.int32)
        if self.drop:
            ids[torch.rand(T, k, generator=g) < 0.3] = -1
            ids[0, :] = -1
            ids[T // 2, 0] = EG + 5
        x = rn(T, H)
        tw = torch.softmax(torch.randn(T, k, generator=g), -1)
        b13 = torch.randn(E, two * I, generator=g).to(dev) if self.bias else None
        b2 = torch.randn(E, H, generator=g).to(dev) if self.bias else None
        slots = mapping = None
        if self.slots is not None:
            fs = []
            for ranks in self.slots:
                f = {}
                ea = 1 if self.shared_e else E
                for name, r, inp, outp in (("first", ranks[0], H, I), ("second", ranks[1], H, I), ("down", ranks[2], I, H)):
                    if r and (gated or name != "second"):
                        a = f["first"][0] if self.shared_a and name == "second" else rn(ea if name != "down" else E, r, inp, scale=inp ** -0.5)
                        f[name] = (a, rn(ea if name == "down" else E, outp, r, scale=r ** -0.5))
                fs.append(f)
            slots = L.Slots(fs, dev) if not meta else L.Slots.__new__(L.Slots)
            if meta:
                slots.slots, slots.n, slots.keep = fs, len(fs), []
                slots.max_rank = max([-(-f[q][0].shape[1] // 8) * 8 for f in fs for q in f], default=0)
                slots.table = torch.empty(len(fs), L.W, dtype=torch.int64, device="meta")
            mapping = torch.randint(-1, len(fs), (T,), generator=g, dtype=torch.int32)
            mapping[0] = len(fs) - 1
        cfg = config(E, k, H, I, T, slots.max_rank if slots else 0, slots.n if slots else 0, True, *self.tiles, self.perm, gated)
        lay = L.Layer(w13, w2, T, k, cfg, slots, gated, self.act, self.params, b13, b2, emap.to(dev) if emap is not None else None,
                      self.on_input, self.out, self.naive, packed)
        d = lambda v: None if v is None else v.to(dev)
        return lay, (x, d(ids), d(tw), d(mapping)), (ids, emap, mapping)

    def reference(self, lay, args, host):
        x, _, tw, _ = args
        ids, emap, mapping = host
        out = torch.zeros(self.T, self.H, device=x.device)
        gated = self.act < 5
        for t in range(self.T):
            for j in range(self.k):
                e = int(ids[t, j])
                if e < 0 or e >= lay.EG:
                    continue
                if emap is not None:
                    e = int(emap[e])
                    if e < 0:
                        continue
                f = {} if mapping is None or int(mapping[t]) < 0 else lay.slots.slots[int(mapping[t])]
                w = tw[t, j].float()
                xv = x[t].float() * (w if self.on_input else 1.0)

                def delta(name, v):
                    if name not in f:
                        return 0.0
                    a, b = f[name]
                    return b[min(e, b.shape[0] - 1)].float() @ (a[min(e, a.shape[0] - 1)].float() @ v)

                h = lay.w13[e].float() @ xv
                if lay.b13 is not None:
                    h = h + lay.b13[e]
                if gated:
                    g1, u1 = h[:self.I] + delta("first", xv), h[self.I:] + delta("second", xv)
                else:
                    g1, u1 = h + delta("first", xv), None
                m = activation(self.act, g1, u1, *self.params)
                y = lay.w2[e].float() @ m + delta("down", m)
                if lay.b2 is not None:
                    y = y + lay.b2[e]
                out[t] += y * (1.0 if self.on_input else w)
        return out

    def run(self):
        lay, args, host = self.build("cuda")
        outs = []
        for seed in (1, 2):
            for b in lay.buffers():
                if b.data_ptr() in {q.data_ptr() for q in (lay.w13, lay.w2, lay.b13, lay.b2, lay.map) if q is not None}:
                    continue
                if b.dtype.is_floating_point:
                    b.fill_(float("nan"))
                elif b.numel() and b is not (lay.map if lay.map is not None else None):
                    b.fill_(-77777 * seed)
            outs.append(lay.forward(*args).clone())
        torch.cuda.synchronize()
        ref = self.reference(lay, args, host)
        err = ((outs[0].float() - ref).norm() / ref.norm().clamp(min=1e-9)).item()
        same = torch.equal(outs[0], outs[1])
        tol = 1e-2 if self.dtype == torch.bfloat16 else 2e-3
        ok = err < tol and same
        print(f"{self.name:46s} err {err:.5f} {'' if same else 'NOT REPEATABLE '}{'ok' if ok else 'FAIL'}", flush=True)
        return ok


RAGGED = [(8, 8, 8), (3, 5, 17), (16, 16, 16), (64, 64, 64), (0, 0, 24), (40, 8, 0), (0, 16, 0), (0, 0, 0), (1, 1, 1)]


def cases():
    out = []
    add = lambda *a, **b: out.append(Case(*a, **b))
    for i, kind in enumerate(KINDS):
        p = (1.702, 1.0, 7.0) if i == 3 else (1.0, 0.0, 1.0) if i in (0, 4) else (1.0, 0.0, float("inf"))
        add(f"{kind} base", act=i, params=p)
        add(f"{kind} lora ragged", act=i, params=p, slots=RAGGED)
        add(f"{kind} lora one token", act=i, params=p, slots=RAGGED, T=1, tiles=(PORT16, PORT16B))
    for T in (1, 2, 3, 17, 64, 300):
        for nm, tl in (("16", (PORT16, PORT16B)), ("64", (PORT64, PORT64))):
            if T <= 3 and nm == "64":
                continue
            add(f"T={T} rows {nm} ragged", T=T, tiles=tl, slots=RAGGED, naive=None)
            add(f"T={T} rows {nm} base", T=T, tiles=tl)
            add(f"T={T} rows {nm} map drop bias", T=T, tiles=tl, slots=RAGGED, emap=True, drop=True, bias=True)
            add(f"T={T} rows {nm} on input bias", T=T, tiles=tl, slots=RAGGED, on_input=True, bias=True)
            add(f"T={T} rows {nm} naive forced", T=T, tiles=(PORT16, PORT16B), slots=RAGGED, naive=True, drop=True) if T <= 17 else None
    add("f16", dtype=torch.float16, slots=RAGGED, T=100)
    add("f16 naive", dtype=torch.float16, slots=RAGGED, T=1, tiles=(PORT16, PORT16B))
    add("shared A", slots=[(16, 16, 16), (8, 8, 3), (33, 33, 8)], shared_a=True, T=100)
    add("shared A one token", slots=[(16, 16, 16)], shared_a=True, T=1, tiles=(PORT16, PORT16B))
    add("shared experts", slots=RAGGED, shared_e=True, T=100)
    add("f32 out", slots=RAGGED, out=torch.float32)
    add("odd sizes", E=5, k=3, H=72, I=40, T=77, slots=RAGGED)
    add("rank 512", slots=[(512, 256, 100), (16, 300, 512)], T=64)
    add("rank 512 one token", slots=[(512, 256, 100), (16, 300, 512)], T=1, tiles=(PORT16, PORT16B))
    add("100 slots", slots=RAGGED * 11 + RAGGED[:1], T=300)
    big = dict(E=16, k=4, H=512, I=384)
    for nm, tl in (("big", BIG), ("mid", MID), ("low", LOW), ("one", ONE)):
        for T in (5, 64, 300, 900):
            add(f"{nm} T={T} base", T=T, tiles=tl, naive=False, **big)
            add(f"{nm} T={T} ragged", T=T, tiles=tl, slots=RAGGED, naive=False, **big)
            if nm == "big":
                add(f"{nm} T={T} ragged permuted", T=T, tiles=tl, slots=RAGGED, naive=False, perm=True, emap=True, drop=True, **big)
                add(f"{nm} T={T} swigluoai bias", T=T, tiles=tl, slots=RAGGED, naive=False, act=3, params=(1.702, 1.0, 7.0), bias=True, **big)
    one, low, mid, tall = ([tile(f"{n}-s3-any") for n in pair] for pair in (
        ("16x32x256-ptr-w4",) * 2, ("16x64x128-ptr-w4", "16x128x128-ptr-w4"), ("64x64x64-ptr-w4", "64x128x64-ptr-w4"),
        ("128x64x64-ptr-w4", "128x128x64-ptr-w8")))
    for T, tl in ((1, one), (9, one), (7, low), (100, mid), (900, tall)):
        more = dict(H=192, I=96, T=T, tiles=tl, act=3, params=(1.702, 1.0, 7.0), bias=True, mx=True, naive=tl is one)
        add(f"mxfp4 T={T} base", **more)
        add(f"mxfp4 T={T} ragged", slots=RAGGED, **more)
        add(f"mxfp4 T={T} map drop", slots=RAGGED, emap=True, drop=True, **more)
    add("mxfp4 gpt-oss widths", E=4, H=2880, I=2880, T=12, tiles=low, slots=[(16, 16, 16)], mx=True)
    add("many pairs", E=16, k=4, H=128, I=96, T=1500, slots=RAGGED, drop=True)
    add("many experts", E=300, k=8, H=128, I=96, T=300, slots=RAGGED[:3])
    add("split shrink", E=4, k=2, H=2048, I=1024, T=40, slots=[(16, 16, 16)], tiles=MID, naive=False)
    add("split shrink 16", E=4, k=2, H=2048, I=1024, T=9, slots=[(16, 16, 16), (64, 8, 8)], tiles=ONE, naive=False)
    add("split shrink naive", E=64, k=4, H=2048, I=1024, T=4, slots=[(16, 16, 16), (64, 8, 8)], tiles=ONE)
    return out


def main(argv):
    cs = cases()
    if "--only" in argv:
        texts = argv[argv.index("--only") + 1].split(",")
        cs = [c for c in cs if any(t in c.name for t in texts)]
    if "--warm" in argv:
        def job(c):
            def j():
                lay, args, _ = c.build("meta")
                lay.forward(*args)
            return j
        warm([job(c) for c in cs], int(argv[argv.index("--warm") + 1]))
    bad = []
    for c in cs:
        try:
            if not c.run():
                bad.append(c.name)
        except Exception as ex:  # noqa: BLE001
            print("exception", c.name, repr(ex)[:500], flush=True)
            bad.append(c.name)
            if "CUDA" in repr(ex) or "illegal" in repr(ex):
                break
    print(f"{len(cs) - len(bad)} of {len(cs)} right; wrong: {bad}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
