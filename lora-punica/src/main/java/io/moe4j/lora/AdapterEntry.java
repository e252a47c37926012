package io.moe4j.lora;

import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * A name in the registry and the version that new batches get. Everything that changes belongs to
 * the lock of the {@link AdapterSlots}.
 */
final class AdapterEntry {
  final String name;

  /** Position in the host cache; reused after unloading. */
  final int index;

  /** What callers hold; never given out twice within two thousand million loads. */
  final int handle;

  boolean pinned;
  boolean unloaded;
  long lastUse;
  private @Nullable LoadedAdapter current;

  AdapterEntry(String name, int index, int handle) {
    this.name = name;
    this.index = index;
    this.handle = handle;
  }

  LoadedAdapter current() {
    return Objects.requireNonNull(current, "current");
  }

  void setCurrent(LoadedAdapter version) {
    current = version;
  }
}
