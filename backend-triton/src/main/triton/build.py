"""Compiles this module's kernels to PTX, ahead of time and without a GPU: python3 build.py [MODULE_DIR] [--workers N] [--arch 90 ...]

Needs triton 3.6.0 (and nothing else). Called by `mvn -Pkernels`; writes src/main/resources/META-INF/moe4j/kernels/backend-triton.
What is compiled: variants.py for the tiles, `kernels` below for everything else.
"""
import argparse
import multiprocessing
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parents[3] / "tools" / "kernels"))

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

import gemm  # noqa: E402
import shrink  # noqa: E402
import sort  # noqa: E402
import variants  # noqa: E402

ARCHS = (80, 90, 100, 120)
TYPES = {"bf16": "bf16", "f16": "fp16", "f32": "fp32"}
ELEMENTS = ("origin", "x", "w", "y", "s", "xs")
FLOATS = ("bias", "tw", "part")
WORDS = ("table", "pga", "pgb", "pgm", "pg13a", "pg13b", "pg13m", "pg2a", "pg2m")
SCALARS = {"alpha": "fp32", "beta": "fp32", "limit": "fp32"}
INTS = ("has_map", "has_bias", "has_slots", "on_input", "keep", "act", "ROWS", "COLUMNS", "TO_ROWS", "TO_COLUMNS", "P", "TOPK", "N", "H", "KD", "EG", "E", "NS", "NA", "BM", "BS", "RS", "SU", "NC",
        "SPLIT", "GM", "early")
LONGS = ("s0", "s1", "s2")
CALLERS = ("ids", "expert_map", "mapping", "tw", "counts")  # tensors of the caller: nothing is known of their alignment
SOURCES = {sort: "sort.py", shrink: "shrink.py", gemm: "gemm.py"}
HELPERS = {"sort.py": ("table.py",), "shrink.py": ("table.py",), "gemm.py": ("table.py", "activation.py", "mxfp4.py")}


def source_of(fn, dtype, out, descriptors, constexprs):
    """Signature, alignment hints and constants of one variant."""
    signature, attrs = {}, {}
    for i, name in enumerate(fn.arg_names):
        if name in constexprs:
            signature[name] = "constexpr"
            continue
        hint = 16
        if name in descriptors:
            signature[name] = f"tensordesc<{TYPES[dtype]}[{descriptors[name][0]}, {descriptors[name][1]}]>"
            continue
        if name in SCALARS:
            signature[name] = SCALARS[name]
            continue
        if name in INTS:
            signature[name] = "i32"
            # Rows are whole numbers of 16-byte vectors, and s is padded to pages.
            hint = 8 if name in ("N", "H", "KD") else 16 if name in ("RS", "SU") else 1
        elif name in LONGS or name == "n" and fn.fn.__name__ == "pack_kernel":
            signature[name] = "i64"
            hint = 1
        elif name == "n":
            signature[name] = "i32"
            hint = 1
        elif name == "out":
            signature[name] = "*" + TYPES[out]
        elif name == "ws" or name == "w" and constexprs.get("MX"):
            signature[name] = "*u8"
            hint = 16 if name == "w" else 1
        elif name in ELEMENTS:
            signature[name] = "*" + TYPES[dtype]
        elif name in FLOATS:
            signature[name] = "*fp32"
        elif name in WORDS:
            signature[name] = "*i64"
        else:
            signature[name] = "*i32"
        if name in CALLERS or name == "x" and fn.fn.__name__ == "pack_kernel":
            hint = 1
        if hint > 1:
            attrs[(i,)] = [["tt.divisibility", hint]]
    return ASTSource(fn=fn, signature=signature, constexprs=constexprs, attrs=attrs)


def manifest_params(fn, constexprs, descriptors, signature):
    names = {"i32": "i32", "i64": "i64", "fp32": "f32"}
    params = []
    for name in fn.arg_names:
        if name in constexprs:
            continue
        if name in descriptors:
            params += [[name, "tensor_map"], [name + ".rows", "i32"], [name + ".columns", "i32"], [name + ".row_stride", "i64"],
                       [name + ".column_stride", "i64"]]
        else:
            params.append([name, names.get(signature[name], "pointer")])
    return params + [["global_scratch", "null"], ["profile_scratch", "null"]]


