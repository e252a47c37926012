package io.moe4j.comm.nccl;

import io.moe4j.api.DeviceException;
import io.moe4j.api.comm.CommException;
import io.moe4j.api.config.SystemSettings;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaEvent;
import io.moe4j.cuda.PeerMemory;
import io.moe4j.cuda.PinnedBuffer;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Deque;
import java.util.List;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;

/**
 * The rooms of one group, and whose turn it is: one forward at a time, from its gather to its sum,
 * in the order of the calls, which is the same on every rank. A room that is too small is followed
 * by a larger one; the old ones stay, graphs may have recorded them. All ranks find out together,
 * by NCCL, whether they reach each other's memory; where one does not, none does.
 */
final class PeerRooms implements AutoCloseable {
  /** {@code off}: rows travel by NCCL alone. The same on every rank. */
  static final String PROPERTY = "moe4j.exchange.direct";

  /** Of {@code peers.cu}. */
  static final int MOST_RANKS = 8;

  private static final long LEAST_BYTES = 2L << 20;
  private static final long ALIGNMENT = 4096;
  private static final int HOST_BYTES = 64;
  private static final int SHARED_BYTES = HOST_BYTES + PeerMemory.TICKET_BYTES;

  /** A rank's memory, then the sizes that it came with. */
  static final int CARD_BYTES = SHARED_BYTES + 2 * Long.BYTES;

  private static final long POLL_MILLIS = 20;

  /** What rooms need of the group. */
  interface Group {
    int rank();

    int size();

    Duration deadline();

    /**
     * Says why the group has ended.
     *
     * @throws CommException if it has
     */
    void requireAlive();

    void allGather(Tensor send, Tensor receive, DeviceStream stream);

    /** {@return what to throw; the group has ended with it, or ended before} */
    CommException failed(CommException why);
  }

  private final Group group;
  private final CudaDevice device;
  private final List<PeerRoom> rooms = new ArrayList<>();
  private final PinnedBuffer stop;
  private final CudaEvent last;
  private final Device.Buffer from;
  private final Device.Buffer to;
  private final Semaphore turn = new Semaphore(1);
  private boolean any;
  private volatile @Nullable String refused;
  private volatile boolean made;
  private @Nullable PeerRoom held;
  private @Nullable Thread holder;
  private boolean closed;

  PeerRooms(Group group, CudaDevice device) {
    this.group = group;
    this.device = device;
    Deque<AutoCloseable> taken = new ArrayDeque<>();
    try {
      this.stop = device.allocatePinned(Long.BYTES);
      taken.push(this.stop);
      this.stop.segment().fill((byte) 0);
      this.last = device.newEvent(false);
      taken.push(this.last);
      // Kept: giving memory back waits for other ranks' devices, and those may wait for this rank.
      this.from = device.allocate(CARD_BYTES);
      taken.push(this.from);
      this.to = device.allocate((long) CARD_BYTES * group.size());
    } catch (RuntimeException | Error e) {
      giveBack(taken, e); // nobody else could
      throw e;
    }
  }

  private static void giveBack(Iterable<AutoCloseable> taken, Throwable because) {
    for (AutoCloseable c : taken) {
      try {
        c.close();
      } catch (Exception e) {
        because.addSuppressed(e);
      }
    }
  }

  /**
   * {@return whether ranks of this group may try; not where {@link #fault} says something: then
   * nobody would use the rooms}
   */
  static boolean isWanted(int size) {
    return fault() == null && isOn() && size > 1 && size <= MOST_RANKS;
  }

  /** {@return what is mistyped, for the exchange that uses the rooms; null where nothing is} */
  static @Nullable String fault() {
    return SystemSettings.fault(PeerRooms::isOn);
  }

  private static boolean isOn() {
    return SystemSettings.oneOf(PROPERTY, true, new Boolean[] {true, false}, b -> b ? "on" : "off");
  }

  /** {@return address of the word that makes kernels give up, once it is not 0} */
  long stopAddress() {
    return stop.segment().address();
  }

  /** Makes waiting kernels return. */
  synchronized void stop() {
    if (!closed) {
      stop.segment().set(ValueLayout.JAVA_INT, 0, 1);
    }
  }

