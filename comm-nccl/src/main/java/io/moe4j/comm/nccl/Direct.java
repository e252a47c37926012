package io.moe4j.comm.nccl;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.spi.ExchangeInputs;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.ops.PeerLink;
import java.util.function.Consumer;
import org.jspecify.annotations.Nullable;

/**
 * Rows that ranks write into each other's memory: one launch a gather and one a sum, no library
 * between them. A gather takes the turn of the group's {@link PeerRooms}, the sum after it gives it
 * back.
 */
final class Direct {
  private static final long ALIGNMENT = 256;

  private final NcclCommunicator communicator;
  private final PeerRooms rooms;
  private final PeerKernels kernels;
  private final Device device;
  private final MoeConfig config;
  private final boolean adds;

  private Direct(
      NcclCommunicator communicator,
      PeerRooms rooms,
      PeerKernels kernels,
      Device device,
      MoeConfig config,
      boolean adds) {
    this.communicator = communicator;
    this.rooms = rooms;
    this.kernels = kernels;
    this.device = device;
    this.config = config;
    this.adds = adds;
  }

  /**
   * {@return null where ranks of this kind have no rooms}
   *
   * @param adds whether {@link #combine} adds experts' rows; the same on every rank
   */
  static @Nullable Direct of(
      Communicator communicator, Device device, MoeConfig config, boolean adds) {
    if (communicator instanceof NcclCommunicator nccl
        && nccl.rooms() != null
        && device instanceof CudaDevice cuda) {
      return new Direct(nccl, nccl.rooms(), new PeerKernels(cuda), device, config, adds);
    }
    return null;
  }

  /** Where in a room {@code n} rows a rank lie. */
  private record Layout(PeerKernels.Places at, long byteSize) {
    static Layout of(long n, int ranks, DType dtype, long width, int topK) {
      long all = Math.multiplyExact(n, ranks);
      long hidden = PeerRoom.HEAD_BYTES;
      long ids = hidden + aligned(dtype.byteSize(Math.multiplyExact(all, width)));
      long weights = ids + aligned(Integer.BYTES * all * topK);
      long slots = weights + aligned(Float.BYTES * all * topK);
      long end = slots + aligned(Integer.BYTES * all);
      return new Layout(
          new PeerKernels.Places(hidden, ids, weights, slots), end - PeerRoom.HEAD_BYTES);
    }

    private static long aligned(long bytes) {
      return Math.ceilDiv(bytes, ALIGNMENT) * ALIGNMENT;
    }
  }

  private Layout layout(ExchangeInputs inputs) {
    return Layout.of(
        inputs.maxTokens(),
        communicator.size(),
        inputs.hidden().dtype(),
        config.expertHiddenSize(),
        config.topK());
  }

  /**
   * Brings all rows to all ranks.
   *
   * @param aligned room for this rank's rows, used where the caller's are not 16-byte aligned
   * @param sums dtype of what {@link #sum} will be given
   * @return all ranks' rows, until the sum; null if they have to go by NCCL, the same on every rank
   */
  ExchangeKernels.@Nullable Rows gather(
      ExchangeInputs inputs, Tensor aligned, DType sums, DeviceStream stream) {
    int n = inputs.maxTokens();
    long width = config.expertHiddenSize();
    if (n == 0
        || inputs.hidden().dtype().byteSize(width) % PeerKernels.VECTOR_BYTES != 0
        || sums.byteSize(width) % PeerKernels.VECTOR_BYTES != 0) {
      return null;
    }
    boolean records = communicator.isRecording(stream);
    Layout layout = layout(inputs);
    long all = Math.multiplyExact((long) n, communicator.size());
    PeerRoom room =
        rooms.begin(
            layout.byteSize(), sums.byteSize(Math.multiplyExact(all, width)), stream, records);
    if (room == null) {
      return null;
    }
    try {
      Tensor hidden = inputs.hidden();
      if (!DirectCall.isAligned(hidden)) {
        Tensor copy = aligned.narrow(0, 0, hidden.size(0));
        device.copy(hidden, copy, stream);
        hidden = copy;
      }
      Tensor read = hidden;
      communicator.meet(
          "gather of "
              + n
              + " rows of "
              + hidden.dtype()
              + " ["
              + width
              + "], top "
              + config.topK()
              + (inputs.tokenLoraMapping() == null ? "" : ", with slots"),
          stream,
          () ->
              kernels.gather(
                  read,
                  inputs.routing().topkIds(),
                  inputs.routing().topkWeights(),
                  inputs.tokenLoraMapping(),
                  rooms,
                  room,
                  layout.at(),
                  n,
                  stream));
      return rows(room, layout, inputs);
    } catch (RuntimeException | Error e) {
      rooms.release();
      throw e;
    }
  }

