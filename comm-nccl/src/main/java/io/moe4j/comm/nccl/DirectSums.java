package io.moe4j.comm.nccl;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import org.jspecify.annotations.Nullable;

/**
 * Sums of tokens that every rank has, by ranks that write into each other's memory: each sends its
 * whole part to all others in one launch, and all add them alike.
 */
final class DirectSums {
  /**
   * With more than two ranks each sends its part more than once, NCCL's ring less than twice: below
   * this size the time goes with steps, not with bytes. By the figures for one step, not measured.
   */
  private static final long MANY_RANKS_BYTES = 512L << 10;

  private final NcclCommunicator communicator;
  private final PeerRooms rooms;
  private final PeerKernels kernels;
  private final Device device;

  private DirectSums(NcclCommunicator communicator, PeerRooms rooms, CudaDevice device) {
    this.communicator = communicator;
    this.rooms = rooms;
    this.kernels = new PeerKernels(device);
    this.device = device;
  }

  /** {@return null where ranks of this kind have no rooms} */
  static @Nullable DirectSums of(Communicator communicator, Device device) {
    return communicator instanceof NcclCommunicator nccl
            && nccl.rooms() != null
            && device instanceof CudaDevice cuda
        ? new DirectSums(nccl, nccl.rooms(), cuda)
        : null;
  }

  /**
   * Adds up all ranks' parts.
   *
   * @param partial BF16 or F32 {@code [T, H]}, 16-byte aligned
   * @param routed {@code [T, H]}, F32 or the dtype of {@code partial}, overwritten
   * @param spare room for {@code T} rows of F32, used where {@code routed} is not 16-byte aligned
   * @return false, the same on every rank, if the sum has to go by NCCL; then nothing was done
   */
  boolean reduce(Tensor partial, Tensor routed, Memory spare, DeviceStream stream) {
    long bytes = partial.dtype().byteSize(partial.elementCount());
    long tokens = partial.size(0);
    boolean fits = partial.dtype() == DType.BF16 || partial.dtype() == DType.F32;
    if (!fits
        || tokens == 0
        || partial.dtype().byteSize(partial.size(1)) % PeerKernels.VECTOR_BYTES != 0
        || (communicator.size() > 2 && bytes > MANY_RANKS_BYTES)) {
      return false;
    }
    boolean records = communicator.isRecording(stream);
    PeerRoom room =
        rooms.begin(0, Math.multiplyExact(bytes, communicator.size()), stream, records);
    if (room == null) {
      return false;
    }
    try {
      boolean aligned = routed.deviceAddress() % PeerKernels.VECTOR_BYTES == 0;
      Tensor out = aligned ? routed : Tensor.of(routed.dtype(), spare, routed.shape());
      communicator.meet(
          "sum of " + tokens + " replicated rows of " + partial.dtype() + " [" + partial.size(1) + "]",
          stream,
          () -> kernels.reduce(partial, out, rooms, room, stream));
      if (!aligned) {
        device.copy(out, routed, stream);
      }
    } catch (RuntimeException | Error e) {
      rooms.release();
      throw e;
    }
    rooms.end(stream, records);
    return true;
  }
}
