"""Microseconds of a layer's forward under CUDA-graph replay, against the floor max(packed bytes / 4.3 TB/s, operations / 790 TFLOP/s). Every plan
that may fit is tried: first the products alone, then the best of them as whole forwards, top-k included."""
import argparse
import itertools
import json
import math
import statistics
import time

import torch

import gpu
import layer as L

SHAPES = {"qwen3-30b-a3b": (128, 8, 2048, 768), "gpt-oss-120b-like": (128, 4, 2880, 2880), "mixtral-8x7b": (8, 2, 4096, 14336)}
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 8192)
SLOTS = 32


class Model:
    def __init__(self, shape, q, SG):
        self.E, self.k, self.H, self.I = SHAPES[shape]
        self.p13 = L.random_packed(q, self.E, 2, self.I, self.H, SG, 2)
        self.p2 = L.random_packed(q, self.E, 1, self.H, self.I, SG, 2)
        self.q, self.SG, self.factors = q, SG, {}
        weights = 3 * self.H * self.I
        # As peers-h200-quant.md counts: int4 with a bf16 scale for every 128; FP8 with an f32 scale for every 128 x 128.
        self.expert_bytes = weights // 2 + weights // 128 * 2 if L.BITS[q] == 4 else weights + weights // 16384 * 4

    def slots(self, rank, n):
        E, H, I = self.E, self.H, self.I
        if rank not in self.factors:
            r = lambda *z, s: torch.empty(z, dtype=torch.bfloat16, device=gpu.DEV).normal_(0, s)
            a = lambda i: r(SLOTS, E, rank, i, s=i ** -0.5)
            b = lambda o: r(SLOTS, E, o, rank, s=rank ** -0.5)
            self.factors[rank] = (a(H), b(I), a(H), b(I), a(I), b(H))
        f = self.factors[rank]
        return L.Slots([{"first": (f[0][i], f[1][i]), "second": (f[2][i], f[3][i]), "down": (f[4][i], f[5][i])} for i in range(n)], gpu.DEV)


class Inputs:
    def __init__(self, m, T):
        self.m, self.T = m, T
        self.R = 8 if T <= 16 else 4 if T <= 256 else 2 if T <= 1024 else 1
        g = torch.Generator().manual_seed(1234 + T)
        self.logits, self.ids, self.tw, self.x, self.host = [], [], [], [], []
        for i in range(self.R):
            logits = torch.rand(T, m.E, generator=g)
            ids = logits.topk(m.k, dim=1).indices
            self.host.append(ids)
            self.logits.append(logits.to(gpu.DEV))
            self.ids.append(ids.to(torch.int32).to(gpu.DEV).contiguous())
            self.tw.append(torch.softmax(torch.randn(T, m.k, generator=g), -1).to(gpu.DEV))
            self.x.append(torch.randn(T, m.H, generator=g).to(torch.bfloat16).to(gpu.DEV))

    def mapping(self, n):
        return [((torch.arange(self.T) + i) % max(n, 1)).to(torch.int32) for i in range(self.R)]

    def floor(self, rank, mapping):
        H, I = self.m.H, self.m.I
        by = 0
        for ids, a in zip(self.host, mapping):
            by += torch.unique(ids).numel() * self.m.expert_bytes + 4 * self.T * H
            if rank:
                by += torch.unique(ids * 1024 + a[:, None]).numel() * 6 * rank * (H + I)
        return max(by / self.R / 4.3e12, self.T * self.m.k * 6 * (H * I + rank * (H + I)) / 790e12) * 1e6


def timeit(fn, R, reps=11, warm=0.02):
    if gpu.DRY:
        for i in range(R):
            fn(i)
        return 1.0
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for i in range(R):
            fn(i)
    torch.cuda.synchronize()
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        for i in range(R):
            fn(i)
    t = time.time()
    while time.time() - t < warm:
        g.replay()
        torch.cuda.synchronize()
    ev = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(reps)]
    for a, b in ev:
        a.record()
        g.replay()
        b.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) * 1e3 / R for a, b in ev)


