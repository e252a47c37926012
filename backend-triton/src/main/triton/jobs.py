"""What is compiled of this module's kernels, see tools/kernels/build_triton.py; variants.py has the tiles."""
import variants
from build_triton import job

MODULE = "backend-triton"
SOURCES = {"gemm": ("src/main/triton/gemm.py", "../moe-cuda/src/main/triton/table.py", "src/main/triton/activation.py",
                    "src/main/triton/mxfp4.py")}


def gemm_job(arch, dtype, stage, tile, act, lora, naive, gather, mx=False):
    first, gated = stage != "w2", stage == "w13"
    tail = tile.tail and not naive
    descriptors = {}
    constexprs = dict(FIRST=first, GATED=gated, ACT=0 if act == "silu" else -1, GATHER=gather, LORA=lora, NAIVE=naive, G=tile.G, BM=tile.BM,
                      BN=tile.BN, BK=tile.BK, EVEN_K=tile.even, TMA=tile.tma, TAIL=tail, MX=mx, XS=tile.stages if mx and naive else tile.XS)
    if not mx:
        constexprs["ws"] = None
    for d, wanted, rows in (("xd", tile.tma and not gather, tile.BM), ("xh", tile.tma and not gather and tail, tile.BM // 2),
                            ("wd", tile.tma, tile.BN)):
        if wanted:
            descriptors[d] = (rows, tile.BK)
        else:
            constexprs[d] = None
    return job("gemm", "gemm_kernel", "gemm", arch,
               {"type": "mxfp4" if mx else dtype, "stage": stage, "tile": tile.name, "act": act, "lora": str(int(lora)), "naive": str(int(naive)),
                "gather": str(int(gather))}, constexprs, tile.warps, tile.stages, dtype, descriptors=descriptors)


def gemm_jobs(arch, dtype):
    rich = arch == 90 and dtype == "bf16"
    sets = {"w13": variants.W13, "w2": variants.W2, "w1": variants.SINGLE} if rich else {
        "w13": variants.portable(arch), "w2": variants.portable(arch), "w1": variants.portable(arch)}
    out = []
    for stage, tiles in sets.items():
        for tile in tiles:
            for lora in (False, True):
                for act in ("silu", "any") if stage == "w13" and rich else ("any",) if stage != "w2" else ("none",):
                    for naive in (False, True) if tile.BM == 16 else (False,):
                        for gather in (False,) if stage == "w2" else (True, False) if tile.tail and stage == "w13" else (True,):
                            out.append(gemm_job(arch, dtype, stage, tile, act, lora, naive, gather))
    return out


def mxfp4_jobs(arch):
    """gpt-oss: gated, any activation, any multiple of 32."""
    out = []
    for stage in ("w13", "w2"):
        for i, tile in enumerate(variants.mxfp4(arch, stage)):
            for lora in (False, True):
                out.append(gemm_job(arch, "bf16", stage, tile, "any" if stage == "w13" else "none", lora, i == 0, stage == "w13", True))
    return out


def jobs(archs):
    out = []
    for arch in archs:
        for dtype in ("bf16", "f16"):
            out += gemm_jobs(arch, dtype)
        out += mxfp4_jobs(arch)
    return out
