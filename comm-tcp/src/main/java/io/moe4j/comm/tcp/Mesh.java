package io.moe4j.comm.tcp;

import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommException;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.net.ConnectException;
import java.net.InetSocketAddress;
import java.net.NoRouteToHostException;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.net.StandardSocketOptions;
import java.net.UnknownHostException;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * Brings a group together: every rank connects to rank 0 and says who it is and where it listens;
 * when all have come, rank 0 tells everybody where the others are, and each rank connects to those
 * below it. If ranks disagree, rank 0 tells all of them so.
 */
final class Mesh {
  private static final int MAGIC = 0x4d344a54; // "M4JT"
  private static final int PROTOCOL = 1;

  /** How long somebody who connects may take to say who it is. A rank says so at once. */
  private static final int GREETING_MILLIS = 2000;

  private static final int RETRY_MILLIS = 20;

  private final CommConfig config;
  private final GroupName group;
  private final Deadline deadline;
  private final @Nullable SocketChannel[] channels;

  private Mesh(CommConfig config) {
    this.config = config;
    this.group = GroupName.parse(config.group());
    this.deadline = new Deadline(config.deadline());
    this.channels = new SocketChannel[config.size()];
  }

  /**
   * Joins.
   *
   * @return a connection to each rank, null for this one; the caller's
   * @throws CommException that names the rank that is missing, or that disagrees
   */
  static @Nullable SocketChannel[] connect(CommConfig config) {
    Mesh mesh = new Mesh(config);
    boolean done = false;
    try {
      if (config.rank() == 0) {
        mesh.gather();
      } else {
        mesh.join();
      }
      done = true;
      return mesh.channels;
    } finally {
      if (!done) {
        for (SocketChannel c : mesh.channels) {
          closeQuietly(c);
        }
      }
    }
  }

  /** What a rank says when it connects. */
  private record Hello(String key, int rank, int size, String host, int port) {
    void write(DataOutputStream out) throws IOException {
      out.writeInt(MAGIC);
      out.writeInt(PROTOCOL);
      out.writeUTF(key);
      out.writeInt(rank);
      out.writeInt(size);
      out.writeUTF(host);
      out.writeInt(port);
      out.flush();
    }

    /** {@return null where somebody else connected} */
    static @Nullable Hello read(DataInputStream in) throws IOException {
      if (in.readInt() != MAGIC || in.readInt() != PROTOCOL) {
        return null;
      }
      return new Hello(in.readUTF(), in.readInt(), in.readInt(), in.readUTF(), in.readInt());
    }
  }

  // rank 0

  private void gather() {
    Hello[] hellos = new Hello[config.size()];
    try (ServerSocketChannel listener = Listeners.take(config.group())) {
      for (int missing = config.size() - 1; missing > 0; missing--) {
        Hello hello = accept(listener, hellos);
        hellos[hello.rank] = hello;
      }
    } catch (IOException e) {
      throw new CommException(0, "rank 0 cannot listen on " + group + ": " + e, e);
    }
    for (int r = 1; r < config.size(); r++) {
      try {
        DataOutputStream out = output(channel(r));
        out.writeBoolean(true);
        for (int other = 1; other < config.size(); other++) {
          out.writeUTF(hellos[other].host);
          out.writeInt(hellos[other].port);
        }
        out.flush();
      } catch (IOException e) {
        throw new CommException(r, "rank " + r + " of " + config.size() + " ended: " + e, e);
      }
    }
  }

  /** The next rank, past strangers. */
  private Hello accept(ServerSocketChannel listener, Hello[] known) {
    while (true) {
      SocketChannel c = acceptOne(listener);
      if (c == null) {
        List<Integer> missing =
            IntStream.range(1, config.size()).filter(r -> channels[r] == null).boxed().toList();
        throw refuse(
            missing.getFirst(),
            missing.stream().map(r -> "rank " + r).collect(Collectors.joining(", "))
                + " of "
                + config.size()
                + " did not come to "
                + group.host()
                + ":"
                + group.port()
                + " within "
                + deadline.length,
            null);
      }
      Hello hello = greeting(c);
      if (hello == null || !hello.key.equals(group.key())) {
        closeQuietly(c);
        continue;
      }
      if (hello.size != config.size() || hello.rank < 1 || hello.rank >= config.size()) {
        throw refuse(
            hello.rank,
            "rank "
                + hello.rank
                + " says that the group has "
                + hello.size
                + " ranks, rank 0 says "
                + config.size(),
            c);
      }
      if (known[hello.rank] != null) {
        throw refuse(hello.rank, "rank " + hello.rank + " of " + config.size() + " came twice", c);
      }
      channels[hello.rank] = c;
      return hello;
    }
  }

  /** Tells everybody who has come, and {@code also}. */
  private CommException refuse(int rank, String why, @Nullable SocketChannel also) {
    List<SocketChannel> all = new ArrayList<>();
    for (SocketChannel c : channels) {
      if (c != null) {
        all.add(c);
      }
    }
    if (also != null) {
      all.add(also);
    }
    for (SocketChannel c : all) {
      try {
        DataOutputStream out = output(c);
        out.writeBoolean(false);
        out.writeInt(rank);
        out.writeUTF(why);
        out.flush();
      } catch (IOException e) {
        // it is gone, and needs no reason any more
      }
    }
    closeQuietly(also);
    return new CommException(rank, why, null);
  }

  // other ranks

