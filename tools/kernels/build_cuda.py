"""Compiles a module's CUDA C++ kernels to PTX: python3 build_cuda.py MODULE_DIR

Reads src/main/cuda/kernels.json of the module. `for` repeats an entry for every combination of values; the values fill
{placeholders} and become the kernel's constants. A parameter is `name*` (pointer) or `name:type`. A file with `split` gets a PTX
file an entry: the driver compiles what it is given, and large kernels take it long. `includes` are headers beside the source, `shared`
those of moe-cuda.
"""
import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import manifest

SHARED = "../moe-cuda/src/main/cuda/"


def parameter(text):
    return [text[:-1], "pointer"] if text.endswith("*") else text.split(":")


def one_entry(text, entry):
    """The PTX with all entries but one left out."""
    parts = re.split(r"(?m)^(?=\s*\.visible \.entry )", text)
    own = [p for p in parts[1:] if re.match(r"\s*\.visible \.entry " + re.escape(entry) + r"\b", p)]
    if len(own) != 1:
        raise SystemExit(f"entry {entry} is not in the PTX")
    return parts[0] + own[0]


def main(module_dir):
    module_dir = Path(module_dir)
    spec = json.loads((module_dir / "src/main/cuda/kernels.json").read_text())
    release = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    compiler = "nvcc " + re.search(r"V(\d+\.\d+\.\d+)", release).group(1)
    writer = manifest.Writer(module_dir, spec["module"])
    for file in spec["files"]:
        source = "src/main/cuda/" + file["source"]
        sources = writer.sources(source, *("src/main/cuda/" + i for i in file.get("includes", [])),
                                 *(SHARED + i for i in file.get("shared", [])))
        for arch in file.get("archs", spec["archs"]):
            options = ["-ptx", f"-arch={arch}", *spec["options"]]
            with tempfile.TemporaryDirectory() as tmp:
                out = Path(tmp) / "out.ptx"
                subprocess.run(["nvcc", *options, "-I", str(module_dir / SHARED), str(module_dir / source), "-o", str(out)], check=True)
                text = out.read_text()
            whole = None if file.get("split") else writer.ptx(arch, Path(source).stem, text)
            for kernel in file["kernels"]:
                axes = kernel.get("for", {})
                for values in itertools.product(*axes.values()):
                    constants = dict(zip(axes, values))
                    entry = kernel["entry"].format(**constants)
                    about = whole or writer.ptx(arch, entry, one_entry(text, entry))
                    writer.kernel(
                        text,
                        name=kernel["name"],
                        constants={**kernel.get("constants", {}), **constants},
                        sources=sources,
                        compiler=compiler,
                        options=" ".join(options),
                        entry=entry,
                        params=[parameter(p) for p in kernel["params"]],
                        threads=kernel["threads"],
                        sharedBytes=kernel.get("sharedBytes", 0),
                        # Waiting for the predecessor inside the kernel exists from 9.0 on.
                        pdl=int(re.search(r"\d+", arch).group()) >= 90,
                        **about,
                    )
    writer.save()


if __name__ == "__main__":
    main(sys.argv[1])
