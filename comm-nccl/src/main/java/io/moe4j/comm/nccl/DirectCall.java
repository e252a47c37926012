package io.moe4j.comm.nccl;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import java.util.function.Consumer;

/** The launch that ends a turn of a group's {@link PeerRooms}: it writes a layer's output. */
final class DirectCall {
  private DirectCall() {}

  static boolean isAligned(Tensor t) {
    return t.elementCount() == 0 || t.deviceAddress() % PeerKernels.VECTOR_BYTES == 0;
  }

  /** {@return the room of this thread's turn} */
  static PeerRoom held(PeerRooms rooms) {
    PeerRoom room = rooms.held();
    if (room == null) {
      throw new IllegalStateException("no exchange was begun on this thread");
    }
    return room;
  }

  /**
   * Makes the call and ends the turn.
   *
   * @param what the same on every rank
   * @param work enqueues a kernel that writes what it is given, 16-byte aligned
   * @param routed {@code [T, H]}, overwritten
   * @param spare room for {@code routed}, written first where {@code routed} is not aligned
   */
  static void end(
      NcclCommunicator communicator,
      PeerRooms rooms,
      Device device,
      String what,
      Consumer<Tensor> work,
      Tensor routed,
      Memory spare,
      DeviceStream stream) {
    boolean records = communicator.isRecording(stream);
    boolean aligned = isAligned(routed);
    Tensor out = aligned ? routed : Tensor.of(routed.dtype(), spare, routed.shape());
    try {
      communicator.meet(what, stream, () -> work.accept(out));
      if (!aligned) {
        device.copy(out, routed, stream);
      }
    } catch (RuntimeException | Error e) {
      rooms.release();
      throw e;
    }
    rooms.end(stream, records);
  }
}
