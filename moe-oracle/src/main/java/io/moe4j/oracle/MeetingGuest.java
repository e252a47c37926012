package io.moe4j.oracle;

import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.RankInfo;
import java.io.IOException;
import java.net.ConnectException;
import java.net.InetSocketAddress;
import java.net.NoRouteToHostException;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.net.UnknownHostException;
import java.time.Duration;
import java.util.SortedMap;

/** Every other rank of a {@link Rendezvous}. */
final class MeetingGuest {
  private static final int RETRY_MILLIS = 50;

  /** Beyond the deadline, in which rank 0 finds out who is missing, for it to say so. */
  private static final long PATIENCE_NANOS = Duration.ofSeconds(2).toNanos();

  private MeetingGuest() {}

  static String ask(RankInfo info, SortedMap<String, String> said, Duration deadline) {
    long end = System.nanoTime() + deadline.toNanos();
    String who =
        "rank 0 of "
            + info.worldSize()
            + " at "
            + info.masterAddress()
            + ":"
            + info.masterPort()
            + " ("
            + info.source()
            + ")";
    try (Socket socket = connect(info, who, end, deadline)) {
      Meeting.sendGuest(socket, new Meeting.Guest(info.rank(), said));
      return Meeting.readAnswer(socket, millis(end + PATIENCE_NANOS));
    } catch (SocketTimeoutException e) {
      throw new CommException(0, who + " did not answer within " + deadline, e);
    } catch (IOException e) {
      throw new CommException(
          0, who + " ended, or is something else that listens there: " + e.getMessage(), e);
    }
  }

  private static int millis(long end) {
    return Math.clamp((end - System.nanoTime()) / 1_000_000, 1, Integer.MAX_VALUE);
  }

  private static Socket connect(RankInfo info, String who, long end, Duration deadline)
      throws IOException {
    while (true) {
      Socket socket = new Socket();
      try {
        InetSocketAddress at = new InetSocketAddress(info.masterAddress(), info.masterPort());
        if (at.isUnresolved()) {
          throw new UnknownHostException(info.masterAddress());
        }
        socket.connect(at, millis(end));
        return socket;
      } catch (ConnectException
          | SocketTimeoutException
          | NoRouteToHostException
          | UnknownHostException e) {
        socket.close(); // it may not listen, or have no name, yet
        if (System.nanoTime() - end >= 0) {
          throw new CommException(
              0, who + " was not there within " + deadline + ": " + e.getMessage(), e);
        }
        pause(who);
      } catch (IOException e) {
        socket.close();
        throw e;
      }
    }
  }

  private static void pause(String who) {
    try {
      Thread.sleep(RETRY_MILLIS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new CommException(0, "interrupted while waiting for " + who, e);
    }
  }
}
