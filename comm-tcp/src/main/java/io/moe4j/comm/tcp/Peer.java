package io.moe4j.comm.tcp;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import org.jspecify.annotations.Nullable;

/**
 * The connection with one other rank. What goes over it are frames, {@code int type, int length}
 * and a body: a {@link Call}, data, the end of the group with its cause, or a farewell. A frame is
 * put into the buffer whole, so the end of the group can be told between any two writes.
 */
final class Peer {
  private static final int CALL = 1;
  private static final int DATA = 2;
  private static final int ABORT = 3;
  private static final int BYE = 4;
  private static final int HEADER = 2 * Integer.BYTES;
  private static final int BUFFER = 1 << 18;
  private static final int MAX_WORDS = 1 << 14;

  /** Room that data leave, so that the end of the group can always be told. */
  private static final int FAREWELL = HEADER + MAX_WORDS;

  /** Writes and reads in a row before other ranks have their turn. */
  private static final int FAIR = 8;

  /** A rank, and what it did. */
  static final class Ended extends Exception {
    private static final long serialVersionUID = 1L;

    /** Who is to blame. */
    final int rank;

    /** Whether the message is whole, and not only what the rank did. */
    final boolean told;

    private Ended(int rank, boolean told, String message, @Nullable Throwable cause) {
      super(message, cause, false, false);
      this.rank = rank;
      this.told = told;
    }
  }

  final int rank;
  final String address;
  private final SocketChannel channel;
  private final SelectionKey key;

  /** Frames to be written, between position and limit. */
  private final ByteBuffer out = ByteBuffer.allocateDirect(BUFFER).flip();

  /** What was read and not looked at, before position. */
  private final ByteBuffer in = ByteBuffer.allocateDirect(BUFFER);

  private Call mine;
  private long expectedRows;
  private MemorySegment send = MemorySegment.NULL;
  private MemorySegment receive = MemorySegment.NULL;
  private long sent;
  private long received;
  private long frameLeft;
  private boolean called;
  private boolean left;
  private boolean told;
  long lastProgress;

  Peer(int rank, SocketChannel channel, Selector selector, Call first) throws IOException {
    this.rank = rank;
    this.channel = channel;
    this.mine = first;
    this.address = String.valueOf(channel.getRemoteAddress()).replace("/", "");
    channel.configureBlocking(false);
    this.key = channel.register(selector, 0, this);
  }

  /**
   * Starts a call; the last one is done.
   *
   * @param call with the rows for this rank
   * @param toSend not written
   * @param toReceive overwritten
   * @param rows what it is to send
   */
  void begin(Call call, MemorySegment toSend, MemorySegment toReceive, long rows) throws Ended {
    mine = call;
    expectedRows = rows;
    send = toSend;
    receive = toReceive;
    sent = 0;
    received = 0;
    called = false;
    lastProgress = System.nanoTime();
    out.clear();
    out.putInt(CALL).putInt(0);
    call.write(out);
    out.putInt(Integer.BYTES, out.position() - HEADER);
    fill();
    out.flip();
    parse(); // it may have been early
    key.interestOps(interest());
  }

  private void fill() {
    long n = Math.min(out.remaining() - HEADER - FAREWELL, send.byteSize() - sent);
    if (n > 0) {
      out.putInt(DATA).putInt((int) n);
      MemorySegment to = MemorySegment.ofBuffer(out);
      MemorySegment.copy(send, sent, to, 0, n);
      out.position(out.position() + (int) n);
      sent += n;
    }
  }

  boolean isDone() {
    return hasSent() && hasReceived();
  }

  boolean hasSent() {
    return sent == send.byteSize() && !out.hasRemaining();
  }

  boolean hasReceived() {
    return called && received == receive.byteSize() && frameLeft == 0;
  }

  private int interest() {
    // One that has sent everything may still say that the group has ended.
    return (hasSent() ? 0 : SelectionKey.OP_WRITE) | (isDone() ? 0 : SelectionKey.OP_READ);
  }

  /** Does what the socket is ready for. */
  void advance() throws Ended {
    try {
      if (key.isWritable()) {
        write();
      }
      if (key.isReadable()) {
        read();
      }
      key.interestOps(interest());
    } catch (IOException e) {
      throw lastWords(e);
    }
  }

  private void write() throws IOException {
    for (int n = 0; n < FAIR && !hasSent(); n++) {
      if (!out.hasRemaining()) {
        out.clear();
        fill();
        out.flip();
      }
      if (channel.write(out) == 0) {
        return;
      }
      lastProgress = System.nanoTime();
    }
  }

  private void read() throws IOException, Ended {
    for (int n = 0; n < FAIR && !isDone() && in.hasRemaining(); n++) {
      int count = channel.read(in);
      if (count < 0) {
        throw gone(null);
      }
      if (count == 0) {
        return;
      }
      lastProgress = System.nanoTime();
      parse();
    }
  }

  private Ended gone(@Nullable Throwable cause) {
    return new Ended(
        rank, false, left ? "has left the group" : "ended: its connection is closed", cause);
  }

