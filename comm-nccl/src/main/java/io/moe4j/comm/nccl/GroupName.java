package io.moe4j.comm.nccl;

import java.util.HexFormat;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * A group: NCCL's 128 bytes in hexadecimal, and behind {@code @} where rank 0 listens for the
 * others' control connections, {@code host:port/key}. Without that part, which another launcher may
 * not know, no rank that is missing can be named.
 *
 * @param hex NCCL's bytes in hexadecimal
 * @param host of rank 0; empty without control connections
 * @param port where it listens, 0 without
 * @param key a word that keeps out what connects by accident
 */
record GroupName(String hex, String host, int port, String key) {
  /** Of NCCL's ids. */
  static final int ID_BYTES = 128;

  private static final Pattern FORM =
      Pattern.compile("([0-9a-f]{256})(?:@(.+):(\\d{1,5})/(\\w+))?");

  static GroupName parse(String group) {
    Matcher m = FORM.matcher(group);
    if (!m.matches()) {
      throw new IllegalArgumentException(
          "group is \""
              + (group.length() > 40 ? group.substring(0, 40) + "..." : group)
              + "\", must be what newGroup gave, or NCCL's "
              + ID_BYTES
              + " bytes in hexadecimal");
    }
    String hex = m.group(1);
    return m.group(2) == null
        ? new GroupName(hex, "", 0, "")
        : new GroupName(hex, m.group(2), Integer.parseInt(m.group(3)), m.group(4));
  }

  /** {@return NCCL's bytes} */
  byte[] id() {
    return HexFormat.of().parseHex(hex);
  }

  boolean hasControl() {
    return port > 0;
  }

  @Override
  public String toString() {
    return hasControl() ? hex + "@" + host + ":" + port + "/" + key : hex;
  }
}
