package io.moe4j.cuda;

import io.moe4j.api.DeviceException;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;
import jcuda.driver.CUdevice;
import jcuda.driver.CUdeviceptr;
import jcuda.driver.CUipcMemHandle;
import jcuda.driver.CUresult;
import jcuda.driver.JCudaDriver;

/**
 * Device memory that kernels on other devices of this host read and write as if it were their own:
 * of devices of this process, and of other processes. Its owner hands out a {@link #ticket}, with
 * which others {@link #map} it.
 *
 * <p>Within a process the memory lives until its owner and all who have mapped it have closed.
 * Between processes the driver keeps it as long as somebody has it mapped. Safe for several
 * threads.
 *
 * @since 0.2.0
 */
public final class PeerMemory implements AutoCloseable {
  /** Bytes of a ticket. */
  public static final int TICKET_BYTES = 128;

  private static final int IPC_BYTES = 64;
  private static final int LAZY_ENABLE_PEER_ACCESS = 1;
  private static final UUID PROCESS = UUID.randomUUID();
  private static final AtomicLong NAMES = new AtomicLong();
  private static final Map<Long, Shared> HERE = new HashMap<>();
  private static final VarHandle IPC = ipcField();

  /** One piece of this process's memory and who uses it. */
  private static final class Shared {
    final CudaContext context;
    final DeviceBuffer buffer;
    final long name = NAMES.incrementAndGet();
    int users = 1;

    Shared(CudaContext context, DeviceBuffer buffer) {
      this.context = context;
      this.buffer = buffer;
    }

    void release() {
      synchronized (HERE) {
        if (--users > 0) {
          return;
        }
        HERE.remove(name);
      }
      try {
        buffer.close();
      } finally {
        context.release();
      }
    }
  }

  private final long address;
  private final long byteSize;
  private final DeviceInfo device;
  private final Runnable release;
  private final AtomicBoolean closed = new AtomicBoolean();
  private final byte[] ticket;

  private PeerMemory(
      DeviceInfo device, long address, long byteSize, byte[] ticket, Runnable release) {
    this.device = device;
    this.address = address;
    this.byteSize = byteSize;
    this.ticket = ticket;
    this.release = release;
  }

  private static VarHandle ipcField() {
    try {
      return MethodHandles.privateLookupIn(CUipcMemHandle.class, MethodHandles.lookup())
          .findVarHandle(CUipcMemHandle.class, "reserved", byte[].class);
    } catch (ReflectiveOperationException e) {
      throw new LinkageError(
          "jcuda.driver.CUipcMemHandle has no field reserved: moe-cuda needs JCuda 12.6", e);
    }
  }

  /**
   * Takes memory, filled with zeros.
   *
   * @param device whose; may be closed before the memory is
   * @param byteSize positive
   * @return the memory, owned by the caller
   * @throws DeviceException if there is not so much, or the driver does not share it
   */
  public static PeerMemory allocate(CudaDevice device, long byteSize) {
    CudaContext context = CudaContext.retain(device.info());
    Shared shared;
    try {
      shared = new Shared(context, DeviceBuffer.allocate(context, byteSize));
    } catch (RuntimeException | Error e) {
      context.release();
      throw e;
    }
    try {
      device.fill(shared.buffer.tensor(DType.U8, byteSize), 0, device.defaultStream());
      device.defaultStream().synchronize();
      byte[] ticket = ticketOf(shared);
      synchronized (HERE) {
        HERE.put(shared.name, shared);
      }
      return new PeerMemory(
          device.info(), shared.buffer.memory().address(), byteSize, ticket, shared::release);
    } catch (RuntimeException | Error e) {
      shared.release();
      throw e;
    }
  }

  private static byte[] ticketOf(Shared shared) {
    CUipcMemHandle handle = new CUipcMemHandle();
    shared.context.makeCurrent();
    long address = shared.buffer.memory().address();
    Cu.check(
        JCudaDriver.cuIpcGetMemHandle(handle, Handles.wrap(new CUdeviceptr(), address)),
        "cuIpcGetMemHandle");
    ByteBuffer b = ByteBuffer.allocate(TICKET_BYTES);
    b.putLong(PROCESS.getMostSignificantBits()).putLong(PROCESS.getLeastSignificantBits());
    b.putLong(shared.name).putLong(shared.buffer.memory().byteSize());
    b.put((byte[]) IPC.get(handle), 0, IPC_BYTES);
    return b.array();
  }