  /** A rank that ends says why before it closes; that is worth more than what the socket says. */
  private Ended lastWords(IOException e) {
    try {
      while (channel.read(in) > 0) {
        scan();
      }
      scan();
    } catch (IOException again) {
      e.addSuppressed(again);
    } catch (Ended words) {
      return words;
    }
    return gone(e);
  }

  /** Looks only for the end of the group; the call is lost anyway. */
  private void scan() throws Ended {
    in.flip();
    try {
      while (true) {
        int skip = (int) Math.min(frameLeft, in.remaining());
        in.position(in.position() + skip);
        frameLeft -= skip;
        if (frameLeft > 0 || in.remaining() < HEADER) {
          return;
        }
        int type = in.getInt(in.position());
        int length = in.getInt(in.position() + Integer.BYTES);
        if (type == DATA && length > 0) {
          in.position(in.position() + HEADER);
          frameLeft = length;
          continue;
        }
        if (length < 0 || in.remaining() < HEADER + length) {
          return;
        }
        in.position(in.position() + HEADER);
        if (type == ABORT) {
          abort(in, length);
        }
        in.position(in.position() + length);
        left |= type == BYE;
      }
    } finally {
      in.compact();
    }
  }

  /** Uses what has come, up to the end of the call. */
  private void parse() throws Ended {
    in.flip();
    try {
      while (true) {
        if (frameLeft > 0) {
          int n = (int) Math.min(frameLeft, in.remaining());
          MemorySegment.copy(MemorySegment.ofBuffer(in), 0, receive, received, n);
          in.position(in.position() + n);
          received += n;
          frameLeft -= n;
          if (frameLeft > 0) {
            return;
          }
        }
        if (in.remaining() < HEADER) {
          return;
        }
        int type = in.getInt(in.position());
        if (hasReceived() && type != ABORT) {
          return; // of the next call
        }
        int length = in.getInt(in.position() + Integer.BYTES);
        if (type == DATA && called && length > 0 && length <= receive.byteSize() - received) {
          in.position(in.position() + HEADER);
          frameLeft = length;
          continue;
        }
        if (length < 0 || length > MAX_WORDS || type < CALL || type > BYE || type == DATA) {
          throw new Ended(rank, false, "sends " + type + "/" + length + ", no frame", null);
        }
        if (in.remaining() < HEADER + length) {
          return;
        }
        in.position(in.position() + HEADER);
        frame(type, in.slice(in.position(), length));
        in.position(in.position() + length);
      }
    } finally {
      in.compact();
    }
  }

  private void frame(int type, ByteBuffer body) throws Ended {
    switch (type) {
      case CALL -> {
        Call theirs;
        try {
          theirs = Call.read(body);
        } catch (IllegalArgumentException e) {
          throw new Ended(rank, false, "sends " + e.getMessage() + ", no call", e);
        }
        if (!theirs.agreesWith(mine)) {
          throw new Ended(rank, false, "calls " + theirs + " where others call " + mine, null);
        }
        if (theirs.rows != expectedRows) {
          throw new Ended(
              rank, false, "sends " + theirs.rows + " rows, expected are " + expectedRows, null);
        }
        called = true;
      }
      case ABORT -> abort(body, body.remaining());
      default -> left = true;
    }
  }

  private void abort(ByteBuffer body, int length) throws Ended {
    if (length < Integer.BYTES) {
      throw new Ended(rank, false, "aborted", null);
    }
    int blamed = body.getInt(body.position());
    byte[] words = new byte[length - Integer.BYTES];
    body.get(body.position() + Integer.BYTES, words);
    throw new Ended(blamed, true, new String(words, StandardCharsets.UTF_8), null);
  }

  /** Puts the end of the group behind what is still to be written. */
  void tell(int blamed, String message) {
    byte[] words = message.getBytes(StandardCharsets.UTF_8);
    int n = Math.min(words.length, MAX_WORDS - Integer.BYTES);
    farewell(ABORT, ByteBuffer.allocate(Integer.BYTES + n).putInt(blamed).put(words, 0, n).flip());
  }

  /** Puts a farewell behind what is still to be written. */
  void sayBye() {
    farewell(BYE, ByteBuffer.allocate(0));
  }

  private void farewell(int type, ByteBuffer body) {
    if (told) {
      return;
    }
    told = true;
    sent = send.byteSize();
    out.compact();
    out.putInt(type).putInt(body.remaining()).put(body);
    out.flip();
  }

  /** {@return whether everything was written, or never will be} */
  boolean flush() {
    try {
      channel.write(out);
      return !out.hasRemaining();
    } catch (IOException e) {
      return true;
    }
  }

  /** No more from here; the other side sees the end behind what was written. */
  void finish() {
    try {
      channel.shutdownOutput();
    } catch (IOException e) {
      // it is closed already
    }
  }

  /** {@return whether the other side has closed, too} */
  boolean drain() {
    try {
      in.clear();
      int n = channel.read(in);
      while (n > 0) {
        in.clear();
        n = channel.read(in);
      }
      return n < 0;
    } catch (IOException e) {
      return true;
    }
  }

  void close() {
    key.cancel();
    Mesh.closeQuietly(channel);
  }
}