  private ExchangeKernels.Rows rows(PeerRoom room, Layout layout, ExchangeInputs inputs) {
    long all = (long) inputs.maxTokens() * communicator.size();
    int k = config.topK();
    PeerKernels.Places at = layout.at();
    return new ExchangeKernels.Rows(
        room.tensor(inputs.hidden().dtype(), at.hidden(), all, config.expertHiddenSize()),
        room.tensor(DType.I32, at.ids(), all, k),
        room.tensor(DType.F32, at.weights(), all, k),
        inputs.tokenLoraMapping() == null ? null : room.tensor(DType.I32, at.slots(), all));
  }

  /** {@return what {@link #gather} gave for these inputs, on this thread} */
  ExchangeKernels.@Nullable Rows gathered(ExchangeInputs inputs) {
    PeerRoom room = rooms.held();
    return room == null ? null : rows(room, layout(inputs), inputs);
  }

  /**
   * {@return what experts may use of the rows that were just {@link #gather gathered}; null =
   * nothing}
   *
   * @param sums dtype that travels
   */
  @Nullable SumLink link(DType sums) {
    return adds && sums == DType.BF16 && rooms.held() != null
        ? new SumLink(config.expertHiddenSize())
        : null;
  }

  /**
   * Brings the sums of {@link #gathered} rows home.
   *
   * @param partial {@code [ranks * n, H]}
   * @param routed {@code [T, H]}, F32 or the dtype of {@code partial}, overwritten
   * @param spare room for {@code n} rows, used where {@code routed} is not 16-byte aligned
   */
  void sum(Tensor partial, Tensor routed, Memory spare, int n, DeviceStream stream) {
    PeerRoom room = DirectCall.held(rooms);
    // Another rank's experts may leave their rows to the exchange.
    boolean mayAdd = adds && partial.dtype() == DType.BF16;
    int blocks = mayAdd ? PeerKernels.addingBlocks(n) : PeerKernels.blocks(n);
    sum(
        partial.dtype(),
        out -> kernels.sum(partial, out, rooms, room, n, blocks, stream),
        routed,
        spare,
        n,
        stream);
  }

  /**
   * Adds the rows of a {@link SumLink} and brings their sums home, in BF16.
   *
   * @param rows of the experts
   * @param inputs that were gathered
   * @param routed {@code [T, H]}, F32 or BF16, overwritten
   * @param spare room for {@code n} rows, used where {@code routed} is not 16-byte aligned
   */
  void combine(
      PeerLink.PairRows rows,
      ExchangeInputs inputs,
      Tensor routed,
      Memory spare,
      DeviceStream stream) {
    PeerRoom room = DirectCall.held(rooms);
    int n = inputs.maxTokens();
    int k = config.topK();
    long weights =
        rows.weighted() ? rows(room, layout(inputs), inputs).weights().deviceAddress() : 0;
    // In words like a sum: a rank whose experts have added makes the same call.
    sum(
        DType.BF16,
        out -> kernels.combine(rows, weights, k, out, rooms, room, n, stream),
        routed,
        spare,
        n,
        stream);
  }

  private void sum(
      DType travels,
      Consumer<Tensor> work,
      Tensor routed,
      Memory spare,
      int n,
      DeviceStream stream) {
    DirectCall.end(
        communicator,
        rooms,
        device,
        "sum of " + n + " rows of " + travels + " [" + config.expertHiddenSize() + "]",
        work,
        routed,
        spare,
        stream);
  }
}