  /**
   * Makes another's memory accessible to kernels of a device.
   *
   * @param device whose kernels read and write it
   * @param ticket of the memory's owner, of this host
   * @return the memory as kernels of {@code device} see it, owned by the caller
   * @throws DeviceException if the devices cannot reach each other's memory, or the memory is gone
   */
  public static PeerMemory map(CudaDevice device, byte[] ticket) {
    ByteBuffer b = ByteBuffer.wrap(ticket);
    UUID process = new UUID(b.getLong(), b.getLong());
    long name = b.getLong();
    long byteSize = b.getLong();
    if (process.equals(PROCESS)) {
      return mapHere(device, ticket, name);
    }
    byte[] bytes = new byte[IPC_BYTES];
    b.get(bytes);
    CUipcMemHandle handle = new CUipcMemHandle();
    System.arraycopy(bytes, 0, (byte[]) IPC.get(handle), 0, IPC_BYTES);
    CudaContext context = CudaContext.retain(device.info());
    try {
      context.makeCurrent();
      CUdeviceptr p = new CUdeviceptr();
      Cu.check(
          JCudaDriver.cuIpcOpenMemHandle(p, handle, LAZY_ENABLE_PEER_ACCESS), "cuIpcOpenMemHandle");
      return new PeerMemory(
          device.info(),
          Handles.raw(p),
          byteSize,
          ticket.clone(),
          () -> {
            try {
              context.makeCurrent();
              Cu.check(JCudaDriver.cuIpcCloseMemHandle(p), "cuIpcCloseMemHandle");
            } finally {
              context.release();
            }
          });
    } catch (RuntimeException | Error e) {
      context.release();
      throw e;
    }
  }

  private static PeerMemory mapHere(CudaDevice device, byte[] ticket, long name) {
    Shared shared;
    synchronized (HERE) {
      shared = HERE.get(name);
      if (shared == null) {
        throw new DeviceException("the memory that others share with " + device + " is gone");
      }
      shared.users++;
    }
    try {
      enableAccess(device, shared.context);
      DeviceMemory m = shared.buffer.memory();
      return new PeerMemory(
          device.info(), m.address(), m.byteSize(), ticket.clone(), shared::release);
    } catch (RuntimeException | Error e) {
      shared.release();
      throw e;
    }
  }

  private static void enableAccess(CudaDevice device, CudaContext other) {
    int from = device.info().id().ordinal();
    int to = other.info().id().ordinal();
    if (from == to) {
      return;
    }
    CUdevice a = new CUdevice();
    CUdevice b = new CUdevice();
    int[] can = new int[1];
    Cu.check(JCudaDriver.cuDeviceGet(a, from), "cuDeviceGet");
    Cu.check(JCudaDriver.cuDeviceGet(b, to), "cuDeviceGet");
    Cu.check(JCudaDriver.cuDeviceCanAccessPeer(can, a, b), "cuDeviceCanAccessPeer");
    if (can[0] == 0) {
      throw new DeviceException(
          device.info().id() + " cannot reach the memory of " + other.info().id());
    }
    device.context().makeCurrent();
    int result = JCudaDriver.cuCtxEnablePeerAccess(other.handle(), 0);
    if (result != CUresult.CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED) {
      Cu.check(result, "cuCtxEnablePeerAccess");
    }
  }

  /** {@return what others map the memory with; {@value #TICKET_BYTES} bytes} */
  public byte[] ticket() {
    return ticket.clone();
  }

  /** {@return the memory, as kernels of the device that allocated or mapped it see it} */
  public DeviceMemory memory() {
    return new DeviceMemory(device.id(), address, byteSize);
  }

  /** Gives it back, or unmaps it. Kernels that use it must have finished. */
  @Override
  public void close() {
    if (closed.compareAndSet(false, true)) {
      release.run();
    }
  }
}
