package io.moe4j.oracle;

import io.moe4j.api.comm.CommException;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.util.SortedMap;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;

/**
 * What goes over a connection at a {@link Rendezvous}: a guest says its rank and what it is about
 * to run, rank 0 answers with the group's name, or with why there is none.
 */
final class Meeting {
  private static final int MAGIC = 0x4d344a52; // "M4JR"
  private static final int MAX_ENTRIES = 10_000;
  private static final int MAX_TEXT = 1 << 16;

  /**
   * A guest.
   *
   * @param rank as it says
   * @param said by name
   */
  record Guest(int rank, SortedMap<String, String> said) {}

  private Meeting() {}

  static void sendGuest(Socket to, Guest guest) throws IOException {
    DataOutputStream out = output(to);
    out.writeInt(MAGIC);
    out.writeInt(guest.rank);
    out.writeInt(guest.said.size());
    for (var entry : guest.said.entrySet()) {
      writeText(out, entry.getKey());
      writeText(out, entry.getValue());
    }
    out.flush();
  }

  /** {@return who came, null if it is no rank of ours} */
  static @Nullable Guest readGuest(Socket from, int millis) {
    try {
      from.setSoTimeout(millis);
      DataInputStream in = new DataInputStream(from.getInputStream());
      if (in.readInt() != MAGIC) {
        return null;
      }
      int rank = in.readInt();
      int entries = in.readInt();
      if (entries < 0 || entries > MAX_ENTRIES) {
        return null;
      }
      SortedMap<String, String> said = new TreeMap<>();
      for (int n = 0; n < entries; n++) {
        said.put(readText(in), readText(in));
      }
      return new Guest(rank, said);
    } catch (IOException e) {
      return null; // a port scanner, or a rank that died: it will be missed
    }
  }

  static void sendGroup(Socket to, String group) throws IOException {
    DataOutputStream out = output(to);
    out.writeInt(MAGIC);
    out.writeBoolean(true);
    writeText(out, group);
    out.flush();
  }

  static void sendRefusal(Socket to, int rank, String why) throws IOException {
    DataOutputStream out = output(to);
    out.writeInt(MAGIC);
    out.writeBoolean(false);
    out.writeInt(rank);
    writeText(out, why);
    out.flush();
  }

  /**
   * {@return the group's name}
   *
   * @throws CommException if rank 0 refused
   * @throws IOException if nothing of the kind came
   */
  static String readAnswer(Socket from, int millis) throws IOException {
    from.setSoTimeout(millis);
    DataInputStream in = new DataInputStream(from.getInputStream());
    if (in.readInt() != MAGIC) {
      throw new IOException("it speaks another protocol");
    }
    if (in.readBoolean()) {
      return readText(in);
    }
    int rank = in.readInt();
    throw new CommException(rank, readText(in), null);
  }

  private static DataOutputStream output(Socket to) throws IOException {
    return new DataOutputStream(new BufferedOutputStream(to.getOutputStream()));
  }

  private static void writeText(DataOutputStream out, String text) throws IOException {
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    int n = Math.min(bytes.length, MAX_TEXT);
    out.writeInt(n);
    out.write(bytes, 0, n);
  }

  private static String readText(DataInputStream in) throws IOException {
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
}
