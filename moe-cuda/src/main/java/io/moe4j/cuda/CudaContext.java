package io.moe4j.cuda;

import io.moe4j.api.DeviceException;
import io.moe4j.api.platform.DeviceInfo;
import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicLong;
import jcuda.Pointer;
import jcuda.driver.CUcontext;
import jcuda.driver.CUdevice;
import jcuda.driver.CUfunction;
import jcuda.driver.CUjit_option;
import jcuda.driver.CUmodule;
import jcuda.driver.CUresult;
import jcuda.driver.JCudaDriver;
import jcuda.driver.JITOptions;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The primary context of one device, shared by every {@link CudaDevice} opened on it and with
 * whatever else in the process uses the runtime API. Counts its users; the last one unloads the
 * kernels and gives the context back.
 */
final class CudaContext {
  private static final Logger LOG = LoggerFactory.getLogger(CudaContext.class);
  private static final Map<Integer, CudaContext> OPEN = new HashMap<>();
  private static final int JIT_LOG_BYTES = 8192;

  private record KernelKey(String ptxSha256, String entry) {}

  private final DeviceInfo info;
  private final CUdevice device = new CUdevice();
  private final CUcontext context = new CUcontext();

  /**
   * By the sha256 of their PTX: same bytes, same module, whichever library object they came from.
   */
  private final Map<String, CUmodule> modules = new HashMap<>();

  private final Map<KernelKey, Kernel> kernels = new HashMap<>();
  private final AtomicLong allocated = new AtomicLong();
  private final AtomicLong pinned = new AtomicLong();
  private final List<StreamGuard> guards = new CopyOnWriteArrayList<>();
  private int users;

  private CudaContext(DeviceInfo info) {
    this.info = info;
    Cu.check(JCudaDriver.cuDeviceGet(device, info.id().ordinal()), "cuDeviceGet");
    Cu.check(
        JCudaDriver.cuDevicePrimaryCtxRetain(context, device),
        "cuDevicePrimaryCtxRetain",
        () -> info.id().toString());
  }

  static CudaContext retain(DeviceInfo info) {
    synchronized (OPEN) {
      CudaContext c = OPEN.computeIfAbsent(info.id().ordinal(), o -> new CudaContext(info));
      c.users++;
      return c;
    }
  }

  void release() {
    synchronized (OPEN) {
      if (--users > 0) {
        return;
      }
      OPEN.remove(info.id().ordinal());
      makeCurrent();
      synchronized (modules) {
        kernels.values().forEach(Kernel::unloaded);
        kernels.clear();
        modules.values().forEach(m -> Cu.check(JCudaDriver.cuModuleUnload(m), "cuModuleUnload"));
        modules.clear();
      }
      Cu.check(JCudaDriver.cuDevicePrimaryCtxRelease(device), "cuDevicePrimaryCtxRelease");
    }
  }

  /** Device memory taken by buffers and not given back. */
  AtomicLong allocated() {
    return allocated;
  }

  /** Page-locked host memory taken by buffers and not given back. */
  AtomicLong pinned() {
    return pinned;
  }

  DeviceInfo info() {
    return info;
  }

  /** The driver's, for calls in which another device takes part. */
  CUcontext handle() {
    return context;
  }

  /** Those whose work on streams may fail unseen by the driver. */
  List<StreamGuard> guards() {
    return guards;
  }

  /**
   * Driver calls act on the calling thread's current context; whoever else runs here may have
   * changed it.
   */
  void makeCurrent() {
    int r = JCudaDriver.cuCtxSetCurrent(context);
    if (r != CUresult.CUDA_SUCCESS) {
      throw Cu.error(r, "cuCtxSetCurrent", info.id().toString());
    }
  }

  Kernel kernel(KernelLibrary library, KernelSpec spec) {
    synchronized (modules) {
      Kernel known = kernels.get(new KernelKey(spec.ptxSha256(), spec.entry()));
      if (known != null) {
        return known;
      }
      makeCurrent();
      CUmodule module = modules.computeIfAbsent(spec.ptxSha256(), k -> load(library, spec));
      CUfunction function = new CUfunction();
      Cu.check(
          JCudaDriver.cuModuleGetFunction(function, module, spec.entry()),
          "cuModuleGetFunction",
          () -> "kernel " + spec.id() + ", entry " + spec.entry());
      Kernel kernel = new Kernel(this, spec, function);
      kernels.put(new KernelKey(spec.ptxSha256(), spec.entry()), kernel);
      return kernel;
    }
  }

  private CUmodule load(KernelLibrary library, KernelSpec spec) {
    byte[] ptx = library.ptx(spec);
    ByteBuffer text = ByteBuffer.allocateDirect(ptx.length + 1).put(ptx).put((byte) 0).rewind();
    CUmodule module = new CUmodule();
    long start = System.nanoTime();
    int result =
        JCudaDriver.cuModuleLoadDataEx(
            module, Pointer.to(text), 0, new int[0], Pointer.to(new int[0]));
    if (result != CUresult.CUDA_SUCCESS) {
      throw loadError(result, library, spec, text);
    }
    LOG.debug(
        "{}: loaded {} of {} in {} ms",
        info.id(),
        spec.ptx(),
        library.module(),
        (System.nanoTime() - start) / 1_000_000);
    return module;
  }

  /** Compiles once more to hear what the driver's compiler has to say. */
  private static DeviceException loadError(
      int result, KernelLibrary library, KernelSpec spec, ByteBuffer text) {
    JITOptions options = new JITOptions();
    options.putBytes(CUjit_option.CU_JIT_ERROR_LOG_BUFFER, new byte[JIT_LOG_BYTES]);
    JCudaDriver.cuModuleLoadDataJIT(new CUmodule(), Pointer.to(text), options);
    String log = options.getString(CUjit_option.CU_JIT_ERROR_LOG_BUFFER);
    return Cu.error(
        result,
        "cuModuleLoadDataEx",
        "kernel "
            + spec.id()
            + " of "
            + library.module()
            + " ("
            + spec.ptx()
            + ", PTX "
            + spec.ptxIsa()
            + ")"
            + (log == null || log.isBlank() ? "" : "; " + log.strip()));
  }
}
