package io.moe4j.comm.nccl;

import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommException;
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
import java.util.TreeMap;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicReference;
import org.jspecify.annotations.Nullable;

/**
 * What NCCL does not tell: which rank died, or why. Each rank has a connection to rank 0. A process
 * that ends closes it; a rank that fails says why; and where a call takes too long, rank 0 asks all
 * how many calls they have made, and tells everybody who is missing. No tensor travels here, and
 * nothing does in a call that goes well.
 */
final class Control implements AutoCloseable {
  private static final Duration ANSWERS = Duration.ofSeconds(1);
  private static final Duration VERDICT = Duration.ofSeconds(3);
  private static final int GREETING_MILLIS = 2000;
  private static final int RETRY_MILLIS = 20;

  /** The rank that this belongs to. Called by any thread. */
  interface Owner {
    /** The group has ended. */
    void ended(CommException why);

    /** {@return its calls} */
    CallLog log();
  }

  private final CommConfig config;
  private final Map<Integer, ControlLink> links;
  private final AtomicBoolean failed = new AtomicBoolean();
  private final CompletableFuture<CommException> end = new CompletableFuture<>();
  private final AtomicReference<@Nullable Owner> owner = new AtomicReference<>();
  private final AtomicBoolean deciding = new AtomicBoolean();
  private final List<Thread> readers = new ArrayList<>();
  private volatile boolean closing;

  private Control(CommConfig config, Map<Integer, ControlLink> links) {
    this.config = config;
    this.links = links;
  }

  /** {@return a socket that listens at an address of this host} */
  static ServerSocket listen(String host) {
    try {
      ServerSocket socket = new ServerSocket();
      socket.bind(new InetSocketAddress(InetAddress.getByName(host), 0), 1024);
      return socket;
    } catch (IOException e) {
      throw new CommException(
          0, "cannot listen at " + host + ": " + e.getMessage() + "; must be this host's", e);
    }
  }

  /**
   * Brings all ranks together.
   *
   * @param version of NCCL, the same on every rank
   * @param listener rank 0's, closed here; null on the others
   * @throws CommException if a rank does not come within the deadline, or is of another group
   */
  static Control open(
      GroupName group, CommConfig config, String version, @Nullable ServerSocket listener) {
    long start = System.nanoTime();
    return listener == null
        ? guest(group, config, version, start)
        : host(group, config, version, listener, start);
  }

  private static long left(CommConfig config, long start) {
    return config.deadline().toMillis() - (System.nanoTime() - start) / 1_000_000;
  }

  private static Control host(
      GroupName group, CommConfig config, String version, ServerSocket listener, long start) {
    Map<Integer, ControlLink> links = new TreeMap<>();
    CommException why = null;
    try (listener) {
      while (links.size() < config.size() - 1 && why == null) {
        long left = left(config, start);
        if (left <= 0) {
          why = missing(config, links);
          break;
        }
        listener.setSoTimeout(Math.clamp(left, 1, Integer.MAX_VALUE));
        try {
          ControlLink link = new ControlLink(listener.accept());
          ControlLink.Message hello = link.read(GREETING_MILLIS);
          if (hello == null
              || hello.kind() != ControlLink.HELLO
              || !hello.text().equals(group.key())) {
            link.close(); // a stranger
            continue;
          }
          why = difference(config, version, hello, links);
          if (why == null) {
            link.rank = hello.rank();
            links.put(link.rank, link);
          } else {
            link.sendFailure(why);
            link.close();
          }
        } catch (SocketTimeoutException e) {
          why = missing(config, links);
        }
      }
    } catch (IOException e) {
      why = new CommException(0, "rank 0 of " + config.size() + " failed: " + e, e);
    }
    if (why != null) {
      for (ControlLink link : links.values()) {
        link.sendFailure(why);
        link.close();
      }
      throw why;
    }
    links.values().forEach(l -> l.send(ControlLink.WELCOME, 0, 0, ""));
    return new Control(config, links);
  }

  private static CommException missing(CommConfig config, Map<Integer, ControlLink> links) {
    int rank = 1;
    while (links.containsKey(rank)) {
      rank++;
    }
    return new CommException(
        rank,
        "rank " + rank + " of " + config.size() + " did not come within " + config.deadline(),
        null);
  }

