package io.moe4j.comm.nccl;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.ops.PeerLink;
import java.util.function.Consumer;
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
   * {@return whether sums of such tokens go this way, the same on every rank}
   *
   * @param tokens {@code T}
   * @param width {@code H}
   * @param travels dtype of the parts
   */
  private boolean takes(long tokens, long width, DType travels) {
    long rowBytes = travels.byteSize(width);
    return (travels == DType.BF16 || travels == DType.F32)
        && tokens > 0
        && rowBytes % PeerKernels.VECTOR_BYTES == 0
        && (communicator.size() == 2 || tokens * rowBytes <= MANY_RANKS_BYTES);
  }

  /**
   * Takes a turn for the sum that follows, before the experts run: what they may leave to it
   * depends on whether it comes.
   *
   * @param tokens {@code T}
   * @param width {@code H}
   * @param travels dtype of the parts
   * @return false, the same on every rank, if the sum has to go by NCCL
   */
  boolean begin(long tokens, long width, DType travels, DeviceStream stream) {
    if (!takes(tokens, width, travels)) {
      return false;
    }
    long bytes = Math.multiplyExact(travels.byteSize(tokens * width), communicator.size());
    return rooms.begin(0, bytes, stream, communicator.isRecording(stream)) != null;
  }

  /**
   * Adds up all ranks' parts, after {@link #begin}.
   *
   * @param partial BF16 or F32 {@code [T, H]}, 16-byte aligned
   * @param routed {@code [T, H]}, F32 or the dtype of {@code partial}, overwritten
   * @param spare room for {@code T} rows of F32, used where {@code routed} is not 16-byte aligned
   */
  void sum(Tensor partial, Tensor routed, Memory spare, DeviceStream stream) {
    PeerRoom room = DirectCall.held(rooms);
    run(
        partial.dtype(),
        out -> kernels.reduce(partial, out, rooms, room, stream),
        routed,
        spare,
        stream);
  }

  /**
   * The same of rows that experts have left to it.
   *
   * @param rows of the experts
   * @param routing of all tokens
   * @param routed {@code [T, H]}, F32 or BF16, overwritten
   * @param spare as above
   */
  void sumRows(
      PeerLink.PairRows rows,
      ExpertRouting routing,
      Tensor routed,
      Memory spare,
      DeviceStream stream) {
    PeerRoom room = DirectCall.held(rooms);
    long weights = rows.weighted() ? routing.topkWeights().deviceAddress() : 0;
    int topK = Math.toIntExact(routing.topkIds().size(1));
    // In words like a sum of parts: a rank whose experts have added makes the same call.
    run(
        DType.BF16,
        out -> kernels.reduceRows(rows, weights, topK, out, rooms, room, stream),
        routed,
        spare,
        stream);
  }

  /** {@return whether {@link #begin} has taken this thread's turn} */
  boolean isBegun() {
    return rooms.held() != null;
  }

  private void run(
      DType travels, Consumer<Tensor> work, Tensor routed, Memory spare, DeviceStream stream) {
    DirectCall.end(
        communicator,
        rooms,
        device,
        "sum of "
            + routed.size(0)
            + " rows of "
            + travels
            + " ["
            + routed.size(1)
            + "] that every rank has",
        work,
        routed,
        spare,
        stream);
  }
}