  /**
   * Takes the turn, until {@link #end}.
   *
   * @param arriving bytes that a gather brings
   * @param sums bytes that a sum brings
   * @param records whether the stream records; then there is no larger room
   * @return where they go, null if they have to go by NCCL: the same answer on every rank
   */
  @Nullable PeerRoom begin(long arriving, long sums, DeviceStream stream, boolean records) {
    if (refused != null) {
      return null;
    }
    take(stream, records);
    PeerRoom room = null;
    try {
      room = fitting(arriving, sums);
      if (room == null && !records && refused == null) {
        room = grow(arriving, sums, stream);
      }
    } finally {
      if (room == null) {
        turn.release();
      } else {
        held = room;
        holder = Thread.currentThread();
      }
    }
    return room;
  }

  /** {@return the room of this thread's forward, null if its rows travel by NCCL} */
  @Nullable PeerRoom held() {
    return Thread.currentThread().equals(holder) ? held : null;
  }

  /** Ends a forward's turn, or that of a launch. */
  void end(DeviceStream stream, boolean records) {
    try {
      if (!records) {
        last.record(stream);
        any = true;
      }
    } finally {
      release();
    }
  }

  /** Ends a turn in which nothing was enqueued, or that of a group that has ended. */
  void release() {
    held = null;
    holder = null;
    turn.release();
  }

