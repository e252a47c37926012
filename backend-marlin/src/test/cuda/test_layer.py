"""Whole layers on a card against float64, every format, each twice on poisoned buffers: bit for bit. usage: test_layer.py [TEXT]"""
import os
import sys

import torch

import gpu
import layer as L
from layer import E2M1, E4M3, U4, U8

FORMATS = {
    "gptq4 g128": dict(q=U4, group=128, scale="f16", layout="gptq"),
    "gptq4 asym g32": dict(q=U4, group=32, scale="f16", layout="gptq", asym=True),
    "gptq4 asym g32 act-order": dict(q=U4, group=32, scale="f16", layout="gptq", asym=True, order=True),
    "awq g64": dict(q=U4, group=64, scale="f16", layout="awq", asym=True),
    "ct4 asym g16": dict(q=U4, group=16, scale="bf16", layout="ct", asym=True),
    "ct4 channel": dict(q=U4, group=0, scale="bf16", layout="ct"),
    "int8 channel": dict(q=U8, group=0, scale="f32", layout="bytes"),
    "ct8 g32": dict(q=U8, group=32, scale="bf16", layout="ct"),
    "gptq8 asym g64": dict(q=U8, group=64, scale="f16", layout="gptq", asym=True),
    "ct8 g16": dict(q=U8, group=16, scale="bf16", layout="ct"),
    "fp8 channel": dict(q=E4M3, group=0, scale="bf16", layout="bytes"),
    "fp8 block": dict(q=E4M3, group=-1, scale="f32", layout="bytes"),
    "mxfp8": dict(q=E4M3, group=32, scale="e8m0", layout="bytes"),
    "nvfp4": dict(q=E2M1, group=16, scale="e4m3", layout="ct", **{"global": True}),
    "mxfp4": dict(q=E2M1, group=32, scale="e8m0", layout="ct"),
}
RAGGED = [(8, 8, 8), (3, 5, 17), (16, 16, 16), (64, 64, 64), (0, 0, 24), (40, 8, 0), (0, 16, 0), (0, 0, 0), (1, 1, 1)]


def activation(kind, g, u, alpha, beta, limit):
    F = torch.nn.functional
    clip = lambda v: v.clamp(-limit, limit)
    return {
        0: lambda: F.silu(g.clamp(max=limit)) * clip(u), 1: lambda: F.gelu(g) * u, 2: lambda: F.gelu(g, approximate="tanh") * u,
        3: lambda: g.clamp(max=limit) * torch.sigmoid(alpha * g.clamp(max=limit)) * (clip(u) + beta),
        4: lambda: F.silu(g).clamp(max=limit) * clip(u), 5: lambda: F.silu(g), 6: lambda: F.gelu(g),
        7: lambda: F.gelu(g, approximate="tanh"), 8: lambda: F.relu(g) ** 2,
    }[kind]()


