package io.moe4j.comm.nccl;

import io.moe4j.api.comm.AllToAllRows;
import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.comm.nccl.ffi.NcclFfi;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.StreamGuard;
import java.lang.foreign.MemorySegment;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import org.jspecify.annotations.Nullable;

/**
 * One rank of a group over NCCL. A call enqueues and returns; {@link NcclGroup} sees to it that
 * nothing waits for ever.
 */
final class NcclCommunicator implements Communicator, StreamGuard {
  private final NcclGroup group;
  private final NcclVersion version;
  private final Card card;
  private final int rank;
  private final int size;

  /** Streams that have had a call, and those with calls in a recording that has not ended. */
  private final Set<Long> used = ConcurrentHashMap.newKeySet();

  private final Set<Long> recording = ConcurrentHashMap.newKeySet();

  /** Of ranks that can reach each other's memory, and have the means; else null. */
  private final @Nullable PeerRooms rooms;

  /** Launches of graphs that have begun, by stream. */
  private final Map<Long, Marks.Call> launches = new ConcurrentHashMap<>();

  NcclCommunicator(NcclVersion version, CommConfig config, Card card, @Nullable Control control) {
    this.version = version;
    this.card = card;
    this.rank = config.rank();
    this.size = config.size();
    this.group = new NcclGroup(version, config, card, control);
    PeerRooms made;
    try {
      CudaDevice device = PeerRooms.isWanted(size) ? card.cuda().orElse(null) : null;
      made = device == null ? null : new PeerRooms(new OfRooms(), device);
    } catch (RuntimeException | Error e) {
      // The others hear of it, and nobody else could give back what the group has.
      group.fail(new CommException(rank, "rank " + rank + " could not prepare: " + e, e));
      group.close();
      throw e;
    }
    this.rooms = made;
    if (made != null) {
      group.whenFailed(made::stop);
    }
    card.addGuard(this);
  }

  /** Joins; returns when all ranks have. */
  NcclCommunicator join(byte[] id) {
    try {
      group.join(id);
      return this;
    } catch (RuntimeException e) {
      close();
      throw e;
    }
  }

  /**
   * {@return the library, and once rows have travelled between ranks that could do without it,
   * whether they did}
   */
  @Override
  public String description() {
    return "nccl " + version + (rooms == null ? "" : rooms.about());
  }

  @Override
  public int rank() {
    return rank;
  }

  @Override
  public int size() {
    return size;
  }

  @Override
  public DeviceType deviceType() {
    return DeviceType.CUDA;
  }

  @Override
  public boolean sumsInRankOrder() {
    return size <= 2; // of two, either order gives the same bits
  }

  /** The group as its rooms see it. */
  private final class OfRooms implements PeerRooms.Group {
    @Override
    public int rank() {
      return rank;
    }

    @Override
    public int size() {
      return size;
    }

    @Override
    public Duration deadline() {
      return group.deadline();
    }

    @Override
    public void requireAlive() {
      group.requireAlive();
    }

    @Override
    public void allGather(Tensor send, Tensor receive, DeviceStream stream) {
      NcclCommunicator.this.allGather(send, receive, stream);
    }

    @Override
    public CommException failed(CommException why) {
      return group.failed(why);
    }
  }

  /** {@return rooms that ranks write to without NCCL; null if this group always uses NCCL} */
  @Nullable PeerRooms rooms() {
    return rooms;
  }

  /** {@return whether what is enqueued now is recorded} */
  boolean isRecording(DeviceStream stream) {
    return card.isCapturing(stream);
  }

  /**
   * A step in which all ranks meet without NCCL: counted, watched and ended like its calls.
   *
   * @param what the same on every rank
   * @param work enqueues it
   */
  void meet(String what, DeviceStream stream, Runnable work) {
    requireHere(stream);
    boolean records = card.isCapturing(stream);
    Marks.Call marked = group.begin(what, stream, records);
    (records ? recording : used).add(stream.handle());
    try {
      work.run();
    } catch (RuntimeException | Error e) {
      abort(e); // the others have enqueued it, or will
      throw e;
    }
    if (marked != null) {
      marked.end(stream);
    }
  }

