"""Microseconds of a layer's forward under CUDA-graph replay, against the floor max(bytes / 4.3 TB/s, operations / 790 TFLOP/s).

usage: bench.py [--shapes a,b] [--tokens 1,4] [--grid 0x0,16x8] [--warm WORKERS] [--stages] [--out FILE]
Bytes: the touched experts' weights and adapters once, x in, out. Inputs and routings rotate (R of them a graph), so that a replay does
not find the weights of the one before in the cache. Rows of FILE: {"shape","T","rank","adapters","us","floor_us","path"}.
"""
import argparse
import json
import math
import statistics
import time

import torch

import layer as L
from config import choose
from warm import warm

SHAPES = {"qwen3-30b-a3b": (128, 8, 2048, 768), "gpt-oss-120b-like": (128, 4, 2880, 2880), "mixtral-8x7b": (8, 2, 4096, 14336)}
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 8192)
GRID = ((0, 0), (16, 1), (16, 8), (16, 32), (64, 1), (64, 8), (64, 32))
BANDWIDTH, RATE = 4.3e12, 790e12
SLOTS = 32


def normal(shape, scale, dev):
    t = torch.empty(shape, dtype=torch.bfloat16, device=dev)
    return t if dev == "meta" else t.normal_(0, scale)


class Model:
    def __init__(self, shape, dev="cuda"):
        self.E, self.k, self.H, self.I = SHAPES[shape]
        self.dev = dev
        self.w13, self.w2 = normal((self.E, 2 * self.I, self.H), self.H ** -0.5, dev), normal((self.E, self.H, self.I), self.I ** -0.5, dev)
        self.factors = {}

    def slots(self, rank, n):
        E, H, I, d = self.E, self.H, self.I, self.dev
        if rank not in self.factors:
            a = lambda i: normal((SLOTS, E, rank, i), i ** -0.5, d)
            b = lambda o: normal((SLOTS, E, o, rank), rank ** -0.5, d)
            self.factors[rank] = (a(H), b(I), a(H), b(I), a(I), b(H))
        f = self.factors[rank]
        if d == "meta":
            s = L.Slots.__new__(L.Slots)
            s.n, s.max_rank, s.table = n, rank, torch.empty(n, L.W, dtype=torch.int64, device=d)
            return s
        return L.Slots([{"first": (f[0][i], f[1][i]), "second": (f[2][i], f[3][i]), "down": (f[4][i], f[5][i])} for i in range(n)], d)


class Inputs:
    def __init__(self, m, T, R=None):
        self.m, self.T = m, T
        self.R = R or (8 if T <= 16 else 4 if T <= 256 else 2 if T <= 1024 else 1)
        g = torch.Generator().manual_seed(1234 + T)
        order = torch.randperm(m.E, generator=g)
        self.host, self.ids, self.tw, self.x = [], [], [], []
        for i in range(self.R):
            if T == 1 and m.k * self.R <= m.E:
                ids = order[i * m.k:(i + 1) * m.k].view(1, m.k)
            else:
                ids = torch.rand(T, m.E, generator=g).topk(m.k, dim=1).indices
            self.host.append(ids)
            self.ids.append(ids.to(torch.int32).to(m.dev).contiguous())
            self.tw.append(torch.softmax(torch.randn(T, m.k, generator=g), -1).to(m.dev))
            self.x.append(torch.randn(T, m.H, generator=g).to(torch.bfloat16).to(m.dev))

    def mapping(self, n):
        return [((torch.arange(self.T) + i) % max(n, 1)).to(torch.int32) for i in range(self.R)]

    def floor(self, rank, mapping):
        E, H, I = self.m.E, self.m.H, self.m.I
        by = 0
        for ids, a in zip(self.host, mapping):
            by += torch.unique(ids).numel() * 6 * H * I + 4 * self.T * H
            if rank:
                by += torch.unique(ids * 1024 + a[:, None]).numel() * 6 * rank * (H + I)
        return max(by / self.R / BANDWIDTH, self.T * self.m.k * 6 * (H * I + rank * (H + I)) / RATE) * 1e6


def timeit(fn, R, reps=21):
    """Median microseconds of one call; a graph holds R calls. Replays for 50 ms first, so that the clock has settled."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(R):
            fn(i)
    torch.cuda.synchronize()
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        for i in range(R):
            fn(i)
    t = time.time()
    while time.time() - t < 0.05:
        g.replay()
        torch.cuda.synchronize()
    ev = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(reps)]
    for a, b in ev:
        a.record()
        g.replay()
        b.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) * 1e3 / R for a, b in ev)


def layers(m, inp, rank, n):
    cfg = choose(m.E, m.k, m.H, m.I, inp.T, rank, n)
    slots = m.slots(rank, n) if n else None
    return [L.Layer(m.w13, m.w2, inp.T, m.k, cfg, slots) for _ in range(inp.R)]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--shapes", default=",".join(SHAPES))
    ap.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    ap.add_argument("--grid", default=",".join(f"{r}x{n}" for r, n in GRID))
    ap.add_argument("--warm", type=int, default=0)
    ap.add_argument("--out", default="")
    a = ap.parse_args()
    shapes, tokens = a.shapes.split(","), [int(t) for t in a.tokens.split(",")]
    grid = [tuple(map(int, q.split("x"))) for q in a.grid.split(",")]
    if a.warm:
        def job(s, T, r, n):
            def j():
                m = Model(s, "meta")
                i = Inputs(m, T, 1)
                layers(m, i, r, n)[0].forward(i.x[0], i.ids[0], i.tw[0], i.mapping(n)[0].to("meta"))
            return j
        warm([job(s, T, r, n) for s in shapes for T in tokens for r, n in grid], a.warm)
    rows = []
    for s in shapes:
        m = Model(s)
        for T in tokens:
            inp, line = Inputs(m, T), []
            for r, n in grid:
                host = inp.mapping(n)
                mapping = [v.to(m.dev) for v in host]
                floor = inp.floor(r, host)
                ls = layers(m, inp, r, n)
                us = timeit(lambda i: ls[i].forward(inp.x[i], inp.ids[i], inp.tw[i], mapping[i]), inp.R)
                rows.append(dict(shape=s, T=T, rank=r, adapters=n, us=round(us, 1), floor_us=round(floor, 1), path="fused"))
                line.append(f"r{r}n{n} {us:.1f}/{floor:.1f}={us / floor:.2f}")
            print(s, T, " | ".join(line), flush=True)
            if a.out:
                json.dump(rows, open(a.out, "w"), indent=0)
        del m
        torch.cuda.empty_cache()
    mean = lambda z: math.exp(sum(map(math.log, z)) / len(z)) if z else float("nan")
    for lora in (False, True):
        for lo, hi in ((1, 64), (256, 1024), (4096, 8192)):
            z = [x["us"] / x["floor_us"] for x in rows if (x["rank"] > 0) == lora and lo <= x["T"] <= hi]
            print(f"{'LoRA' if lora else 'base'} T={lo}..{hi}: time over floor {mean(z):.3f} ({len(z)} points)", flush=True)


if __name__ == "__main__":
    main()
