package io.moe4j.oracle;

/** A class of the host application that a plugin carries in another version. */
public final class SharedMarker {
  /** Whose it is. */
  public static final Object OWNER = "host";

  private SharedMarker() {}
}
