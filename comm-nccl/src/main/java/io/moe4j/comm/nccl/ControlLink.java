package io.moe4j.comm.nccl;

import io.moe4j.api.comm.CommException;
import java.io.BufferedInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.CompletableFuture;
import org.jspecify.annotations.Nullable;

/** One connection of {@link Control}; a message is a kind, a rank, a number and two texts. */
final class ControlLink {
  static final int HELLO = 1;
  static final int WELCOME = 2;
  static final int FAILURE = 3;
  static final int ASK = 4;
  static final int ANSWER = 5;
  static final int LATE = 6;
  static final int BYE = 7;

  private static final int MAGIC = 0x4d344a4e; // "M4JN"
  private static final int MAX_TEXT = 1 << 14;

  /**
   * A message.
   *
   * @param kind one of the above
   * @param rank whom it is about
   * @param number of ranks or of a call
   * @param text words
   * @param more words
   */
  record Message(int kind, int rank, long number, String text, String more) {}

  final String address;
  final CompletableFuture<Message> answer = new CompletableFuture<>();
  int rank = -1;

  /** How many calls the rank had made when it left, -1 while it is here. */
  volatile long leftAfter = -1;

  private final Socket socket;
  private final DataInputStream in;
  private final Object writing = new Object();

  ControlLink(Socket socket) throws IOException {
    this.socket = socket;
    socket.setTcpNoDelay(true);
    in = new DataInputStream(new BufferedInputStream(socket.getInputStream()));
    address = String.valueOf(socket.getRemoteSocketAddress()).replaceFirst("^.*/", "");
  }

  void send(int kind, int about, long number, String text) {
    send(kind, about, number, text, "");
  }

  /** A connection that is gone is noticed by who reads from it. */
  void send(int kind, int about, long number, String text, String more) {
    try {
      ByteArrayOutputStream bytes = new ByteArrayOutputStream();
      DataOutputStream out = new DataOutputStream(bytes);
      out.writeInt(MAGIC);
      out.writeInt(kind);
      out.writeInt(about);
      out.writeLong(number);
      writeText(out, text);
      writeText(out, more);
      synchronized (writing) {
        socket.getOutputStream().write(bytes.toByteArray());
      }
    } catch (IOException e) {
      // see above
    }
  }

  void sendFailure(CommException why) {
    send(FAILURE, why.rank(), 0, String.valueOf(why.getMessage()));
  }

  /**
   * {@return the next message, null if none of ours comes}
   *
   * @param millis how long to wait, 0 = for ever
   */
  @Nullable Message read(int millis) {
    try {
      socket.setSoTimeout(millis);
      if (in.readInt() != MAGIC) {
        return null;
      }
      return new Message(in.readInt(), in.readInt(), in.readLong(), readText(), readText());
    } catch (IOException e) {
      return null;
    }
  }

  private static void writeText(DataOutputStream out, String text) throws IOException {
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    int n = Math.min(bytes.length, MAX_TEXT);
    out.writeInt(n);
    out.write(bytes, 0, n);
  }

  private String readText() throws IOException {
    int n = in.readInt();
    if (n < 0 || n > MAX_TEXT) {
      throw new IOException("a text of " + n + " bytes");
    }
    byte[] bytes = in.readNBytes(n);
    if (bytes.length < n) {
      throw new IOException("a text that is cut short");
    }
    return new String(bytes, StandardCharsets.UTF_8);
  }

  void shutdownOutput() {
    try {
      socket.shutdownOutput();
    } catch (IOException e) {
      // it is closed already
    }
  }

  void close() {
    try {
      socket.close();
    } catch (IOException e) {
      // nothing is lost with it
    }
  }
}
