package io.moe4j.oracle;

import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.RankInfo;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.SortedMap;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.UnaryOperator;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/** Rank 0 of a {@link Rendezvous}. */
final class MeetingHost {
  /** How long a guest may take to say who it is; ours do at once. */
  private static final int GREETING_MILLIS = 2000;

  /** After a refusal, for ranks that come a little later to hear it as well. */
  private static final long LINGER_NANOS = Duration.ofSeconds(1).toNanos();

  private static final int LONGEST_TEXT = 2000;

  private final RankInfo info;
  private final SortedMap<String, String> said;
  private final Duration deadline;
  private final long start = System.nanoTime();
  private final Map<Integer, Socket> guests = new TreeMap<>();
  private final List<Socket> refused = new ArrayList<>();
  private final List<String> differences = new ArrayList<>();
  private int blamed = -1;

  MeetingHost(RankInfo info, SortedMap<String, String> said, Duration deadline) {
    this.info = info;
    this.said = said;
    this.deadline = deadline;
  }

  /**
   * Waits for all, and hands out a group.
   *
   * @param newGroup names a group that the others reach by an address of this host
   * @return the group
   */
  String handOut(UnaryOperator<String> newGroup) {
    try (ServerSocket listener = listen()) {
      while (guests.size() + refused.size() < info.worldSize() - 1) {
        Socket guest = accept(listener, deadline.toNanos());
        if (guest == null) {
          missing();
          break;
        }
        receive(guest);
      }
      if (!differences.isEmpty()) {
        throw refuse(listener);
      }
      return give(newGroup.apply(reachable()));
    } catch (IOException e) {
      throw new CommException(0, "rank 0 of " + info.worldSize() + " failed: " + e, e);
    } finally {
      guests.values().forEach(MeetingHost::close);
      refused.forEach(MeetingHost::close);
    }
  }

  private ServerSocket listen() throws IOException {
    InetAddress master = InetAddress.getByName(info.masterAddress());
    ServerSocket socket = new ServerSocket();
    try {
      // The master's name may be that of a service in front of this host: any address will do.
      InetSocketAddress at =
          master.isLoopbackAddress()
              ? new InetSocketAddress(master, info.masterPort())
              : new InetSocketAddress(info.masterPort());
      socket.setReuseAddress(true);
      socket.bind(at, 1024);
      return socket;
    } catch (IOException e) {
      socket.close();
      throw new CommException(
          0,
          "rank 0 cannot listen on port "
              + info.masterPort()
              + " ("
              + info.source()
              + "): "
              + e.getMessage()
              + "; set MASTER_PORT to a free one on every rank",
          e);
    }
  }

  private @Nullable Socket accept(ServerSocket listener, long nanos) throws IOException {
    long left = start + nanos - System.nanoTime();
    if (left <= 0) {
      return null;
    }
    listener.setSoTimeout(Math.clamp(left / 1_000_000, 1, Integer.MAX_VALUE));
    try {
      return listener.accept();
    } catch (SocketTimeoutException e) {
      return null;
    }
  }

  private void receive(Socket socket) {
    Meeting.Guest guest = Meeting.readGuest(socket, GREETING_MILLIS);
    if (guest == null) {
      close(socket);
      return;
    }
    int rank = guest.rank();
    List<String> here = differences(rank, guest.said());
    if (here.isEmpty() && (rank < 1 || rank >= info.worldSize() || guests.containsKey(rank))) {
      here.add(
          "rank " + rank + (guests.containsKey(rank) ? " came twice" : " is none of the ranks"));
    }
    if (here.isEmpty()) {
      guests.put(rank, socket);
      return;
    }
    blamed = blamed < 0 ? rank : blamed;
    differences.addAll(here);
    refused.add(socket);
  }

  /** In full: what differs is often one word of many. */
  private List<String> differences(int rank, SortedMap<String, String> theirs) {
    List<String> all = new ArrayList<>();
    TreeSet<String> names = new TreeSet<>(said.keySet());
    names.addAll(theirs.keySet());
    for (String name : names) {
      String mine = said.getOrDefault(name, "nothing");
      String its = theirs.getOrDefault(name, "nothing");
      if (!mine.equals(its)) {
        all.add(name + ": rank " + rank + " has " + its + ", rank 0 has " + mine);
      }
    }
    return all;
  }

  private void missing() {
    List<Integer> ranks =
        IntStream.range(1, info.worldSize()).filter(r -> !guests.containsKey(r)).boxed().toList();
    blamed = blamed < 0 ? ranks.getFirst() : blamed;
    differences.add(
        ranks.stream().map(r -> "rank " + r).collect(Collectors.joining(", "))
            + " of "
            + info.worldSize()
            + " did not come to "
            + info.masterAddress()
            + ":"
            + info.masterPort()
            + " within "
            + deadline
            + " ("
            + info.source()
            + ")");
  }

  private CommException refuse(ServerSocket listener) throws IOException {
    String why = String.join("; ", differences);
    if (why.length() > LONGEST_TEXT) {
      why = why.substring(0, LONGEST_TEXT) + "...";
    }
    List<Socket> all = new ArrayList<>(guests.values());
    all.addAll(refused);
    for (Socket s : all) {
      refuse(s, why);
    }
    long end = System.nanoTime() - start + LINGER_NANOS;
    for (Socket late = accept(listener, end); late != null; late = accept(listener, end)) {
      refused.add(late);
      if (Meeting.readGuest(late, GREETING_MILLIS) != null) {
        refuse(late, why);
      }
    }
    return new CommException(blamed, why, null);
  }

  private void refuse(Socket socket, String why) {
    try {
      Meeting.sendRefusal(socket, blamed, why);
    } catch (IOException e) {
      // it is gone, and needs no reason any more
    }
  }

  /** An address by which the others came; one of the network if any came from there. */
  private String reachable() {
    InetAddress best = InetAddress.getLoopbackAddress();
    for (Socket s : guests.values()) {
      if (best.isLoopbackAddress()) {
        best = s.getLocalAddress();
      }
    }
    return best.getHostAddress();
  }

  private String give(String group) {
    for (var guest : guests.entrySet()) {
      try {
        Meeting.sendGroup(guest.getValue(), group);
      } catch (IOException e) {
        int rank = guest.getKey();
        throw new CommException(
            rank, "rank " + rank + " of " + info.worldSize() + " ended: " + e, e);
      }
    }
    return group;
  }

  private static void close(Socket s) {
    try {
      s.close();
    } catch (IOException e) {
      // nothing is lost with it
    }
  }
}