  private void join() {
    SocketChannel zero = dial(0, group.host(), group.port());
    channels[0] = zero;
    try (ServerSocketChannel listener =
        Listeners.bind(((InetSocketAddress) zero.getLocalAddress()).getHostString(), 0)) {
      greet(0, listener);
      DataInputStream in = input(zero, deadline.millisLeft());
      List<InetSocketAddress> others = table(in);
      for (int r = 1; r < config.rank(); r++) {
        InetSocketAddress at = others.get(r - 1);
        channels[r] = dial(r, at.getHostString(), at.getPort());
        greet(r, listener);
      }
      for (int missing = config.size() - 1 - config.rank(); missing > 0; missing--) {
        acceptHigher(listener);
      }
    } catch (SocketTimeoutException e) {
      throw new CommException(
          0, zero() + " did not answer within " + deadline.length + "; is it still waiting?", e);
    } catch (IOException e) {
      throw new CommException(
          0, zero() + " ended before the group was complete, or is no rank of moe4j: " + e, e);
    }
  }

  private String zero() {
    return "rank 0 of " + config.size() + " at " + group.host() + ":" + group.port();
  }

  private List<InetSocketAddress> table(DataInputStream in) throws IOException {
    if (!in.readBoolean()) {
      int rank = in.readInt();
      throw new CommException(rank, in.readUTF(), null);
    }
    List<InetSocketAddress> others = new ArrayList<>();
    for (int r = 1; r < config.size(); r++) {
      others.add(new InetSocketAddress(in.readUTF(), in.readInt()));
    }
    return others;
  }

  private void greet(int rank, ServerSocketChannel listener) throws IOException {
    InetSocketAddress here = (InetSocketAddress) listener.getLocalAddress();
    new Hello(group.key(), config.rank(), config.size(), here.getHostString(), here.getPort())
        .write(output(channel(rank)));
  }

  private void acceptHigher(ServerSocketChannel listener) {
    while (true) {
      SocketChannel c = acceptOne(listener);
      if (c == null) {
        int missing = config.rank() + 1;
        while (channels[missing] != null) {
          missing++;
        }
        throw new CommException(
            missing,
            "rank "
                + missing
                + " of "
                + config.size()
                + " did not connect to rank "
                + config.rank()
                + " within "
                + deadline.length,
            null);
      }
      Hello hello = greeting(c);
      if (hello != null
          && hello.key.equals(group.key())
          && hello.rank > config.rank()
          && hello.rank < config.size()
          && channels[hello.rank] == null) {
        channels[hello.rank] = c;
        return;
      }
      closeQuietly(c);
    }
  }

  // sockets

  private SocketChannel channel(int rank) {
    SocketChannel c = channels[rank];
    if (c == null) {
      throw new IllegalStateException("rank " + rank + " is not connected");
    }
    return c;
  }

  /** {@return null when time is up} */
  private @Nullable SocketChannel acceptOne(ServerSocketChannel listener) {
    try {
      if (deadline.isOver()) {
        return null;
      }
      listener.socket().setSoTimeout(deadline.millisLeft());
      Socket s = listener.socket().accept();
      return prepare(s.getChannel());
    } catch (SocketTimeoutException e) {
      return null;
    } catch (IOException e) {
      throw new CommException(
          config.rank(), "rank " + config.rank() + " cannot accept connections: " + e, e);
    }
  }

  private @Nullable Hello greeting(SocketChannel c) {
    try {
      return Hello.read(input(c, Math.min(GREETING_MILLIS, deadline.millisLeft())));
    } catch (IOException e) {
      return null; // a port scanner, or a rank that died
    }
  }

  private SocketChannel dial(int rank, String host, int port) {
    String who = "rank " + rank + " of " + config.size() + " at " + host + ":" + port;
    while (true) {
      SocketChannel c = null;
      try {
        InetSocketAddress address = new InetSocketAddress(host, port);
        if (address.isUnresolved()) {
          throw new UnknownHostException(host);
        }
        c = SocketChannel.open();
        c.socket().connect(address, deadline.millisLeft());
        return prepare(c);
      } catch (ConnectException | SocketTimeoutException | NoRouteToHostException e) {
        closeQuietly(c);
        if (deadline.isOver()) {
          throw new CommException(
              rank, who + " did not answer within " + deadline.length + ": " + e.getMessage(), e);
        }
        pause(who, rank); // it may not listen yet
      } catch (IOException e) {
        closeQuietly(c);
        throw new CommException(rank, who + " cannot be reached: " + e, e);
      }
    }
  }

  private static void pause(String who, int rank) {
    try {
      Thread.sleep(RETRY_MILLIS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new CommException(rank, "interrupted while waiting for " + who, e);
    }
  }

  private static SocketChannel prepare(SocketChannel c) throws IOException {
    c.setOption(StandardSocketOptions.TCP_NODELAY, true);
    c.setOption(StandardSocketOptions.SO_KEEPALIVE, true);
    return c;
  }

  private static DataInputStream input(SocketChannel c, int timeoutMillis) throws IOException {
    c.socket().setSoTimeout(timeoutMillis);
    return new DataInputStream(c.socket().getInputStream());
  }

  private static DataOutputStream output(SocketChannel c) throws IOException {
    return new DataOutputStream(new java.io.BufferedOutputStream(c.socket().getOutputStream()));
  }

  static void closeQuietly(@Nullable SocketChannel c) {
    if (c != null) {
      try {
        c.close();
      } catch (IOException e) {
        // nothing is lost with it
      }
    }
  }
}