def job(module, fn, name, arch, constants, constexprs, warps, stages, dtype="bf16", out="bf16", descriptors=None):
    return dict(module=module, fn=fn, name=name, arch=arch, constants=constants, constexprs=dict(constexprs, PDL=arch >= 90), warps=warps,
                stages=stages, dtype=dtype, out=out, descriptors=descriptors or {})


def try_job(j):
    try:
        return compile_job(j)
    except Exception as ex:  # noqa: BLE001 - handed to the parent, which stops or goes on
        return dict(error=repr(ex)[:500])


def compile_job(j):
    fn = getattr({"sort": sort, "shrink": shrink, "gemm": gemm}[j["module"]], j["fn"])
    src = source_of(fn, j["dtype"], j["out"], j["descriptors"], j["constexprs"])
    options = dict(num_warps=j["warps"], num_stages=j["stages"], launch_pdl=j["arch"] >= 90)
    ck = triton.compile(src, target=GPUTarget("cuda", j["arch"], 32), options=options)
    m = ck.metadata
    if m.global_scratch_size or m.profile_scratch_size:
        raise SystemExit(f"{j['name']} {j['constants']}: needs scratch memory, which nobody passes")
    constants = dict(j["constants"])
    for d, about in zip(j["descriptors"], m.tensordesc_meta or ()):
        constants[d] = f"{about['block_size'][0]}x{about['block_size'][1]}-swizzle{about['swizzle']}"
    return dict(ptx=ck.asm["ptx"], ttgir=ck.asm["ttgir"], shared=m.shared, entry=m.name, constants=constants, options=options,
                params=manifest_params(fn, j["constexprs"], j["descriptors"], src.signature), threads=m.num_warps * 32)


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
                out.append(job("gemm", "combine_kernel", "combine", arch,
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


def kernels(archs):
    out = []
    for arch in archs:
        out += sort_jobs(arch) if arch in (80, 90) else []  # later cards run the portable ones
        for dtype in ("bf16", "f16"):
            out += type_jobs(arch, dtype) if arch in (80, 90) else []
            out += shrink_jobs(arch, dtype, arch == 90 and dtype == "bf16")
            out += gemm_jobs(arch, dtype)
        out += mxfp4_jobs(arch)
    return out


def check_pipeline(j, ttgir):
    """No wgmma in a loop may read an operand from registers: see gemm.py."""
    for line in ttgir.splitlines():
        if "ttng.warp_group_dot " in line and "isAsync = true" in line and "#ttg.dot_op" in line:
            raise SystemExit(f"{j['name']} {j['constants']}: asynchronous wgmma with a register operand\n{line}")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("module_dir", nargs="?", default=str(HERE.parents[2]))
    ap.add_argument("--workers", type=int, default=os.cpu_count())
    ap.add_argument("--keep-going", action="store_true", help="leave out what does not compile, and say so")
    ap.add_argument("--arch", type=int, nargs="*", default=list(ARCHS))
    a = ap.parse_args()
    import manifest
    jobs = kernels(a.arch)
    writer = manifest.Writer(a.module_dir, "backend-triton")
    failed = 0
    with multiprocessing.get_context("fork").Pool(a.workers) as pool:
        done = pool.imap(try_job, jobs, chunksize=1)
        for n, (j, r) in enumerate(zip(jobs, done)):
            if "error" in r:
                print(f"{j['name']} {j['arch']} {j['constants']}: {r['error']}", flush=True)
                failed += 1
                if not a.keep_going:
                    raise SystemExit(1)
                continue
            check_pipeline(j, r["ttgir"])
            target = {80: "sm_80", 90: "sm_90a", 100: "sm_100a", 120: "sm_120a"}[j["arch"]]
            file = "-".join([j["name"], *(v for v in j["constants"].values())])
            main_source = j["module"] + ".py"
            writer.kernel(r["ptx"], name=j["name"], constants=r["constants"],
                          sources=writer.sources(*("src/main/triton/" + s for s in (main_source, *HELPERS[main_source]))),
                          compiler="triton " + triton.__version__, options=", ".join(f"{k}={v}" for k, v in r["options"].items()),
                          entry=r["entry"], params=r["params"], threads=r["threads"], sharedBytes=r["shared"],
                          pdl=j["arch"] >= 90, **writer.ptx(target, file, r["ptx"]))
            if n % 50 == 49:
                print(f"{n + 1} of {len(jobs)}", flush=True)
    writer.save()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
