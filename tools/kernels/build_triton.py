"""Compiles a module's Triton kernels to PTX, ahead of time and without a GPU:
python3 build_triton.py MODULE_DIR [--workers N] [--arch 90 ...]

Needs triton 3.6.0 (and nothing else). Called by build.py; writes src/main/resources/META-INF/moe4j/kernels. What is compiled:
src/main/triton/jobs.py of the module, which names the library (MODULE), the source files of each kernel (SOURCES, relative to the
module; the first has the kernel), and has jobs(archs).
"""
import argparse
import importlib
import multiprocessing
import os
import sys
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ROOT = Path(__file__).resolve().parents[2]
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
    fn = getattr(importlib.import_module(j["module"]), j["fn"])
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


def check_pipeline(j, ttgir):
    """No wgmma in a loop may read an operand from registers: see gemm.py."""
    for line in ttgir.splitlines():
        if "ttng.warp_group_dot " in line and "isAsync = true" in line and "#ttg.dot_op" in line:
            raise SystemExit(f"{j['name']} {j['constants']}: asynchronous wgmma with a register operand\n{line}")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("module_dir", type=Path)
    ap.add_argument("--workers", type=int, default=os.cpu_count())
    ap.add_argument("--keep-going", action="store_true", help="leave out what does not compile, and say so")
    ap.add_argument("--arch", type=int, nargs="*", default=list(ARCHS))
    a = ap.parse_args()
    # The shared kernels and what other modules' kernels use of them are moe-cuda's.
    sys.path[:0] = [str(a.module_dir.resolve() / "src/main/triton"), str(ROOT / "moe-cuda/src/main/triton")]
    import jobs as module
    import manifest
    jobs = module.jobs(a.arch)
    writer = manifest.Writer(a.module_dir, module.MODULE)
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
            writer.kernel(r["ptx"], name=j["name"], constants=r["constants"],
                          sources=writer.sources(*module.SOURCES[j["module"]]),
                          compiler="triton " + triton.__version__, options=", ".join(f"{k}={v}" for k, v in r["options"].items()),
                          entry=r["entry"], params=r["params"], threads=r["threads"], sharedBytes=r["shared"],
                          pdl=j["arch"] >= 90, **writer.ptx(target, file, r["ptx"]))
            if n % 50 == 49:
                print(f"{n + 1} of {len(jobs)}", flush=True)
    writer.save()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
