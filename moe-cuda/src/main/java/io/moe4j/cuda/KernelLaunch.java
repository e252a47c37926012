package io.moe4j.cuda;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.ffi.CUlaunchConfig_st;
import io.moe4j.cuda.ffi.CudaDriver;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.jspecify.annotations.Nullable;

/**
 * The parameters of one launch, filled in in order and checked against the kernel's signature. One
 * per thread, reused for every launch of every kernel: the driver copies the values before {@link
 * #launch} returns.
 */
public final class KernelLaunch {
  static final int MAX_PARAMS = 128;
  static final int MAX_PARAM_BYTES = 4096;

  private static final ThreadLocal<KernelLaunch> OF_THREAD =
      ThreadLocal.withInitial(KernelLaunch::new);

  private final MemorySegment block;
  private final MemorySegment pointers;
  private final MemorySegment config;
  private @Nullable Kernel kernel;
  private int count;
  private int sharedBytes;
  private int cluster;

  private KernelLaunch() {
    Arena arena = Arena.ofAuto();
    block = arena.allocate(MAX_PARAM_BYTES, ParamType.TENSOR_MAP.alignment());
    pointers = arena.allocate(ValueLayout.ADDRESS, MAX_PARAMS);
    config = CUlaunchConfig_st.allocate(arena);
  }

  static KernelLaunch begin(Kernel kernel) {
    KernelLaunch l = OF_THREAD.get();
    l.kernel = kernel;
    l.count = 0;
    l.sharedBytes = kernel.spec().sharedBytes();
    l.cluster = kernel.spec().cluster();
    return l;
  }

  private int next(ParamType type) {
    Kernel k = kernel();
    if (count >= k.paramCount() || k.type(count) != type) {
      throw new IllegalArgumentException(
          "kernel "
              + k
              + ", parameter "
              + count
              + ": "
              + (count < k.paramCount() ? k.spec().params().get(count) : "there is none")
              + ", given "
              + type);
    }
    int offset = k.offset(count);
    pointers.setAtIndex(ValueLayout.JAVA_LONG, count++, block.address() + offset);
    return offset;
  }

  private Kernel kernel() {
    Kernel k = kernel;
    if (k == null) {
      throw new IllegalStateException("this launch was finished; begin a new one");
    }
    return k;
  }

  /**
   * A device address.
   *
   * @param address 0 for none
   * @return this
   */
  public KernelLaunch pointer(long address) {
    block.set(ValueLayout.JAVA_LONG, next(ParamType.POINTER), address);
    return this;
  }

  /**
   * The address of a tensor's first element, or 0.
   *
   * @param tensor on the kernel's device, or null
   * @return this
   */
  public KernelLaunch pointer(@Nullable Tensor tensor) {
    return pointer(tensor == null ? 0 : tensor.deviceAddress());
  }

  /**
   * 8 bits.
   *
   * @param value the value
   * @return this
   */
  public KernelLaunch i8(int value) {
    block.set(ValueLayout.JAVA_BYTE, next(ParamType.I8), (byte) value);
    return this;
  }

  /**
   * 16 bits.
   *
   * @param value the value
   * @return this
   */
  public KernelLaunch i16(int value) {
    block.set(ValueLayout.JAVA_SHORT, next(ParamType.I16), (short) value);
    return this;
  }

  /**
   * 32 bits.
   *
   * @param value the value
   * @return this
   */
  public KernelLaunch i32(int value) {
    block.set(ValueLayout.JAVA_INT, next(ParamType.I32), value);
    return this;
  }

  /**
   * 64 bits.
   *
   * @param value the value
   * @return this
   */
  public KernelLaunch i64(long value) {
    block.set(ValueLayout.JAVA_LONG, next(ParamType.I64), value);
    return this;
  }

  /**
   * A float.
   *
   * @param value the value
   * @return this
   */
  public KernelLaunch f32(float value) {
    block.set(ValueLayout.JAVA_FLOAT, next(ParamType.F32), value);
    return this;
  }