  private void requireHere(DeviceStream stream) {
    if (!stream.device().equals(card.id())) {
      throw new IllegalArgumentException(
          "stream is of " + stream.device() + ", the communicator of " + card.id());
    }
  }

  /** What a call hands to NCCL. */
  private interface Enqueue {
    int on(MemorySegment comm, MemorySegment stream);
  }

  private void call(String what, DeviceStream stream, Enqueue work) {
    requireHere(stream);
    boolean records = card.isCapturing(stream);
    Marks.Call marked = group.begin(what, stream, records);
    (records ? recording : used).add(stream.handle());
    MemorySegment handle = MemorySegment.ofAddress(stream.handle());
    group.run(what, comm -> work.on(comm, handle));
    if (marked != null) {
      marked.end(stream);
    }
  }

  @Override
  public void allGather(Tensor send, Tensor receive, DeviceStream stream) {
    requireGather(send, receive);
    call("allGather " + shape(send), stream, (comm, s) -> gather(send, receive, comm, s));
  }

  private static int gather(Tensor send, Tensor receive, MemorySegment comm, MemorySegment s) {
    return NcclFfi.ncclAllGather(
        Nccl.address(send), Nccl.address(receive), Nccl.bytes(send), NcclFfi.ncclUint8(), comm, s);
  }

  private void requireGather(Tensor send, Tensor receive) {
    requireHere("send", send);
    requireHere("receive", receive);
    requireRows("receive", receive, send, Math.multiplyExact(send.size(0), size));
  }

  /** One launch for all of them. */
  @Override
  public void allGather(List<Tensor> send, List<Tensor> receive, DeviceStream stream) {
    if (send.size() != receive.size()) {
      throw new IllegalArgumentException(
          "send has " + send.size() + " tensors, receive " + receive.size());
    }
    StringBuilder what = new StringBuilder("allGather");
    for (int i = 0; i < send.size(); i++) {
      requireGather(send.get(i), receive.get(i));
      what.append(i == 0 ? " " : " + ").append(shape(send.get(i)));
    }
    call(
        what.toString(),
        stream,
        (comm, s) -> grouped(send.size(), i -> gather(send.get(i), receive.get(i), comm, s)));
  }

  /** One of several calls. */
  private interface Nth {
    int run(int index);
  }

  /** Ends the group whatever happens; the first that is refused is the answer. */
  private static int grouped(int count, Nth work) {
    int result = Nccl.groupStart();
    if (!Nccl.isSuccess(result)) {
      return result;
    }
    int first = NcclFfi.ncclSuccess();
    for (int i = 0; i < count && fine(first); i++) {
      first = work.run(i);
    }
    result = Nccl.groupEnd();
    return fine(first) ? result : first;
  }

  private static boolean fine(int result) {
    return Nccl.isSuccess(result) || Nccl.isInProgress(result);
  }

  @Override
  public void reduceScatter(Tensor send, Tensor receive, DeviceStream stream) {
    requireHere("send", send);
    requireHere("receive", receive);
    requireRows("send", send, receive, Math.multiplyExact(receive.size(0), size));
    int type = Nccl.summable("send", send);
    call(
        "reduceScatter " + shape(send),
        stream,
        (comm, s) ->
            NcclFfi.ncclReduceScatter(
                Nccl.address(send),
                Nccl.address(receive),
                receive.elementCount(),
                type,
                NcclFfi.ncclSum(),
                comm,
                s));
  }

  @Override
  public void allReduce(Tensor both, DeviceStream stream) {
    requireHere("both", both);
    int type = Nccl.summable("both", both);
    call(
        "allReduce " + shape(both),
        stream,
        (comm, s) ->
            NcclFfi.ncclAllReduce(
                Nccl.address(both),
                Nccl.address(both),
                both.elementCount(),
                type,
                NcclFfi.ncclSum(),
                comm,
                s));
  }