  private static @Nullable CommException difference(
      CommConfig config,
      String version,
      ControlLink.Message hello,
      Map<Integer, ControlLink> links) {
    int rank = hello.rank();
    String who = "rank " + rank;
    String wrong = null;
    if (hello.number() != config.size()) {
      wrong = who + " says that there are " + hello.number() + " ranks, rank 0 " + config.size();
    } else if (rank < 1 || rank >= config.size()) {
      wrong = who + " is none of " + config.size() + " ranks";
    } else if (links.containsKey(rank)) {
      wrong = who + " came twice";
    } else if (!hello.more().equals(version)) {
      wrong = who + " has " + hello.more() + ", rank 0 has " + version;
    }
    return wrong == null ? null : new CommException(rank, wrong, null);
  }

  private static Control guest(GroupName group, CommConfig config, String version, long start) {
    IOException last = null;
    while (left(config, start) > 0) {
      ControlLink link;
      try {
        Socket socket = new Socket();
        socket.connect(
            new InetSocketAddress(group.host(), group.port()),
            Math.clamp(left(config, start), 1, Integer.MAX_VALUE));
        link = new ControlLink(socket);
      } catch (IOException e) {
        last = e; // it may listen in a moment
        pause();
        continue;
      }
      link.rank = 0;
      link.send(ControlLink.HELLO, config.rank(), config.size(), group.key(), version);
      // Rank 0 waits for the others as long as this one would; then it says so.
      ControlLink.Message answer =
          link.read(Math.clamp(left(config, start) + ANSWERS.toMillis(), 1, Integer.MAX_VALUE));
      if (answer != null && answer.kind() == ControlLink.WELCOME) {
        Map<Integer, ControlLink> links = new TreeMap<>();
        links.put(0, link);
        return new Control(config, links);
      }
      link.close();
      throw answer != null && answer.kind() == ControlLink.FAILURE
          ? new CommException(answer.rank(), answer.text(), null)
          : new CommException(0, "rank 0 of " + config.size() + " ended", null);
    }
    throw new CommException(
        0,
        "rank 0 of "
            + config.size()
            + " at "
            + group.host()
            + ":"
            + group.port()
            + " did not come within "
            + config.deadline(),
        last);
  }