def run(name, fmt, plan, dtype=torch.bfloat16, T=40, E=8, k=2, H=328, I=264, act=0, params=(1.0, 0.0, float("inf")), bias=False, emap=False,
        drop=False, on_input=False, slots=None, naive=None):
    g = torch.Generator().manual_seed(T + H)
    dev = gpu.DEV
    gated = act < 5
    two = 2 if gated else 1
    rn = lambda *s, scale=1.0: (torch.randn(*s, generator=g) * scale).to(dtype).to(dev)
    w13, p13 = L.pack(fmt, E, two, I, H, g)
    w2, p2 = L.pack(fmt, E, 1, H, I, g)
    EG, em = E, None
    if emap:
        EG = 2 * E
        perm = torch.randperm(EG, generator=g)
        em = torch.full((EG,), -1, dtype=torch.int32)
        em[perm[:E]] = torch.arange(E, dtype=torch.int32)
    ids = torch.rand(T, EG, generator=g).topk(k, dim=1).indices.to(torch.int32)
    if drop:
        ids[torch.rand(T, k, generator=g) < 0.3] = -1
        ids[T // 2, 0] = EG + 5
    x, tw = rn(T, H), torch.softmax(torch.randn(T, k, generator=g), -1).to(dev)
    b13 = torch.randn(E, two * I, generator=g).to(dev) if bias else None
    b2 = torch.randn(E, H, generator=g).to(dev) if bias else None
    sl = mapping = None
    if slots is not None:
        fs = []
        for ranks in slots:
            f = {}
            for nm, r, i, o in (("first", ranks[0], H, I), ("second", ranks[1], H, I), ("down", ranks[2], I, H)):
                if r and (gated or nm != "second"):
                    f[nm] = (rn(E, r, i, scale=i ** -0.5), rn(E, o, r, scale=r ** -0.5))
            fs.append(f)
        sl = L.Slots(fs, dev)
        mapping = torch.randint(-1, len(fs), (T,), generator=g, dtype=torch.int32)
        mapping[0] = len(fs) - 1
    lay = L.Layer(p13, p2, T, k, H, I, plan, dtype, sl, gated, act, params, b13, b2, em.to(dev) if emap else None, on_input, naive)
    outs = []
    args = (x, ids.to(dev), tw, mapping.to(dev) if mapping is not None else None)
    for seed in (1, 2):
        for b in lay.buffers():
            if b.dtype.is_floating_point:
                b.fill_(float("nan"))
            elif b.numel():
                b.fill_(-77777 * seed)
        outs.append(lay.forward(*args).clone())
    if gpu.DRY:
        return True
    torch.cuda.synchronize()
    ref = torch.zeros(T, H, dtype=torch.float64, device=dev)
    xd, twd = x.double(), tw.double()
    e = ids.long()
    e = torch.where((e < 0) | (e >= EG), -1, e)
    e = torch.where(e >= 0, em.long()[e.clamp(min=0)], -1) if emap else e
    slot = mapping.long() if mapping is not None else torch.full((T,), -1)
    for ex in range(E):
        for sl_id in slot.unique().tolist():
            t, j = torch.where((e == ex) & (slot == sl_id)[:, None])
            if not len(t):
                continue
            t, j = t.to(dev), j.to(dev)
            f = sl.slots[sl_id] if sl_id >= 0 else {}
            w = twd[t, j][:, None]
            xv = xd[t] * (w if on_input else 1.0)
            delta = lambda nm, v: (v @ f[nm][0][ex].double().T) @ f[nm][1][ex].double().T if nm in f else 0.0
            bias_of = lambda b, i: b.view(E, -1, b.shape[1] // (two if b is b13 else 1))[ex, i].double() if b is not None else 0.0
            h = [xv @ w13[ex, i].T + delta(("first", "second")[i], xv) + bias_of(b13, i) for i in range(two)]
            m = activation(act, h[0], h[1] if gated else None, *params)
            y = m @ w2[ex, 0].T + delta("down", m) + bias_of(b2, 0)
            ref.index_add_(0, t, y * (1.0 if on_input else w))
    err = ((outs[0].double() - ref).norm() / ref.norm().clamp(min=1e-9)).item()
    same = torch.equal(outs[0], outs[1])
    ok = err < (5e-3 if dtype == torch.bfloat16 else 1e-3) and same
    print(f"{name:60s} err {err:.5f} {'' if same else 'NOT REPEATABLE '}{'ok' if ok else 'FAIL'}", flush=True)
    return ok


def plan(kind, NT, wk=(4, 4), **more):
    return dict(kind=(kind, kind), NT=NT, wk=wk, **more)


def main():
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    bad = total = 0
    oai = dict(act=3, params=(1.702, 1.0, 7.0), bias=True)

    def case(name, *a, **b):
        nonlocal bad, total
        if only not in name:
            return
        fmt, p = a[0], a[1]
        names = [f"moe_{p['kind'][i]}_{L.CODES[fmt['q']]}_{L.ELEMENT[b.get('dtype', torch.bfloat16)]}_{p['NT']}_" for i in (0, 1)]
        sg = 0 if fmt["group"] == 0 else 1 if fmt["group"] < 0 or fmt["group"] % 64 == 0 else 2 if fmt["group"] % 32 == 0 else 4
        if not all(L.OWN.has(f"{n}{sg}{'z' if fmt.get('asym') else ''}_{int(i == 0 and b.get('act', 0) < 5)}") for i, n in enumerate(names)):
            return
        total += 1
        try:
            bad += not run(name, *a, **b)
        except Exception as ex:  # noqa: BLE001 - a card that has failed fails all that follows
            bad += 1
            print(name, repr(ex)[:300], flush=True)
            if gpu.DRY:
                raise

    for name, fmt in FORMATS.items():
        for dtype, d in ((torch.bfloat16, "bf16"), (torch.float16, "f16")):
            if os.environ.get("QUICK") and d == "f16" and name not in ("awq g64", "fp8 block", "nvfp4", "int8 channel"):
                continue
            for kind, NT, T, extra in (("narrow", 8, 1, dict(naive=True, **oai)), ("narrow", 8, 3, dict(naive=True, drop=True)), ("narrow", 8, 20, {}),
                                       ("narrow", 16, 60, {}), ("narrow", 32, 100, oai), ("wide", 32, 100, {}), ("wide", 64, 120, oai),
                                       ("wide", 128, 500, {})):
                case(f"{name} {d} {kind} {NT} T={T} base", fmt, plan(kind, NT), dtype, T, **dict(extra, bias=False))
                case(f"{name} {d} {kind} {NT} T={T} lora", fmt, plan(kind, NT), dtype, T, slots=RAGGED, **extra)
    for kind, NT, T in (("narrow", 8, 33), ("narrow", 32, 90), ("wide", 64, 300), ("wide", 128, 600)):
        fmt = FORMATS["gptq4 g128"]
        for act in range(9):
            par = (1.702, 1.0, 7.0) if act == 3 else (1.0, 0.0, 1.0) if act in (0, 4) else (1.0, 0.0, float("inf"))
            case(f"act {act} {kind} {NT}", fmt, plan(kind, NT), T=T, act=act, params=par, slots=RAGGED, bias=True)
        case(f"map drop {kind} {NT}", fmt, plan(kind, NT), T=T, emap=True, drop=True, slots=RAGGED, bias=True)
        case(f"input {kind} {NT}", fmt, plan(kind, NT), T=T, on_input=True, slots=RAGGED, bias=True)
        case(f"qwen {kind} {NT}", fmt, plan(kind, NT), T=min(T, 100), H=2048, I=768, slots=[(16, 16, 16), (64, 64, 64)])
        case(f"gpt-oss {kind} {NT}", fmt, plan(kind, NT, wk=(8, 2)), T=min(T, 100), H=2880, I=2880, E=4, slots=[(16, 16, 16), (64, 64, 64)])
        case(f"many pages {kind} {NT}", fmt, plan(kind, NT), T=T, E=4, k=2, slots=[(64, 64, 64), (40, 72, 8), (16, 16, 128)] * 10)
        case(f"experts {kind} {NT}", fmt, plan(kind, NT), T=T, E=64, k=6, H=256, I=128, slots=RAGGED)
    print(f"{total - bad} of {total} right", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
