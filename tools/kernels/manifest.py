"""Writes META-INF/moe4j/kernels/MODULE/manifest.json and the PTX files beside it.

Shared by the builders of CUDA C++ and Triton kernels, so that every module's manifest has one form
(see io.moe4j.cuda.KernelLibrary). Python 3.9 or later, standard library only.
"""
import gzip
import hashlib
import json
import re
from pathlib import Path

ROOT = "src/main/resources/META-INF/moe4j/kernels"
# What PTX declares for each parameter type of the manifest: (size in bytes, alignment).
SIZES = {"pointer": 8, "null": 8, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "f32": 4, "f64": 8, "tensor_map": 128}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def ptx_version(ptx: str) -> str:
    return re.search(r"^\.version (\d+\.\d+)", ptx, re.M).group(1)


def ptx_param_sizes(ptx: str, entry: str) -> list:
    """Sizes in bytes of an entry's parameters, in order."""
    m = re.search(r"\.entry\s+" + re.escape(entry) + r"\s*\(([^)]*)\)", ptx)
    if not m:
        raise SystemExit(f"entry {entry} is not in the PTX")
    sizes = []
    for p in filter(None, (x.strip() for x in m.group(1).split(","))):
        bits = re.search(r"\.[busf](8|16|32|64)\b", p)
        array = re.search(r"\[(\d+)\]", p)
        sizes.append(int(bits.group(1)) // 8 * (int(array.group(1)) if array else 1))
    return sizes


def clean(ptx: str) -> str:
    """Drops comments and debug information: the text must not depend on where it was compiled. Shortens names and space: it is kept compressed."""
    lines, debug = [], False
    for line in ptx.splitlines():
        text = line.strip()
        debug = debug or text.startswith(".section") and ".debug_" in text
        if text and not debug and not text.startswith(("//", ".file ", ".loc ", ".file\t", ".loc\t")):
            lines.append(line)
        debug = debug and not text.endswith("}")
    text = re.sub(r"(?m)^[ \t]+", "", "\n".join(lines) + "\n")
    text = re.sub(r"[ \t]+", " ", text).replace(", ", ",")
    text = re.sub(r"\b\w+_param_(\d+)\b", r"p\1", text)
    return re.sub(r"\$L__BB(\d+)_", r"$L\1_", text)


class Writer:
    """Collects kernels of one module; `save` writes everything and removes what is no longer used."""

    def __init__(self, module_dir, module):
        self.dir = Path(module_dir)
        self.module = module
        self.out = self.dir / ROOT / module
        self.kernels = []
        self.files = {}

    def ptx(self, arch: str, name: str, text: str) -> dict:
        """Adds a PTX file (several kernels may share it); returns the manifest's parts about it."""
        path = f"{arch}/{name}.ptx.gz"
        data = gzip.compress(clean(text).encode(), 9, mtime=0)
        self.files[path] = data
        return {"arch": arch, "ptxIsa": ptx_version(text), "ptx": path, "ptxSha256": sha256(data)}

    def sources(self, *paths) -> dict:
        """Hashes of source files, given relative to the module; the first is the kernel's own."""
        return {str(p): sha256((self.dir / p).read_bytes()) for p in paths}

    def kernel(self, text: str, **entry):
        """Adds a kernel after comparing its parameters with the PTX."""
        declared = ptx_param_sizes(text, entry["entry"])
        listed = [SIZES[t] for _, t in entry["params"]]
        if declared != listed:
            raise SystemExit(f"{entry['entry']}: the PTX takes {declared} bytes, the manifest lists {listed}")
        self.kernels.append(entry)

    def save(self):
        self.out.mkdir(parents=True, exist_ok=True)
        for old in self.out.glob("*/*.ptx*"):
            if str(old.relative_to(self.out)) not in self.files:
                old.unlink()
        for path, data in self.files.items():
            file = self.out / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        lines = ",\n".join("    " + json.dumps(k) for k in self.kernels)
        head = json.dumps({"format": 1, "module": self.module})[:-1]
        (self.out / "manifest.json").write_text(f"{head}, \"kernels\": [\n{lines}\n  ]\n}}\n")
        total = sum(map(len, self.files.values()))
        print(f"{self.module}: {len(self.kernels)} kernels in {len(self.files)} PTX files, {total / 1024:.0f} KiB")
