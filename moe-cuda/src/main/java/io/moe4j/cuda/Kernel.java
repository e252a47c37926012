package io.moe4j.cuda;

import io.moe4j.cuda.ffi.CUlaunchAttribute_st;
import io.moe4j.cuda.ffi.CudaDriver;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import jcuda.driver.CUfunction;
import jcuda.driver.CUfunction_attribute;
import jcuda.driver.JCudaDriver;

/**
 * A kernel loaded on a device. Belongs to the device and ends with it. Safe for several threads:
 * each has a parameter block of its own.
 */
public final class Kernel {
  private static final int DEFAULT_SHARED_LIMIT = 48 * 1024;
  private static final int PORTABLE_CLUSTER = 8;

  private final CudaContext context;
  private final KernelSpec spec;
  private final MemorySegment function;
  private final CUfunction handle;
  private final ParamType[] types;
  private final int[] offsets;
  private final int paramBytes;
  private final boolean pdl;
  // By blocks a cluster; 0: the manifest's where it is not portable.
  private final MemorySegment[] attributes = new MemorySegment[PORTABLE_CLUSTER + 1];
  private int sharedLimit = DEFAULT_SHARED_LIMIT;
  private volatile boolean loaded = true;

  Kernel(CudaContext context, KernelSpec spec, CUfunction handle) {
    this.context = context;
    this.spec = spec;
    this.handle = handle;
    this.function = Handles.segment(handle);
    int n = spec.params().size();
    this.types = new ParamType[n];
    this.offsets = new int[n];
    int end = 0;
    for (int i = 0; i < n; i++) {
      types[i] = spec.params().get(i).type();
      offsets[i] = (end + types[i].alignment() - 1) & -types[i].alignment();
      end = offsets[i] + types[i].byteSize();
    }
    this.paramBytes = end;
    if (n > KernelLaunch.MAX_PARAMS || end > KernelLaunch.MAX_PARAM_BYTES) {
      throw new IllegalArgumentException(
          "kernel "
              + spec.id()
              + " takes "
              + n
              + " parameters of "
              + end
              + " bytes, at most "
              + KernelLaunch.MAX_PARAMS
              + " and "
              + KernelLaunch.MAX_PARAM_BYTES
              + " are supported");
    }
    // Asking for an attribute makes the driver load a lazily loaded function: never inside a
    // capture.
    int[] threads = new int[1];
    Cu.check(
        JCudaDriver.cuFuncGetAttribute(
            threads, CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, handle),
        "cuFuncGetAttribute",
        spec::id);
    if (threads[0] < spec.threads()) {
      throw new IllegalArgumentException(
          "kernel "
              + spec.id()
              + " is launched with "
              + spec.threads()
              + " threads, this device takes at most "
              + threads[0]);
    }
    allowSharedBytes(spec.sharedBytes());
    if (spec.cluster() > PORTABLE_CLUSTER) {
      Cu.check(
          JCudaDriver.cuFuncSetAttribute(
              handle, CudaDriver.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED(), 1),
          "cuFuncSetAttribute",
          () -> spec.id() + ", cluster " + spec.cluster());
    }
    boolean pdl =
        spec.pdl()
            && CudaDeviceProvider.capability(context.info()).atLeast(9, 0)
            && CudaProperties.pdlAllowed();
    this.pdl = pdl;
    // All sizes at once: choosing one is no allocation in a launch.
    for (int c = 1; c <= PORTABLE_CLUSTER; c++) {
      attributes[c] = attributesFor(c);
    }
    if (spec.cluster() > PORTABLE_CLUSTER) {
      attributes[0] = attributesFor(spec.cluster());
    }
  }

  private MemorySegment attributesFor(int cluster) {
    MemorySegment to = CUlaunchAttribute_st.allocateArray(2, Arena.ofAuto());
    int count = 0;
    if (pdl) {
      attribute(to, count++, CudaDriver.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION(), 1);
    }
    if (cluster > 1) {
      attribute(to, count, CudaDriver.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION(), cluster, 1, 1);
    }
    return to;
  }

  private static void attribute(MemorySegment to, int index, int id, int... value) {
    MemorySegment a = CUlaunchAttribute_st.asSlice(to, index);
    CUlaunchAttribute_st.id(a, id);
    MemorySegment union = CUlaunchAttribute_st.value(a);
    for (int i = 0; i < value.length; i++) {
      union.setAtIndex(ValueLayout.JAVA_INT, i, value[i]);
    }
  }

  /** {@return what the manifest says of it} */
  public KernelSpec spec() {
    return spec;
  }

  /**
   * Raises the limit of dynamic shared memory where it is below what a launch will ask for. Call it
   * at preparation, not between launches of a capture.
   *
   * @param bytes of one block
   * @throws io.moe4j.api.DeviceException if the device has less
   */
  public synchronized void allowSharedBytes(int bytes) {
    if (bytes > sharedLimit) {
      context.makeCurrent();
      Cu.check(
          JCudaDriver.cuFuncSetAttribute(
              handle, CudaDriver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES(), bytes),
          "cuFuncSetAttribute",
          () ->
              "kernel "
                  + spec.id()
                  + " asks for "
                  + bytes
                  + " bytes of shared memory, a block of "
                  + context.info().name()
                  + " has at most "
                  + context.info().properties().get("shared-bytes-per-block"));
      sharedLimit = bytes;
    }
  }

  /**
   * Starts filling in the parameters of a launch, in the calling thread's own block. Allocates
   * nothing. Finish it (or begin again) before the same thread begins another.
   *
   * @return the launch, to be used by this thread only
   */
  public KernelLaunch begin() {
    if (!loaded) {
      throw new IllegalStateException("kernel " + spec.id() + ": its device is closed");
    }
    return KernelLaunch.begin(this);
  }

  void unloaded() {
    loaded = false;
  }

  CudaContext context() {
    return context;
  }

  MemorySegment function() {
    return function;
  }

  int paramCount() {
    return types.length;
  }

  int paramBytes() {
    return paramBytes;
  }

  ParamType type(int index) {
    return types[index];
  }

  int offset(int index) {
    return offsets[index];
  }

  MemorySegment attributes(int cluster) {
    if (cluster > PORTABLE_CLUSTER && cluster == spec.cluster()) {
      return attributes[0];
    }
    if (cluster < 1 || cluster > PORTABLE_CLUSTER) {
      throw new IllegalArgumentException(
          "kernel "
              + spec.id()
              + ": cluster is "
              + cluster
              + ", must be 1.."
              + PORTABLE_CLUSTER
              + " or the manifest's");
    }
    return attributes[cluster];
  }

  int attributeCount(int cluster) {
    return (pdl ? 1 : 0) + (cluster > 1 ? 1 : 0);
  }

  /**
   * Like {@code gemm{BM=64}@sm_90a}.
   *
   * @return name, constants, target
   */
  @Override
  public String toString() {
    return spec.id();
  }
}
