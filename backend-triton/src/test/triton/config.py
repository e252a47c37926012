"""Tile choice for the Python tests and the bench: reads the same table as the Java side (tiles.json)."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../main/triton"))
from dataclasses import replace  # noqa: E402

from variants import t as tile  # noqa: E402


def cdiv(a, b):
    return -(-a // b)


def shrink_config(two, rank, KD, BS, tiles, naive):
    """Rank chunk, K step and splits so that about two programs an SM have work."""
    total = rank * (2 if two else 1)
    BK = 128 if KD % 128 == 0 else 64
    widths = (32, 64) if BS == 16 and two else (16, 32, 64) if BS == 16 else (32, 128) if two else (16, 64)
    fits = [b for b in widths if b >= total] or [widths[-1]]
    i = widths.index(fits[0])
    while i > 0 and tiles * cdiv(total, widths[i]) < 132:
        i -= 1
    BR = widths[i]
    chunks, split = cdiv(total, BR), 1
    while tiles * chunks * split < 264 and KD // (split * 2) >= 2 * BK and split < (16 if naive or BS == 16 else 8):
        split *= 2
    return dict(BR=BR, BK=BK, SPLIT=split, warps=4, stages=4)


def config(E, k, H, I, T, rank=0, n=0, pdl=True, w13=None, w2=None, perm=False, gated=True, **more):
    P = T * k
    naive = T == 1 or P * 4 <= E
    c = dict(w13=w13, w2=w2, PERM=perm, PDL=pdl, BS=16, **more)
    if n:
        nseg = min(P, E * n)
        rows = P / nseg
        c["BS"] = 16 if naive or rows <= 24 else 32 if rows <= 48 else 64
        tiles = P if naive else nseg * max(1, round(rows / c["BS"]))
        c["sh13"] = shrink_config(gated, rank, H, c["BS"], tiles, naive)
        c["sh2"] = shrink_config(False, rank, I, c["BS"], tiles, naive)
    return c