  @Override
  public void allToAll(
      Tensor send, long[] sendRows, Tensor receive, long[] receiveRows, DeviceStream stream) {
    requireHere("send", send);
    requireHere("receive", receive);
    AllToAllRows rows = AllToAllRows.of(rank, size, send, sendRows, receive, receiveRows);
    long[] one = send.shape();
    one[0] = 1;
    long rowBytes = send.dtype().byteSize(Arrays.stream(one).reduce(1, Math::multiplyExact));
    // Counts differ from rank to rank, so what is compared in a dispute is the rows' shape alone.
    one[0] = -1;
    call(
        "allToAll " + send.dtype() + Arrays.toString(one).replace("-1", "*"),
        stream,
        (comm, s) ->
            grouped(
                2 * size,
                i -> {
                  int peer = i / 2;
                  boolean sends = i % 2 == 0;
                  long count = (sends ? sendRows : receiveRows)[peer] * rowBytes;
                  long from = (sends ? rows.sendFrom(peer) : rows.receiveFrom(peer)) * rowBytes;
                  if (count == 0) {
                    return NcclFfi.ncclSuccess();
                  }
                  MemorySegment at =
                      MemorySegment.ofAddress((sends ? send : receive).deviceAddress() + from);
                  int type = NcclFfi.ncclUint8();
                  return sends
                      ? NcclFfi.ncclSend(at, count, type, peer, comm, s)
                      : NcclFfi.ncclRecv(at, count, type, peer, comm, s);
                }));
  }

  private static String shape(Tensor t) {
    return t.dtype() + Arrays.toString(t.shape());
  }

  private static void requireRows(String name, Tensor t, Tensor like, long rows) {
    long[] shape = like.shape();
    shape[0] = rows;
    if (t.dtype() != like.dtype() || !Arrays.equals(t.shape(), shape)) {
      throw new IllegalArgumentException(
          name + " is " + t + ", must be " + like.dtype() + Arrays.toString(shape));
    }
  }

  private void requireHere(String name, Tensor t) {
    if (!(t.memory() instanceof DeviceMemory m) || !m.device().equals(card.id())) {
      throw new IllegalArgumentException(name + " is " + t + ", must be on " + card.id());
    }
    if (!t.isContiguous() || t.dims() == 0) {
      throw new IllegalArgumentException(name + " is " + t + ", must be contiguous rows");
    }
  }

  @Override
  public void check(DeviceStream stream) {
    if (used.contains(stream.handle())) {
      group.requireAlive();
    }
  }

  @Override
  public boolean endRecording(DeviceStream stream) {
    return recording.remove(stream.handle());
  }

  @Override
  public void beforeLaunch(DeviceStream stream) {
    used.add(stream.handle());
    group.requireAlive();
    if (rooms != null) {
      rooms.take(stream, false);
    }
    Marks.Call marked;
    try {
      marked = group.begin("a recorded graph", stream, false);
    } catch (RuntimeException e) {
      if (rooms != null) {
        rooms.release();
      }
      throw e;
    }
    if (marked != null) {
      launches.put(stream.handle(), marked);
    }
  }

  /** The other ranks have launched theirs, or will. */
  @Override
  public void launchFailed(DeviceStream stream, Throwable cause) {
    abort(cause);
    if (launches.remove(stream.handle()) != null && rooms != null) {
      rooms.release();
    }
  }

  @Override
  public void afterLaunch(DeviceStream stream) {
    Marks.Call marked = launches.remove(stream.handle());
    if (marked != null) {
      marked.end(stream);
      if (rooms != null) {
        rooms.end(stream, false);
      }
    }
  }

  @Override
  public void abort(Throwable cause) {
    group.fail(
        new CommException(rank, "rank " + rank + " of " + size + " aborted: " + cause, cause));
  }

  @Override
  public void close() {
    group.close();
    if (rooms != null) {
      rooms.close();
    }
    card.removeGuard(this);
  }
}
