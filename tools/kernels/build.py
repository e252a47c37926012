"""Compiles the kernels that jars carry, of some modules or all: python3 tools/kernels/build.py [MODULE...]

Works in a clean clone; nothing has to be built or installed before. C needs gcc (for aarch64 also aarch64-linux-gnu-gcc), CUDA C++ nvcc
13.0, Triton a python3 with triton 3.6.0; no GPU. A plain build takes what is committed. `mvn -N -Pkernels
generate-sources` is the same, -Dkernels="MODULE..." names modules.
"""
import importlib.util
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parents[1]

# What a module has, and what compiles it.
KINDS = [
    ("src/main/c/build.py", lambda module: module / "src/main/c/build.py"),
    ("src/main/triton/jobs.py", lambda module: TOOLS / "build_triton.py"),
    ("src/main/cuda/kernels.json", lambda module: TOOLS / "build_cuda.py"),
]


def modules():
    """All modules with kernels; moe-cuda first, whose headers others include."""
    found = {p.parent for p in ROOT.glob("*/pom.xml") if any((p.parent / f).exists() for f, _ in KINDS)}
    return sorted((m.name for m in found), key=lambda name: (name != "moe-cuda", name))


def main(names):
    known = modules()
    unknown = [n for n in names if n not in known]
    if unknown:
        raise SystemExit(f"{', '.join(unknown)}: no module with kernels; accepted: {', '.join(known)}")
    for name in names or known:
        for file, script in KINDS:
            if not (ROOT / name / file).exists():
                continue
            if file.startswith("src/main/triton") and importlib.util.find_spec("triton") is None:
                raise SystemExit(f"{name} has Triton kernels, but {sys.executable} has no triton: pip install triton==3.6.0")
            print(f"{name}: {Path(file).parent}", flush=True)
            code = subprocess.run([sys.executable, script(ROOT / name), ROOT / name]).returncode
            if code != 0:
                raise SystemExit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
