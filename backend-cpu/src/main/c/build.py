"""Compiles the C kernels of backend-cpu: python3 build.py MODULE_DIR [TARGET...]

Writes META-INF/moe4j/kernels/backend-cpu: one library for each target, and manifest.properties with the hashes of what it was
made from. Needs gcc (for aarch64 also its cross compiler). A target whose compiler is missing keeps its library, if that is
current, and is an error otherwise. Python 3.9 or later, standard library only.
"""
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OUT = "src/main/resources/META-INF/moe4j/kernels/backend-cpu"
COMMON = ["-std=gnu11", "-O3", "-ffp-contract=fast", "-fPIC", "-fvisibility=hidden", "-ffreestanding", "-fno-stack-protector",
          "-fno-asynchronous-unwind-tables", "-fstack-clash-protection", "-Wall", "-Wextra", "-Werror"]
LINK = ["-shared", "-nostdlib", "-Wl,-z,noexecstack", "-Wl,-z,relro,-z,now", "-Wl,--build-id=none", "-Wl,--gc-sections", "-s"]
NO_CET = ["-fcf-protection=none"]
AVX512 = NO_CET + ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mprefer-vector-width=512"]
TARGETS = {
    "linux-x86-64": ("gcc", {
        "moe.c": NO_CET + ["-fno-tree-loop-distribute-patterns"],
        "avx2.c": NO_CET + ["-mavx2", "-mfma", "-mf16c"],
        "avx512.c": AVX512,
        "avx512bf16.c": AVX512 + ["-mavx512bf16"],
        "vnni.c": AVX512 + ["-mavx512vnni"],
        "amx.c": AVX512 + ["-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
    }),
    "linux-aarch64": ("aarch64-linux-gnu-gcc", {
        "moe.c": ["-fno-tree-loop-distribute-patterns"],
        "neon.c": [],
        "neonbf16.c": ["-march=armv8.2-a+bf16"],
        "neoni8mm.c": ["-march=armv8.2-a+i8mm"],
    }),
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def build(module, target):
    compiler, files = TARGETS[target]
    source = module / "src/main/c"
    with tempfile.TemporaryDirectory() as tmp:
        objects = []
        for name, options in files.items():
            o = Path(tmp) / (name + ".o")
            subprocess.run([compiler, *COMMON, *options, f"-ffile-prefix-map={source}=.", "-c", str(source / name), "-o", str(o)], check=True)
            objects.append(str(o))
        library = Path(tmp) / "libmoe.so"
        subprocess.run([compiler, *LINK, *objects, "-o", str(library)], check=True)
        return library.read_bytes()


def main(module, targets):
    module = Path(module)
    source, out = module / "src/main/c", module / OUT
    entries = {"source." + p.name: sha256(p.read_bytes()) for p in sorted(source.iterdir()) if p.suffix in (".c", ".h", ".py")}
    for target in targets or TARGETS:
        compiler = TARGETS[target][0]
        if not shutil.which(compiler):
            raise SystemExit(f"{target} needs {compiler}")
        library = build(module, target)
        file = out / target / "libmoe.so"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(library)
        version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
        entries[f"library.{target}"] = sha256(library)
        entries[f"compiler.{target}"] = re.sub(r"\s+", " ", version)
        print(f"{target}: {len(library) / 1024:.0f} KiB, {version}")
    lines = [f"{k} = {v}" for k, v in sorted(entries.items())]
    (out / "manifest.properties").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