  /**
   * Takes the turn for a launch, until {@link #end}. Who does not get it ends the group: the other
   * ranks may have enqueued this forward, and would meet this rank's next one.
   */
  void take(DeviceStream stream, boolean records) {
    long start = System.nanoTime();
    try {
      boolean mine = turn.tryAcquire(); // also for a thread that is interrupted
      while (!mine) {
        group.requireAlive();
        if (System.nanoTime() - start > group.deadline().toNanos()) {
          throw group.failed(
              new CommException(
                  group.rank(),
                  "another forward of rank "
                      + group.rank()
                      + " has not been enqueued within "
                      + group.deadline(),
                  null));
        }
        mine = turn.tryAcquire(POLL_MILLIS, TimeUnit.MILLISECONDS);
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw group.failed(
          new CommException(group.rank(), "rank " + group.rank() + " was interrupted", e));
    }
    // Streams may be different ones; recorded work gets its place when it is launched.
    if (!records && any) {
      last.makeWait(stream);
    }
  }

  private @Nullable PeerRoom fitting(long arriving, long sums) {
    PeerRoom newest = rooms.isEmpty() ? null : rooms.getLast();
    return newest != null && newest.fits(arriving, sums) ? newest : null;
  }

  private static long sized(long needed, long before) {
    long bytes = Math.max(Math.max(needed, LEAST_BYTES), needed > before ? 2 * before : before);
    return Math.ceilDiv(bytes, ALIGNMENT) * ALIGNMENT;
  }

  /** A collective step: every rank comes here in the same call; with other sizes the group ends. */
  private @Nullable PeerRoom grow(long arriving, long sums, DeviceStream stream) {
    PeerRoom before = rooms.isEmpty() ? null : rooms.getLast();
    long a = sized(arriving, before == null ? 0 : before.arriving());
    long s = sized(sums, before == null ? 0 : before.sums());
    List<PeerMemory> all = new ArrayList<>();
    byte[] card = card(arriving, sums); // zeros before the sizes: this rank shares nothing
    String why = "";
    PeerMemory mine = null;
    try {
      mine = PeerMemory.allocate(device, PeerRoom.byteSize(a, s));
      byte[] host = host();
      System.arraycopy(host, 0, card, 0, host.length);
      System.arraycopy(mine.ticket(), 0, card, HOST_BYTES, PeerMemory.TICKET_BYTES);
    } catch (DeviceException | LinkageError e) {
      why = String.valueOf(e.getMessage());
    }
    boolean kept = false;
    try {
      byte[][] cards = exchange(card, stream);
      CommException differ = disagreement(cards);
      if (differ != null) {
        throw group.failed(differ);
      }
      if (mine != null) {
        why = mapAll(mine, cards, all);
      }
      byte[][] verdicts = exchange(new byte[] {(byte) (why.isEmpty() ? 1 : 0)}, stream);
      for (int r = 0; r < verdicts.length && why.isEmpty(); r++) {
        why = verdicts[r][0] == 1 ? "" : "rank " + r + " does not reach the others' memory";
      }
      kept = why.isEmpty();
    } finally {
      if (!kept) {
        all.forEach(PeerMemory::close);
        if (mine != null) {
          mine.close();
        }
      }
    }
    if (!kept) {
      refused = why;
      return null;
    }
    PeerRoom room = new PeerRoom(List.copyOf(all), group.rank(), a, s);
    rooms.add(room);
    made = true;
    return room;
  }

  /** {@return a card that shares nothing yet} */
  static byte[] card(long arriving, long sums) {
    byte[] card = new byte[CARD_BYTES];
    ByteBuffer.wrap(card, SHARED_BYTES, 2 * Long.BYTES).putLong(arriving).putLong(sums);
    return card;
  }

  /**
   * {@return what to throw where ranks came with different sizes, null where all have the same}
   * Each would write where its own sizes say, past the end of a smaller room.
   *
   * @param cards of all ranks: every rank finds the same
   */
  static @Nullable CommException disagreement(byte[][] cards) {
    for (int r = 1; r < cards.length; r++) {
      if (!Arrays.equals(cards[r], SHARED_BYTES, CARD_BYTES, cards[0], SHARED_BYTES, CARD_BYTES)) {
        return new CommException(
            r,
            "ranks exchange different sizes: rank "
                + r
                + " has "
                + sizes(cards[r])
                + ", rank 0 has "
                + sizes(cards[0])
                + "; layers, numbers of tokens (rankTokens, or the tokens that every rank has) and"
                + " -Dmoe4j.exchange settings must be the same on every rank",
            null);
      }
    }
    return null;
  }

  private static String sizes(byte[] card) {
    ByteBuffer at = ByteBuffer.wrap(card, SHARED_BYTES, 2 * Long.BYTES);
    return at.getLong() + " bytes of rows and " + at.getLong() + " of sums";
  }

  /** {@return why it did not work, or nothing} */
  private String mapAll(PeerMemory mine, byte[][] cards, List<PeerMemory> all) {
    try {
      for (int r = 0; r < cards.length; r++) {
        byte[] card = cards[r];
        if (r == group.rank()) {
          all.add(mine);
        } else if (Arrays.equals(card, 0, SHARED_BYTES, new byte[SHARED_BYTES], 0, SHARED_BYTES)) {
          return "rank " + r + " shares no memory";
        } else if (!Arrays.equals(card, 0, HOST_BYTES, cards[group.rank()], 0, HOST_BYTES)) {
          return "rank " + r + " is on another host";
        } else {
          all.add(PeerMemory.map(device, Arrays.copyOfRange(card, HOST_BYTES, SHARED_BYTES)));
        }
      }
      return "";
    } catch (DeviceException e) {
      return String.valueOf(e.getMessage());
    }
  }

  /** What the processes of one boot of one machine have in common, containers or not. */
  private static byte[] host() {
    String boot = "";
    try {
      boot = Files.readString(Path.of("/proc/sys/kernel/random/boot_id")).strip();
    } catch (IOException e) {
      boot = "unknown"; // then a handle that is not of this host is refused by the driver
    }
    return Arrays.copyOf(boot.getBytes(StandardCharsets.US_ASCII), HOST_BYTES);
  }

  private byte[][] exchange(byte[] mine, DeviceStream stream) {
    int n = mine.length;
    byte[] all = new byte[n * group.size()];
    Tensor send = Tensor.of(DType.U8, from.memory(), 1, n);
    Tensor receive = Tensor.of(DType.U8, to.memory(), group.size(), n);
    device.copy(Tensor.of(DType.U8, MemorySegment.ofArray(mine), 1, n), send, stream);
    group.allGather(send, receive, stream);
    device.copy(receive, Tensor.of(DType.U8, MemorySegment.ofArray(all), group.size(), n), stream);
    stream.synchronize();
    byte[][] by = new byte[group.size()][];
    for (int r = 0; r < by.length; r++) {
      by[r] = Arrays.copyOfRange(all, r * n, (r + 1) * n);
    }
    return by;
  }

  /** {@return how rows travel, in words; empty as long as nobody has tried} */
  String about() {
    String why = refused;
    return why != null ? " (rows by NCCL: " + why + ")" : made ? " (rows direct)" : "";
  }

  /** Kernels of this rank have finished, or return because of {@link #stop}. */
  @Override
  public void close() {
    stop();
    synchronized (this) {
      if (closed) {
        return;
      }
      closed = true;
    }
    refused = "the group has ended";
    if (any) {
      try {
        last.synchronize();
      } catch (DeviceException e) {
        // the device is broken: nothing runs there any more
      }
    }
    rooms.forEach(PeerRoom::close);
    rooms.clear();
    last.close();
    from.close();
    to.close();
    stop.close();
  }
}