def plans(m, T, wide_only=False):
    P = T * m.k
    rows = P / min(m.E, P)
    naive = T == 1 or P * 4 <= m.E
    out = []
    if naive:
        return [("narrow", 8, wk) for wk in (8, 4, 2)]
    if rows <= 8:
        out += [("narrow", 8, wk) for wk in (8, 4, 2)]
    if 3 <= rows <= 24:
        out += [("narrow", 16, wk) for wk in (4, 2)]
    if 10 <= rows <= 40:
        out += [("narrow", 32, wk) for wk in (4, 2)]
    if 6 <= rows <= 64:
        out += [("wide", 32, 1)]
    if rows >= 12:
        out += [("wide", 64, 1)]
    if rows >= 48:
        out += [("wide", 128, 1)]
    return [p for p in out if all(L.OWN.has(f"moe_{p[0]}_{L.CODES[m.q]}_bf16_{p[1]}_{m.SG}_{g}") for g in (0, 1))]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--shapes", default=",".join(SHAPES))
    ap.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    ap.add_argument("--grid", default="16x8,64x32")
    ap.add_argument("--format", default="u4:1")
    ap.add_argument("--seconds", type=float, default=1e9)
    ap.add_argument("--out", default="")
    a = ap.parse_args()
    q, SG = a.format.split(":")
    q, SG = L.CODES.index(q), int(SG)
    end = time.time() + a.seconds
    grid = [tuple(map(int, g.split("x"))) for g in a.grid.split(",") if g]
    rows = []
    for s in a.shapes.split(","):
        m = Model(s, q, SG)
        topk = L.SHARED.get("topk_flat", lanes=1 if m.E <= 32 else 4)
        for T in map(int, a.tokens.split(",")):
            if time.time() > end:
                break
            inp = Inputs(m, T)
            R = inp.R

            def make(plan, rank=0, n=0):
                sl = m.slots(rank, n) if n else None
                mp = [v.to(gpu.DEV) for v in inp.mapping(n)]
                ls = [L.Layer(m.p13, m.p2, T, m.k, m.H, m.I, plan, slots=sl) for _ in range(R)]

                def forward(i):
                    topk(L.cdiv(T, 4), dict(logits=inp.logits[i], bias=None, ids=inp.ids[i], weights=inp.tw[i], T=T, E=m.E, K=m.k, scoring=0, renormalize=1,
                                            epsilon=0.0, scale=1.0))
                    ls[i].forward(inp.x[i], inp.ids[i], inp.tw[i], mp[i] if n else None)
                return ls, mp, forward

            floor = inp.floor(0, inp.mapping(0))
            stage = {}
            for kind, NT, wk in plans(m, T):
                ls, mp, forward = make(dict(kind=(kind, kind), NT=NT, wk=(wk, wk)))
                for i in range(R):
                    forward(i)
                for first in (True, False):
                    def one(i):
                        args = ls[i].common(inp.ids[i], inp.ids[i], inp.tw[i])
                        ls[i].gemm(first, inp.x[i] if first else ls[i].mid, args)
                    stage[first, kind, NT, wk] = timeit(one, R, 7, 0.01)
                del ls, forward
            best = []
            for NT in sorted({k[2] for k in stage}):
                pick = [min((v, k) for k, v in stage.items() if k[0] == f and k[2] == NT) for f in (True, False)]
                best.append((pick[0][0] + pick[1][0], dict(kind=(pick[0][1][1], pick[1][1][1]), NT=NT, wk=(pick[0][1][3], pick[1][1][3])), pick[0][0], pick[1][0]))
            best.sort(key=lambda b: b[0])
            full = []
            for total, plan, t1, t2 in best[:2]:
                for GM in (8,) if T < 1024 else (8, 32):
                    p = dict(plan, GM=GM)
                    full.append((timeit(make(p)[2], R), p, t1, t2))
            us, p, t1, t2 = min(full, key=lambda f: f[0])
            line = [f"{us:.1f}/{floor:.1f}={us / floor:.2f} (w13 {t1:.1f} w2 {t2:.1f})"]
            rows.append(dict(shape=s, T=T, rank=0, adapters=0, us=us, floor=floor, plan=p, stage={str(k): v for k, v in stage.items()},
                             full=[(f[0], str(f[1])) for f in full]))
            for rank, n in grid:
                fl = inp.floor(rank, inp.mapping(n))
                times = [(timeit(make(f[1], rank, n)[2], R), f[1]) for f in ([min(full, key=lambda f: f[0])] if T < 256 else full[::2])]
                t = min(times, key=lambda v: v[0])
                rows.append(dict(shape=s, T=T, rank=rank, adapters=n, us=t[0], floor=fl, plan=t[1]))
                line.append(f"r{rank}x{n} {t[0]:.1f}/{fl:.1f}={t[0] / fl:.2f}")
            print(s, T, p["kind"][0], p["kind"][1], p["NT"], p["wk"], p["GM"], " | ".join(line), flush=True)
            if a.out:
                json.dump(rows, open(a.out, "w"), indent=0)
        del m
        if not gpu.DRY:
            torch.cuda.empty_cache()
    mean = lambda z: math.exp(sum(map(math.log, z)) / len(z)) if z else float("nan")
    for lora in (False, True):
        for lo, hi in ((1, 64), (256, 1024), (4096, 8192)):
            z = [x["us"] / x["floor"] for x in rows if (x["rank"] > 0) == lora and lo <= x["T"] <= hi]
            print(f"{a.format} {'LoRA' if lora else 'base'} T={lo}..{hi}: time over floor {mean(z):.3f} ({len(z)} points)", flush=True)


if __name__ == "__main__":
    main()
