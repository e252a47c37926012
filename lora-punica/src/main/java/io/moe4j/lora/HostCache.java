package io.moe4j.lora;

import io.moe4j.api.AdapterException;
import java.util.List;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReferenceArray;
import org.jspecify.annotations.Nullable;

/**
 * Who is loaded, by name and by handle. Looking up needs no lock; whoever changes something holds
 * the lock of the slot table.
 */
final class HostCache {
  private final int capacity;
  private final ConcurrentHashMap<String, AdapterEntry> byName = new ConcurrentHashMap<>();
  private final AtomicReferenceArray<@Nullable AdapterEntry> byIndex;
  private final AtomicLong evictions = new AtomicLong();
  // Only under the lock.
  private final int[] generation;

  HostCache(int capacity) {
    this.capacity = capacity;
    this.byIndex = new AtomicReferenceArray<>(capacity);
    this.generation = new int[capacity];
  }

  int capacity() {
    return capacity;
  }

  int size() {
    return byName.size();
  }

  long evictions() {
    return evictions.get();
  }

  /** Sorted; a copy. */
  List<String> names() {
    return byName.keySet().stream().sorted().toList();
  }

  /** A copy. */
  List<AdapterEntry> all() {
    return List.copyOf(byName.values());
  }

  @Nullable AdapterEntry find(String name) {
    return byName.get(name);
  }

  AdapterEntry entry(String name) {
    AdapterEntry entry = byName.get(name);
    if (entry == null) {
      throw notLoaded(name);
    }
    return entry;
  }

  AdapterEntry entry(int handle) {
    AdapterEntry entry = handle < 0 ? null : byIndex.get(handle % capacity);
    if (entry == null || entry.handle != handle) {
      throw new AdapterException(
          "adapter handle "
              + handle
              + " belongs to no loaded adapter; use what load returned, or "
              + AdapterRegistry.BASE
              + " for the base model. An unloaded adapter's handle does not come back");
    }
    return entry;
  }

  AdapterException notLoaded(String name) {
    List<String> loaded = names();
    String some = loaded.size() <= 16 ? loaded.toString() : loaded.subList(0, 16) + " and more";
    return new AdapterException(
        "adapter '"
            + name
            + "' is not loaded; loaded are "
            + loaded.size()
            + ": "
            + some
            + (evictions.get() > 0 ? " (the host cache of " + capacity + " was full before)" : ""));
  }

  // ---- under the lock ----

  /**
   * Removes the least recently used adapter that is not pinned, if there is no room for another.
   *
   * @param newcomer needs room
   * @return who was removed, or null
   * @throws AdapterException if the newcomer is there already, or all are pinned
   */
  @Nullable AdapterEntry evictedFor(String newcomer) {
    if (byName.containsKey(newcomer)) {
      throw new AdapterException(
          "adapter '" + newcomer + "' is loaded already; use replace, or unload it first");
    }
    if (byName.size() < capacity) {
      return null;
    }
    AdapterEntry oldest = null;
    for (AdapterEntry e : byName.values()) {
      if (!e.pinned && (oldest == null || e.lastUse < oldest.lastUse)) {
        oldest = e;
      }
    }
    if (oldest == null) {
      throw new AdapterException(
          "adapter '"
              + newcomer
              + "' does not fit the host cache: all "
              + capacity
              + " adapters in it are pinned; unpin or unload some, or raise maxCpuLoras");
    }
    remove(oldest);
    evictions.incrementAndGet();
    return oldest;
  }

  /** An entry with a handle that nobody has, to be {@linkplain #add added}; there is room. */
  AdapterEntry newEntry(String name) {
    int index = 0;
    while (byIndex.get(index) != null) {
      index++;
    }
    return new AdapterEntry(name, index, generation[index] * capacity + index);
  }

  void add(AdapterEntry entry) {
    byIndex.set(entry.index, entry);
    byName.put(entry.name, entry);
  }

  void remove(AdapterEntry entry) {
    entry.unloaded = true;
    byName.remove(entry.name);
    byIndex.set(entry.index, null);
    // Handles stay positive: the generation begins anew before the product would overflow.
    generation[entry.index] = (generation[entry.index] + 1) % (Integer.MAX_VALUE / capacity);
  }
}