  /**
   * A double.
   *
   * @param value the value
   * @return this
   */
  public KernelLaunch f64(double value) {
    block.set(ValueLayout.JAVA_DOUBLE, next(ParamType.F64), value);
    return this;
  }

  /**
   * A TMA descriptor, by value.
   *
   * @param map from {@link TensorMaps}
   * @return this
   */
  public KernelLaunch tensorMap(MemorySegment map) {
    MemorySegment.copy(map, 0, block, next(ParamType.TENSOR_MAP), ParamType.TENSOR_MAP.byteSize());
    return this;
  }

  /**
   * Dynamic shared memory instead of the manifest's.
   *
   * @param bytes of one block; over 48 KiB only after {@link Kernel#allowSharedBytes}
   * @return this
   */
  public KernelLaunch sharedBytes(int bytes) {
    sharedBytes = bytes;
    return this;
  }

  /**
   * Blocks a cluster instead of the manifest's.
   *
   * @param blocks along x, 1 for no clusters; at most 8, and only on devices that have them
   *     (capability 9.0 and later)
   * @return this
   */
  public KernelLaunch cluster(int blocks) {
    cluster = blocks;
    return this;
  }

  /**
   * Enqueues the kernel. Trailing scratch pointers of type {@link ParamType#NULL} are filled in. A
   * grid with a zero dimension is nothing to do, not an error.
   *
   * @param stream of the kernel's device
   * @param gridX blocks
   * @param gridY blocks
   * @param gridZ blocks
   * @throws io.moe4j.api.DeviceException if the driver refuses, or an earlier launch has failed
   */
  public void launch(DeviceStream stream, int gridX, int gridY, int gridZ) {
    Kernel k = kernel();
    while (count < k.paramCount() && k.type(count) == ParamType.NULL) {
      block.set(ValueLayout.JAVA_LONG, next(ParamType.NULL), 0);
    }
    if (count != k.paramCount()) {
      throw new IllegalArgumentException(
          "kernel " + k + " takes " + k.paramCount() + " parameters, given " + count);
    }
    kernel = null;
    if (gridX == 0 || gridY == 0 || gridZ == 0) {
      return;
    }
    if (!stream.device().type().equals(DeviceType.CUDA)) {
      throw new IllegalArgumentException(
          "kernel "
              + k
              + " was given the "
              + stream
              + ", it needs a stream of "
              + k.context().info().id());
    }
    k.context().makeCurrent();
    CUlaunchConfig_st.gridDimX(config, gridX);
    CUlaunchConfig_st.gridDimY(config, gridY);
    CUlaunchConfig_st.gridDimZ(config, gridZ);
    CUlaunchConfig_st.blockDimX(config, k.spec().threads());
    CUlaunchConfig_st.blockDimY(config, 1);
    CUlaunchConfig_st.blockDimZ(config, 1);
    CUlaunchConfig_st.sharedMemBytes(config, sharedBytes);
    // As a number: wrapping it in a segment would be the only allocation of a launch.
    config.set(ValueLayout.JAVA_LONG, CUlaunchConfig_st.hStream$offset(), stream.handle());
    CUlaunchConfig_st.attrs(config, k.attributes(cluster));
    CUlaunchConfig_st.numAttrs(config, k.attributeCount(cluster));
    int result = CudaDriver.cuLaunchKernelEx(config, k.function(), pointers, MemorySegment.NULL);
    if (result != 0) {
      throw Cu.error(
          result,
          "cuLaunchKernelEx",
          "kernel "
              + k
              + ", grid "
              + gridX
              + "x"
              + gridY
              + "x"
              + gridZ
              + (cluster > 1 ? ", cluster " + cluster : "")
              + ", block "
              + k.spec().threads()
              + ", shared memory "
              + sharedBytes
              + " bytes, "
              + k.paramBytes()
              + " bytes of parameters");
    }
  }

  /**
   * Enqueues the kernel on a one-dimensional grid.
   *
   * @param stream of the kernel's device
   * @param grid blocks
   */
  public void launch(DeviceStream stream, int grid) {
    launch(stream, grid, 1, 1);
  }
}
