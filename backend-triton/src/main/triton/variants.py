"""The kernel variants that are compiled ahead of time: few, each one the winner somewhere (see TileTable on the Java side).

A tile is rows x columns x K-step, warps, stages of the K loop; tma = operands through the bulk copy engine, tail = short tiles run at
half height. G pages (16 ranks) of the expand run side by side, XS stages deep.
"""
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tile:
    BM: int
    BN: int
    BK: int
    warps: int
    stages: int
    tma: bool = False
    tail: bool = False
    G: int = 4
    XS: int = 3
    even: bool = True  # K must be a multiple of BK

    @property
    def name(self):
        kind = "tma" if self.tma else "ptr"
        return (f"{self.BM}x{self.BN}x{self.BK}-{kind}-w{self.warps}-s{self.stages}" + ("-tail" if self.tail else "")
                + ("" if self.even else "-any"))


def t(text, **more):
    """Tile from its name."""
    size, kind, w, s, *flags = text.split("-")
    bm, bn, bk = map(int, size.split("x"))
    return Tile(bm, bn, bk, int(w[1:]), int(s[1:]), kind == "tma", "tail" in flags, even="any" not in flags, **more)


# The Hopper set; first GEMM, then second.
W13 = [
    t("16x32x128-ptr-w4-s4"), t("16x32x256-ptr-w4-s3"), t("16x32x64-ptr-w4-s6"), t("16x64x128-tma-w4-s3"), t("16x32x64-tma-w4-s6"),
    t("32x64x128-tma-w4-s3"), t("32x64x64-tma-w4-s4"), t("64x64x64-tma-w4-s4"), t("64x128x64-tma-w4-s4"),
    t("128x128x64-tma-w8-s4-tail"), t("16x32x64-ptr-w4-s4-any"), t("64x64x64-ptr-w4-s3-any"),
]
W2 = [
    t("16x32x256-ptr-w4-s4"), t("16x32x64-ptr-w4-s8"), t("16x128x64-tma-w4-s5"), t("16x64x128-tma-w4-s4"), t("16x128x128-tma-w4-s3"),
    t("32x128x128-tma-w4-s3"), t("32x64x64-tma-w4-s5"), t("64x128x64-tma-w4-s4"), t("64x64x64-tma-w4-s5"),
    t("128x128x64-tma-w4-s3-tail"), t("128x128x64-tma-w8-s6-tail"),
    t("128x256x64-tma-w8-s4-tail"), t("16x64x64-ptr-w4-s4-any"), t("64x64x64-ptr-w4-s3-any"),
]
# Activations without gate are rare.
SINGLE = [t("16x32x64-ptr-w4-s6"), t("64x64x64-tma-w4-s4"), t("128x128x64-tma-w8-s4-tail"), t("16x32x64-ptr-w4-s4-any"),
          t("64x64x64-ptr-w4-s3-any")]


def portable(arch):
    """Every other target and type: plain pointers, moderate shared memory."""
    stages = 2 if arch == 120 else 3
    more = dict(XS=2) if arch == 120 else {}
    return [t(f"16x64x64-ptr-w4-s{stages}", **more), t(f"64x64x64-ptr-w4-s{stages}", **more), t(f"128x64x64-ptr-w4-s{stages}", **more),
            t(f"16x64x64-ptr-w4-s{stages}-any", **more), t(f"64x64x64-ptr-w4-s{stages}-any", **more)]


def mxfp4(arch, stage):
    """Weights in 4 bits, any contraction that is a multiple of 32; the first tile is for single rows."""
    stages = 2 if arch == 120 else 3
    more = dict(XS=2) if arch == 120 else {}
    tiles = ("16x32x256-ptr-w4", "16x64x128-ptr-w4", "64x64x64-ptr-w4", "128x64x64-ptr-w4") if stage == "w13" else (
        "16x32x256-ptr-w4", "16x128x128-ptr-w4", "64x128x64-ptr-w4", "128x128x64-ptr-w8")
    return [t(f"{name}-s{stages}-any", **more) for name in tiles]
