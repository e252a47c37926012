"""PTX and cubins on a card, launched through libcuda: what the tests and the bench of the kernels run on (PyTorch only holds the memory)."""
import ctypes as C
import gzip
import json
from pathlib import Path

import torch


class Attribute(C.Structure):
    _fields_ = [("id", C.c_int), ("pad", C.c_int), ("value", C.c_uint * 16)]


class Config(C.Structure):
    _fields_ = [("grid", C.c_uint * 3), ("block", C.c_uint * 3), ("shared", C.c_uint), ("stream", C.c_void_p), ("attributes", C.POINTER(Attribute)),
                ("count", C.c_uint)]


CLUSTER, DEPENDENT = 4, 6
DRY = not torch.cuda.is_available()
DEV = "cpu" if DRY else "cuda"
cu = None if DRY else C.CDLL("libcuda.so.1")
TYPES = {"pointer": C.c_uint64, "i32": C.c_int32, "i64": C.c_int64, "f32": C.c_float}


def check(rc, what):
    if rc:
        raise RuntimeError(f"{what}: CUDA error {rc}")


class Kernel:
    def __init__(self, function, params, threads, shared, pdl, name):
        self.function, self.params, self.threads, self.shared, self.pdl, self.name, self.most = function, params, threads, shared, pdl, name, 0

    def __call__(self, grid, args, shared=None, cluster=1):
        """args: by name; tensors, None or numbers."""
        values = []
        for name, kind in self.params:
            v = 0 if kind == "null" else args[name]
            if isinstance(v, torch.Tensor):
                v = v.data_ptr()
            v = 0 if v is None else v
            values.append(TYPES.get(kind, C.c_uint64)(v if kind == "f32" else int(v)))
        grid = grid if isinstance(grid, tuple) else (grid, 1)
        if DRY or grid[0] == 0:
            return
        shared = self.shared if shared is None else shared
        if shared > self.most:
            check(cu.cuFuncSetAttribute(self.function, 8, shared), self.name + " shared memory")
            self.most = shared
        array = (C.c_void_p * len(values))(*(C.cast(C.pointer(v), C.c_void_p) for v in values))
        attributes = (Attribute * 2)()
        n = 0
        if self.pdl:
            attributes[n].id, attributes[n].value[0] = DEPENDENT, 1
            n += 1
        if cluster > 1:
            attributes[n].id = CLUSTER
            attributes[n].value[0], attributes[n].value[1], attributes[n].value[2] = cluster, 1, 1
            n += 1
        config = Config((C.c_uint * 3)(*grid, 1), (C.c_uint * 3)(self.threads, 1, 1), shared, torch.cuda.current_stream().cuda_stream, attributes, n)
        check(cu.cuLaunchKernelEx(C.byref(config), self.function, array, None), self.name)


def module(data):
    if DRY:
        return None
    torch.zeros(1, device="cuda")
    m = C.c_void_p()
    check(cu.cuModuleLoadData(C.byref(m), data), "module")
    return m


def function(m, entry):
    if DRY:
        return None
    f = C.c_void_p()
    check(cu.cuModuleGetFunction(C.byref(f), m, entry.encode()), entry)
    return f


class Library:
    """Kernels of a manifest, for 9.0."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.kernels = json.loads((self.folder / "manifest.json").read_text())["kernels"]
        self.loaded, self.modules = {}, {}

    def find(self, name, **constants):
        best = None
        for k in self.kernels:
            if k["name"] == name and k["arch"] in ("sm_80", "sm_90", "sm_90a") and all(k["constants"].get(a) == str(b) for a, b in constants.items()):
                if best is None or k["arch"] > best["arch"]:
                    best = k
        return best

    def get(self, name, **constants):
        key = (name, tuple(sorted(constants.items())))
        if key not in self.loaded:
            k = self.find(name, **constants)
            if k is None:
                raise KeyError(key)
            if k["ptx"] not in self.modules:
                self.modules[k["ptx"]] = module(gzip.decompress((self.folder / k["ptx"]).read_bytes()) + b"\0")
            self.loaded[key] = Kernel(function(self.modules[k["ptx"]], k["entry"]), k["params"], k["threads"], k["sharedBytes"], k["pdl"], k["entry"])
        return self.loaded[key]


GEMM = [(n, t) for t, names in (
    ("pointer", "x w ratio zero channel bias tw y table ids expert_map mapping pairs gtile nums seg_of pga pgb pgm s part"),
    ("i32", "has_map has_bias on_input first gather lora naive act"), ("f32", "alpha beta limit"),
    ("i32", "P TOPK N KD EG E NS RS SU SPLIT GM wait early group_shift warps_k phase")) for n in names.split()]
REPACK_CODES = [("data", "pointer"), ("perm", "pointer"), ("out", "pointer"), ("k_stride", "i64"), ("n_stride", "i64")] + [
    (n, "i32") for n in "word_bytes bits along_k awq flip N KD".split()]
REPACK_SCALES = [(n, "pointer") for n in "scales global zeros ratio zero channel".split()] + [
    (n, "i64") for n in "n_stride g_stride zero_n_stride zero_g_stride".split()] + [
    (n, "i32") for n in "type divide n_block group zero_bits zero_along_k zero_awq zero_flip zero_add zero_word_bytes SG group_shift N KD".split()]

PERMUTE = [(n, "pointer") for n in "x out perm ids expert_map pairs gtile nums".split()] + [
    (n, "i32") for n in "has_map gather naive P TOPK KD EG E".split()]


class Cubins:
    """Kernels of this module, each in a file of its own name."""

    def __init__(self, folder):
        self.folder, self.loaded = Path(folder), {}

    def has(self, entry):
        return DRY or (self.folder / (entry + ".cubin")).exists()

    def get(self, entry, params, threads=256, pdl=True):
        if entry not in self.loaded:
            data = b"" if DRY else (self.folder / (entry + ".cubin")).read_bytes()
            self.loaded[entry] = Kernel(function(module(data), entry), params, threads, 0, pdl, entry)
        return self.loaded[entry]
