"""Tile choice for the Python tests and the bench: `choose` follows the rules of TileTable.java for the tuned set."""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "../../main/triton"), os.path.join(HERE, "../../../../moe-cuda/src/main/triton")]
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


def first_tile(E, H, T, naive, rows, heavy):
    wide, long256 = H % 128 == 0, H % 256 == 0 and H >= 4096
    if naive:
        return ("16x32x256-ptr-w4-s3" if long256 else "16x32x64-ptr-w4-s6" if not wide else
                "16x32x128-ptr-w4-s4" if T == 1 else "16x64x128-tma-w4-s3")
    if rows < 12:
        if not wide:
            return "16x32x64-ptr-w4-s6" if rows <= 2 else "16x32x64-tma-w4-s6"
        if long256:
            return "16x32x256-ptr-w4-s3" if rows <= 2 else "16x32x128-ptr-w4-s4"
        return "16x64x128-tma-w4-s3" if rows <= 2 or H % 256 else "16x32x256-ptr-w4-s3"
    if rows < 24:
        return "32x64x128-tma-w4-s3" if wide and not heavy else "32x64x64-tma-w4-s4"
    if rows < 48 or heavy:
        return "64x128x64-tma-w4-s4" if rows >= 256 else "64x64x64-tma-w4-s4"
    return "128x128x64-tma-w8-s4-tail"


def second_tile(I, T, naive, rows, height, rank, n):
    wide, long256 = I % 128 == 0, I % 256 == 0 and I >= 8192
    if height == 16:
        if naive:
            if long256:
                return "16x32x256-ptr-w4-s4"
            if wide:
                return "16x128x64-tma-w4-s5" if T == 1 else "16x64x128-tma-w4-s4"
            return "16x32x64-ptr-w4-s8" if T == 1 else "16x128x64-tma-w4-s5"
        if not wide:
            return "16x32x64-ptr-w4-s8"
        if long256 and rows <= 2:
            return "16x32x256-ptr-w4-s4"
        return "16x64x128-tma-w4-s4" if rows <= 2 else "16x128x128-tma-w4-s3"
    if height == 32:
        return "32x128x128-tma-w4-s3" if wide and not (rank >= 64 and n >= 8) else "32x64x64-tma-w4-s5"
    if height == 64:
        return "64x128x64-tma-w4-s4"
    return "128x128x64-tma-w4-s3-tail" if not n and (rows <= 64 or I < 1024 and rows <= 256) else "128x256x64-tma-w8-s4-tail"


def choose(E, k, H, I, T, rank=0, n=0, pdl=True):
    """The configuration that TritonExperts would run a gated bf16 layer on Hopper with."""
    P = T * k
    naive, rows = T == 1 or P * 4 <= E, P / min(E, P)
    per = P / min(P, E * n) if n else 0
    heavy = n >= 16 and E >= 32 and 128 / min(128, per) * rank >= 1024
    w13 = tile(first_tile(E, H, T, naive, rows, heavy))
    w2 = tile(second_tile(I, T, naive, rows, w13.BM, rank, n))
    return config(E, k, H, I, T, rank, n, pdl, w13, w2, w13.BM == 128 and rows >= 256 and H >= 2560,
                  GM=16 if E <= 16 and rows >= 1024 else 8)
