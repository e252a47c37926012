"""Compiles kernels of this module to cubins for tests on a card: build.py OUT WORKERS REGEX.. (MOE_NVCC_FLAGS: more flags)"""
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "main/cuda"


def kernels():
    for q, groups in (("U4", (0, 1, 2, 4)), ("U8", (0, 1, 2, 4)), ("E4M3", (0, 1, 2)), ("E2M1", (2, 4))):
        for sg, zero in [(sg, z) for sg in groups for z in ((0, 1) if q[0] == "U" and sg else (0,))]:
            for t in ("Bf16", "F16"):
                for gated in (0, 1):
                    for kind, heights in (("narrow", (8, 16, 32, 64)), ("wide", (16, 32, 64, 128))):
                        for nt in heights:
                            name = f"moe_{kind}_{q.lower()}_{t.lower()}_{nt}_{sg}{"z" * zero}_{gated}"
                            blocks = (3 if nt == 8 else 2 if nt <= 32 else 1) if kind == "narrow" else 2 if nt <= 64 else 1
                            yield kind, name, f"{kind.upper()}({name},{q},{t},{nt},{sg},{str(bool(zero)).lower()},{str(bool(gated)).lower()},{blocks})"


def build(out, job):
    kind, name, text = job
    source = SOURCES / (kind + ".cu")
    if text:
        source = out / (name + ".cu")
        source.write_text(f'#include "{kind}.cu"\n{text}\n')
    r = subprocess.run(["nvcc", "-gencode=arch=compute_90a,code=sm_90a", "-O3", "-std=c++17", *os.environ.get("MOE_NVCC_FLAGS", "").split(), "-I", str(SOURCES), "-cubin", str(source), "-o",
                        str(out / (name + ".cubin"))], capture_output=True, text=True)
    if r.returncode or "arning" in r.stderr:
        print(name, r.stderr[:600], flush=True)


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    jobs = [k for k in kernels() if any(re.fullmatch(r, k[1][4:]) for r in sys.argv[3:])]
    jobs.sort(key=lambda j: j[0] != "wide")
    repack = out / "repack.cubin"
    with ThreadPoolExecutor(int(sys.argv[2])) as pool:
        list(pool.map(lambda j: build(out, j), [("repack", "repack", ""), ("permute", "moe_permute_inputs", "")] + jobs))
    for entry in ("moe_repack_codes", "moe_repack_scales"):
        (out / (entry + ".cubin")).write_bytes(repack.read_bytes())
    print(len(jobs), "kernels", flush=True)


if __name__ == "__main__":
    main()
