"""What is compiled of the shared kernels, see tools/kernels/build_triton.py."""
from build_triton import TYPES, job

MODULE = "moe-cuda-triton"
HERE = "src/main/triton/"
SOURCES = {name: (HERE + name + ".py", HERE + "table.py") for name in ("sort", "shrink", "combine")}


def sort_jobs(arch):
    out = [job("sort", "clear_kernel", "clear", arch, {}, dict(BLOCK=1024), 4, 2),
           job("sort", "batched_ids_kernel", "batched_ids", arch, {}, dict(BLOCK=256), 4, 2)]
    for lora in (False, True):
        flag = str(int(lora))
        out.append(job("sort", "count_kernel", "count", arch, {"lora": flag}, dict(LORA=lora, BP=256), 4, 2))
        out.append(job("sort", "scatter_kernel", "scatter", arch, {"lora": flag}, dict(LORA=lora, BP=256), 4, 2))
        for experts in (128, 512):
            for pairs, slots in ((p, s) for p in (0, 256, 1024) for s in ((4, 16, 64) if lora and experts == 128 else (16,) if lora else (1,))):
                out.append(job("sort", "place_kernel", "place", arch, {"lora": flag, "experts": str(experts), "pairs": str(pairs), "slots": str(slots)},
                               dict(LORA=lora, SCATTER=pairs > 0, E2=experts, BA=slots,
                                    BP=pairs or 256), 8, 2))
    return out


def type_jobs(arch, dtype):
    out = []
    if arch == 80:
        for source in TYPES:
            out.append(job("sort", "pack_kernel", "pack", arch, {"in": source, "type": dtype}, dict(BLOCK=1024), 4, 2, source, dtype))
    if dtype == "bf16":  # the tiles that want sorted rows are there for Hopper only, but every card finds every kernel
        for width in (1024, 4096):
            out.append(job("sort", "permute_kernel", "permute", arch, {"type": dtype, "width": str(width)}, dict(BH=width), 4, 2, dtype))
    for to in (dtype, "f32"):
        for k in (0, 1, 2, 4, 6, 8) if arch == 90 else (0,):
            for naive, width in ((True, 256), (False, 256), (False, 1024)):
                out.append(job("combine", "combine_kernel", "combine", arch,
                               {"type": dtype, "out": to, "k": str(k), "naive": str(int(naive)), "width": str(width)},
                               dict(K=k, NAIVE=naive, BN=width), 4, 2, dtype, to))
    return out


def shrink_jobs(arch, dtype, rich):
    """of: first two projections ("pair"), the only one of an activation without gate ("single"), or "down"."""
    out = []
    heights = (16, 32, 64) if rich else (16, 64)
    for of in ("pair", "single", "down"):
        widths = {16: (32, 64), 32: (32, 128), 64: (32, 128)} if of == "pair" else {16: (16, 32, 64), 32: (16, 64), 64: (16, 64)}
        for step, even in ((128, True), (64, True), (64, False)):
            for bs in heights:
                for br in widths[bs]:
                    if (not rich or of == "single") and (br not in (widths[bs][0], widths[bs][-1]) or step == 128):
                        continue
                    if not even and bs != 16:
                        continue
                    for gather in (False,) if of == "down" else (True, False) if rich and of == "pair" and even else (True,):
                        for naive in (False, True) if bs == 16 and (gather or of == "down") else (False,):
                            out.append(job(
                                "shrink", "shrink_kernel", "shrink", arch,
                                {"type": dtype, "of": of, "step": str(step), "any": str(int(not even)), "rows": str(bs), "ranks": str(br),
                                 "gather": str(int(gather)), "naive": str(int(naive))},
                                dict(FIRST=of == "pair", GATHER=gather, NAIVE=naive, BS=bs, BR=br, BK=step, EVEN_K=even,
                                     OF=2 if of == "down" else 0), 4, 4 if arch != 120 else 3, dtype))
    return out


def jobs(archs):
    out = []
    for arch in archs:
        out += sort_jobs(arch) if arch in (80, 90) else []  # later cards run the portable ones
        for dtype in ("bf16", "f16"):
            out += type_jobs(arch, dtype) if arch in (80, 90) else []
            out += shrink_jobs(arch, dtype, arch == 90 and dtype == "bf16")
    return out