  private static void pause() {
    try {
      Thread.sleep(RETRY_MILLIS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new CommException(0, "interrupted while waiting for rank 0", e);
    }
  }

  /** Listens to the others from now on. */
  void start(Owner who) {
    owner.set(who);
    for (ControlLink link : links.values()) {
      readers.add(Thread.ofVirtual().name("nccl-control-" + link.rank).start(() -> listen(link)));
    }
  }

  private boolean isHost() {
    return config.rank() == 0;
  }

  private void listen(ControlLink link) {
    for (ControlLink.Message m = link.read(0); m != null; m = link.read(0)) {
      switch (m.kind()) {
        case ControlLink.FAILURE -> end(new CommException(m.rank(), m.text(), null), link.rank);
        case ControlLink.ASK -> {
          CallLog log = log();
          link.send(ControlLink.ANSWER, config.rank(), log.made(), log.what(m.number()));
        }
        case ControlLink.ANSWER -> link.answer.complete(m);
        case ControlLink.LATE -> decideBeside(m, link.rank);
        case ControlLink.BYE -> link.leftAfter = m.number();
        default -> {} // of a later version
      }
    }
    link.close();
    if (link.leftAfter < 0 && !closing) {
      end(new CommException(link.rank, who(link) + " ended", null), -1);
    }
  }

  /** Not in the thread that reads: the answers come by it. */
  private void decideBeside(ControlLink.Message late, int asker) {
    Thread.ofVirtual().start(() -> decide(late.number(), late.text(), asker));
  }

  private CallLog log() {
    Owner known = owner.get();
    return known == null ? new CallLog() : known.log();
  }

  private String who(ControlLink link) {
    return "rank " + link.rank + " of " + config.size() + " at " + link.address;
  }

  /** The first end is the group's; rank 0 passes it on. */
  private void end(CommException why, int from) {
    if (!failed.compareAndSet(false, true)) {
      return;
    }
    if (isHost()) {
      links.values().stream().filter(l -> l.rank != from).forEach(l -> l.sendFailure(why));
    }
    end.complete(why);
    Owner known = owner.get();
    if (known != null) {
      known.ended(why);
    }
  }

  /** Tells all ranks that the group has ended. */
  void fail(CommException why) {
    if (failed.compareAndSet(false, true)) {
      links.values().forEach(l -> l.sendFailure(why));
      end.complete(why);
    }
  }

  /**
   * Who is to blame for a call that takes too long. Ends the group.
   *
   * @param number of the call
   * @param what it is
   * @return the same on every rank, if rank 0 still answers
   */
  CommException blame(long number, String what) {
    if (isHost()) {
      decide(number, what, 0);
    } else {
      ControlLink host = links.get(0);
      if (host != null && host.leftAfter >= 0) {
        return new CommException(0, "rank 0 of " + config.size() + " has left the group", null);
      }
      if (host != null) {
        host.send(ControlLink.LATE, config.rank(), number, what);
      }
    }
    try {
      return end.get(VERDICT.toMillis(), TimeUnit.MILLISECONDS);
    } catch (TimeoutException | ExecutionException e) {
      return new CommException(0, "rank 0 of " + config.size() + " does not answer", null);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      return new CommException(
          config.rank(), "rank " + config.rank() + " of " + config.size() + " was interrupted", e);
    }
  }

  private void decide(long number, String what, int asker) {
    if (failed.get() || !deciding.compareAndSet(false, true)) {
      return;
    }
    for (ControlLink link : links.values()) {
      link.send(ControlLink.ASK, 0, number, "");
    }
    long until = System.nanoTime() + ANSWERS.toNanos();
    CommException verdict = null;
    String mine = log().what(number);
    if (asker != 0 && mine.isEmpty()) {
      verdict = absent(0, number, what, log().made());
    }
    for (ControlLink link : links.values()) {
      CommException why = judge(link, number, what, until);
      verdict = verdict == null ? why : verdict;
    }
    if (verdict == null && !mine.isEmpty() && !mine.equals(what)) {
      verdict = different(0, number, mine, asker, what);
    }
    end(
        verdict != null
            ? verdict
            : new CommException(
                asker,
                "call "
                    + number
                    + " ("
                    + what
                    + ") of rank "
                    + asker
                    + " of "
                    + config.size()
                    + " has not finished within "
                    + config.deadline()
                    + ", though every rank has made it",
                null),
        -1);
  }

  private @Nullable CommException judge(ControlLink link, long number, String what, long until) {
    if (link.leftAfter >= 0) {
      return link.leftAfter >= number
          ? null
          : new CommException(
              link.rank,
              "rank " + link.rank + " of " + config.size() + " has left the group",
              null);
    }
    try {
      long left = Math.max(1, until - System.nanoTime());
      ControlLink.Message answer = link.answer.get(left, TimeUnit.NANOSECONDS);
      if (answer.number() < number) {
        return absent(link.rank, number, what, answer.number());
      }
      return answer.text().isEmpty() || answer.text().equals(what)
          ? null
          : different(link.rank, number, answer.text(), -1, what);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      return null;
    } catch (TimeoutException | ExecutionException e) {
      return new CommException(link.rank, who(link) + " does not answer", null);
    }
  }

  private CommException absent(int rank, long number, String what, long made) {
    return new CommException(
        rank,
        "rank "
            + rank
            + " of "
            + config.size()
            + " did not come to call "
            + number
            + " ("
            + what
            + ") within "
            + config.deadline()
            + "; it has made "
            + made,
        null);
  }

  private CommException different(int rank, long number, String its, int other, String what) {
    return new CommException(
        rank,
        "ranks make different calls: call "
            + number
            + " of rank "
            + rank
            + " is "
            + its
            + ", of "
            + (other < 0 ? "another" : "rank " + other)
            + " "
            + what,
        null);
  }

  /** Says that this rank leaves, and closes the connections once the others have heard it. */
  @Override
  public void close() {
    closing = true;
    for (ControlLink link : links.values()) {
      link.send(ControlLink.BYE, config.rank(), log().made(), "");
      link.shutdownOutput();
    }
    long until = System.nanoTime() + ANSWERS.toNanos();
    for (Thread reader : readers) {
      try {
        reader.join(Duration.ofNanos(Math.max(1, until - System.nanoTime())));
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
      }
    }
    links.values().forEach(ControlLink::close);
  }
}
