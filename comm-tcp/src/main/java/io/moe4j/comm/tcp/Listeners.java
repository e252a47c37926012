package io.moe4j.comm.tcp;

import io.moe4j.api.comm.CommException;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.UnknownHostException;
import java.nio.channels.ServerSocketChannel;
import java.security.SecureRandom;
import java.util.HexFormat;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/** Sockets of groups that were named in this JVM and not opened yet. */
final class Listeners {
  private static final Map<String, ServerSocketChannel> WAITING = new ConcurrentHashMap<>();
  private static final SecureRandom RANDOM = new SecureRandom();

  private Listeners() {}

  static String listen(String host) {
    byte[] key = new byte[16];
    RANDOM.nextBytes(key);
    ServerSocketChannel socket = bind(host, 0);
    try {
      int port = ((InetSocketAddress) socket.getLocalAddress()).getPort();
      String name = new GroupName(host, port, HexFormat.of().formatHex(key)).toString();
      WAITING.put(name, socket);
      return name;
    } catch (IOException e) {
      throw new CommException(0, "rank 0 cannot listen on " + host + ": " + e, e);
    }
  }

  /** The socket on which rank 0 waits for the others; the caller closes it. */
  static ServerSocketChannel take(String group) {
    ServerSocketChannel waiting = WAITING.remove(group);
    if (waiting != null) {
      return waiting;
    }
    GroupName name = GroupName.parse(group);
    return bind(name.host(), name.port());
  }

  static ServerSocketChannel bind(String host, int port) {
    InetSocketAddress address = new InetSocketAddress(host, port);
    try {
      if (address.isUnresolved()) {
        throw new UnknownHostException(host);
      }
      ServerSocketChannel socket = ServerSocketChannel.open();
      try {
        socket.bind(address, 1024);
        return socket;
      } catch (IOException | RuntimeException e) {
        socket.close();
        throw e;
      }
    } catch (IOException e) {
      throw new CommException(
          0, "rank 0 cannot listen on " + host + ":" + port + ": " + e.getMessage(), e);
    }
  }
}
