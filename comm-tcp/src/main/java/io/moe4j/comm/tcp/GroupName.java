package io.moe4j.comm.tcp;

/**
 * {@code host:port} or {@code host:port/key}; an IPv6 address stands in brackets.
 *
 * @param host where rank 0 listens
 * @param port 1..65535
 * @param key what every rank has to say, may be empty
 */
record GroupName(String host, int port, String key) {
  static GroupName parse(String group) {
    int slash = group.indexOf('/');
    String place = slash < 0 ? group : group.substring(0, slash);
    String key = slash < 0 ? "" : group.substring(slash + 1);
    int colon = place.lastIndexOf(':');
    String host = colon < 0 ? "" : place.substring(0, colon);
    boolean bracketed = host.startsWith("[") && host.endsWith("]");
    if (bracketed) {
      host = host.substring(1, host.length() - 1);
    }
    int port = colon < 0 ? -1 : portOf(place.substring(colon + 1));
    if (host.isEmpty() || port < 1 || (host.indexOf(':') >= 0 && !bracketed)) {
      throw new IllegalArgumentException(
          "group is \""
              + group
              + "\", must be host:port or host:port/key, with an IPv6 address in brackets and a"
              + " port of 1..65535");
    }
    return new GroupName(host, port, key);
  }

  private static int portOf(String text) {
    try {
      int port = Integer.parseInt(text);
      return port <= 65535 ? port : -1;
    } catch (NumberFormatException e) {
      return -1;
    }
  }

  @Override
  public String toString() {
    String place = (host.indexOf(':') >= 0 ? "[" + host + "]" : host) + ":" + port;
    return key.isEmpty() ? place : place + "/" + key;
  }
}
