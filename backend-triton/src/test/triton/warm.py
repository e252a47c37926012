"""Compiles what jobs would launch, in parallel and without a device, into Triton's disk cache."""
import multiprocessing as mp
import time

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import layer as L


class NoDevice:
    get_current_device = lambda s: 0
    get_current_stream = lambda s, d=None: 0
    get_current_target = lambda s: GPUTarget("cuda", 90, 32)


def warm(jobs, workers, launcher=None):
    """jobs: no-argument functions that call Layer.forward on meta tensors."""
    t0 = time.time()

    def work():
        driver.set_active(NoDevice())
        done = set()

        def compile_only(kernel, grid, *args, **meta):
            ck = kernel.warmup(*args, grid=grid, **meta)
            if ck is not None and ck.hash not in done:
                done.add(ck.hash)
                try:  # the host-side stub is compiled too, where there is a driver library to link
                    from triton.backends.nvidia.driver import CudaLauncher
                    CudaLauncher(ck.src, ck.metadata)
                except AssertionError:
                    pass

        L.Layer.launch = staticmethod(compile_only)
        if launcher:
            launcher(compile_only)
        while True:
            with nxt.get_lock():
                i = nxt.value
                nxt.value += 1
            if i >= len(jobs):
                return
            try:
                jobs[i]()
            except Exception as ex:  # noqa: BLE001 - reported, and the run that needs it fails again
                print("compile failed:", i, repr(ex)[:400], flush=True)

    ctx = mp.get_context("fork")
    nxt = ctx.Value("i", 0)
    ps = [ctx.Process(target=work) for _ in range(workers)]
    for p in ps:
        p.start()
    for p in ps:
        p.join()
    print(f"compiled in {time.time() - t0:.0f} s", flush=True)
