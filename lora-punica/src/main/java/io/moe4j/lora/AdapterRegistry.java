package io.moe4j.lora;

import io.moe4j.api.AdapterException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.lora.SlotsKey;
import io.moe4j.api.platform.DeviceType;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The adapters of one model: a host cache of loaded adapters and {@code maxLoras} slots, which hold
 * those that running batches read.
 *
 * <ul>
 *   <li><b>Host cache.</b> {@link #load} puts an adapter there. When it is full, the least recently
 *       used adapter that is not pinned is unloaded (and logged).
 *   <li><b>Slots.</b> A batch takes a slot for each distinct adapter it uses and gives them back
 *       when it is released. An adapter keeps its slot afterwards until another needs it; then the
 *       least recently used one goes, never a pinned one and never one that an open batch reads. On
 *       the host a slot refers to the adapter's own memory.
 *   <li><b>Devices.</b> For another device {@link #load} copies the factors once, into memory that
 *       the device copies from without the host (page-locked on CUDA); the adapter's own tensors
 *       are not needed after that. Entering a slot means one copy per layer on a stream of the
 *       registry's, which runs beside forwards. Nobody waits for it but, on the device, the first
 *       forward of each layer ({@link io.moe4j.api.lora.MoeLoraContext#awaitFactors}). A batch
 *       released behind its work on a stream ({@link AdapterBatch#release(
 *       io.moe4j.api.device.DeviceStream)}) need not have finished: whoever gets its slots waits
 *       for it, on the device, before anything that it reads is written over, and memory is given
 *       back behind it. Loading, replacing and unloading take and give page-locked memory, which
 *       may wait for what the device is doing; batches do not.
 *   <li><b>Versions.</b> {@link #replace} and {@link #unload} take effect for the next batch. Open
 *       batches keep reading what they began with, whose slot is free once the last of them ends.
 *       The memory of a replaced or unloaded adapter must therefore stay valid until then.
 *   <li><b>Waiting.</b> A batch whose slots are all in use by other batches waits, first come first
 *       served, at most {@link Builder#slotWait}. It takes all its slots at once or none; a thread
 *       that holds one batch open while it asks for another may wait for itself, and gets the
 *       timeout's error.
 * </ul>
 *
 * <p>Threads: every method may be called by any thread at any time. Adapters are named by the
 * caller's name or, on paths that must not allocate, by an int handle that stays the same while the
 * name is loaded, replaced or not.
 */
public final class AdapterRegistry implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(AdapterRegistry.class);

  /** In place of a handle: no adapter. */
  public static final int BASE = -1;

  private final TreeMap<Integer, MoeConfig> layers;
  private final int[] layerIndices;
  private final PunicaWrapper punica;
  private final boolean ownsPunica;
  private final @Nullable Transfers transfers;
  private final AdapterSlots slots;
  // One a layer: what its contexts have in common.
  private final SlotsKey[] slotsKeys;
  private final HostCache cache;
  private volatile boolean closed;

  private AdapterRegistry(
      Builder b,
      int maxLoras,
      int capacity,
      PunicaWrapper punica,
      boolean ownsPunica,
      @Nullable Transfers transfers) {
    this.layers = b.layers;
    this.layerIndices = layers.keySet().stream().mapToInt(Integer::intValue).toArray();
    this.slotsKeys =
        layers.keySet().stream().map(l -> new SlotsKey("layer " + l)).toArray(SlotsKey[]::new);
    this.cache = new HostCache(capacity);
    this.punica = punica;
    this.ownsPunica = ownsPunica;
    this.transfers = transfers;
    this.slots = new AdapterSlots(maxLoras, b.slotWait.toNanos());
  }

  /**
   * Begins a registry.
   *
   * @param layers the model's MoE layers by index in the model, every one with LoRA on
   * @return a builder
   */
  public static Builder builder(Map<Integer, MoeConfig> layers) {
    return new Builder(layers);
  }

  /**
   * Adds an adapter. Every element of its factors is read, on the calling thread. With expert
   * parallelism a rank sees the factors of its own experts only, so one may refuse what others
   * take.
   *
   * @param adapter not loaded yet; on the host its factors are kept by reference
   * @return its handle, valid until it is unloaded
   * @throws AdapterException if the name is loaded already, the adapter does not fit a layer, the
   *     host cache is full of pinned adapters, or a factor has an element that is NaN, infinite, or
   *     (of routed experts) too large for the dtype of the layer's weights: a BF16 or F32 factor
   *     beyond 65504 in a layer of F16
   * @throws io.moe4j.api.DeviceException if the device's kind of host memory is short
   */
  public int load(LoraAdapter adapter) {
    @Nullable LoraLayer[] checked = AdapterCheck.byOrdinal(adapter, layers, punica);
    HostFactors packed = pack(checked);
    HostFactors unused = packed;
    List<Transfers.Leaving> dropped = List.of();
    AdapterEntry evicted = null;
    slots.lock().lock();
    try {
      requireOpen();
      evicted = cache.evictedFor(adapter.name());
      if (evicted != null) {
        dropped = slots.retire(evicted.current());
        AdapterEvent.commit("evicted from the host cache", evicted.name, -1);
      }
      AdapterEntry entry = cache.newEntry(adapter.name());
      entry.setCurrent(version(entry, checked, packed));
      unused = null;
      entry.lastUse = slots.tick();
      cache.add(entry);
      AdapterEvent.commit("loaded", entry.name, -1);
      return entry.handle;
    } finally {
      slots.lock().unlock();
      dropAll(dropped, unused);
      if (evicted != null) {
        LOG.info(
            "host cache of {} adapters is full: '{}', the least recently used, made room for '{}'",
            cache.capacity(),
            evicted.name,
            adapter.name());
      }
    }
  }

  /**
   * Exchanges an adapter for another of the same name. Batches made from now on get the new one;
   * open ones keep the old. Handle and pin stay.
   *
   * @param adapter the new version; its name is loaded
   * @throws AdapterException if the name is not loaded, or the adapter would not {@linkplain #load
   *     load}
   * @throws io.moe4j.api.DeviceException if the device's kind of host memory is short
   */
  public void replace(LoraAdapter adapter) {
    @Nullable LoraLayer[] checked = AdapterCheck.byOrdinal(adapter, layers, punica);
    HostFactors packed = pack(checked);
    HostFactors unused = packed;
    List<Transfers.Leaving> dropped = List.of();
    slots.lock().lock();
    try {
      requireOpen();
      AdapterEntry entry = entry(adapter.name());
      LoadedAdapter old = entry.current();
      entry.setCurrent(version(entry, checked, packed));
      unused = null;
      dropped = slots.retire(old);
      AdapterEvent.commit("replaced", entry.name, -1);
    } finally {
      slots.lock().unlock();
      dropAll(dropped, unused);
    }
  }

  /**
   * Forgets an adapter, pinned or not. Open batches keep reading it.
   *
   * @param name its name
   * @return whether it was loaded
   */
  public boolean unload(String name) {
    List<Transfers.Leaving> dropped = List.of();
    slots.lock().lock();
    try {
      AdapterEntry entry = cache.find(name);
      if (entry == null) {
        return false;
      }
      dropped = remove(entry);
      AdapterEvent.commit("unloaded", name, -1);
      return true;
    } finally {
      slots.lock().unlock();
      dropAll(dropped, null);
    }
  }

  /**
   * Brings an adapter into a slot and keeps it there (and in the host cache) until {@link #unpin}.
   * Waits for a slot like a batch.
   *
   * @param name a loaded adapter
   * @throws AdapterException if it is not loaded, or every slot is pinned or stays in use
   */
  public void pin(String name) {
    AdapterEntry entry = entry(name);
    @Nullable AdapterEntry[] wanted = {entry};
    @Nullable LoadedAdapter[] leased = new LoadedAdapter[1];
    drop(slots.acquire(wanted, 1, leased));
    try {
      upload(leased, 1);
      slots.lock().lock();
      try {
        if (entry.unloaded) {
          throw cache.notLoaded(name);
        }
        entry.pinned = true;
      } finally {
        slots.lock().unlock();
      }
    } finally {
      drop(slots.release(leased, 1, null));
    }
  }

  /**
   * Lets an adapter lose its slot again.
   *
   * @param name a loaded adapter, pinned or not
   * @throws AdapterException if it is not loaded
   */
  public void unpin(String name) {
    slots.lock().lock();
    try {
      entry(name).pinned = false;
      slots.signalFirst();
    } finally {
      slots.lock().unlock();
    }
  }

  /** {@return the names of the loaded adapters, sorted; a copy} */
  public List<String> names() {
    return cache.names();
  }

  /**
   * {@return the handle of a loaded adapter}
   *
   * @param name its name
   * @throws AdapterException if it is not loaded
   */
  public int handle(String name) {
    return entry(name).handle;
  }

  /** {@return the number of slots} */
  public int maxLoras() {
    return slots.size();
  }

  /** {@return the indices of the layers, ascending} */
  public List<Integer> layerIndices() {
    return List.copyOf(layers.keySet());
  }

  /** {@return counters} */
  public AdapterStats stats() {
    slots.lock().lock();
    try {
      return slots.stats(cache.size(), cache.evictions());
    } finally {
      slots.lock().unlock();
    }
  }

  /**
   * A batch for one forward through the layers.
   *
   * @param namePerToken a loaded adapter, or null or "" for the base model, per token
   * @return an open batch, owned by the caller
   * @throws AdapterException see {@link AdapterBatch#reset(List)}
   */
  public AdapterBatch batch(List<@Nullable String> namePerToken) {
    AdapterBatch batch = newBatch();
    return filled(batch, () -> batch.reset(namePerToken));
  }

  /**
   * A batch for one forward through the layers.
   *
   * @param handlePerToken a handle, or {@link #BASE}, per token
   * @return an open batch, owned by the caller
   * @throws AdapterException see {@link AdapterBatch#reset(int[], int)}
   */
  public AdapterBatch batch(int... handlePerToken) {
    AdapterBatch batch = newBatch();
    return filled(batch, () -> batch.reset(handlePerToken, handlePerToken.length));
  }

  /** A batch that cannot be made gives back its mapping's memory: nobody else could. */
  private static AdapterBatch filled(AdapterBatch batch, Runnable reset) {
    boolean done = false;
    try {
      reset.run();
      done = true;
      return batch;
    } finally {
      if (!done) {
        batch.close();
      }
    }
  }

  /** {@return a batch that holds nothing yet, to be {@code reset} for one forward after another} */
  public AdapterBatch newBatch() {
    requireOpen();
    return new AdapterBatch(this, layerIndices, cache.capacity());
  }

  /**
   * Unloads everything. Open batches stay valid; what they read is given back when they are
   * released. With the last of them goes the punica wrapper that the registry found for its device,
   * once the work that batches were released behind has finished: this may wait for it. May be
   * called twice.
   */
  @Override
  public void close() {
    List<Transfers.Leaving> dropped = new ArrayList<>();
    slots.lock().lock();
    try {
      closed = true;
      for (AdapterEntry entry : cache.all()) {
        dropped.addAll(remove(entry));
      }
    } finally {
      slots.lock().unlock();
      dropAll(dropped, null);
    }
    closeDeviceIfIdle();
  }

  /** Once the registry is closed and the last batch has given its slots back. */
  void closeDeviceIfIdle() {
    if (closed && stats().leasedSlots() == 0) {
      if (transfers != null) {
        transfers.close();
      }
      if (ownsPunica) {
        punica.close();
      }
    }
  }

  // ---- for AdapterBatch ----

  AdapterSlots slots() {
    return slots;
  }

  PunicaWrapper punica() {
    return punica;
  }

  @Nullable Transfers transfers() {
    return transfers;
  }

  int layerIndex(int ordinal) {
    return layerIndices[ordinal];
  }

  SlotsKey slotsKey(int ordinal) {
    return slotsKeys[ordinal];
  }

  AdapterEntry entry(String name) {
    return cache.entry(name);
  }

  AdapterEntry entry(int handle) {
    return cache.entry(handle);
  }

  void upload(@Nullable LoadedAdapter[] leased, int n) {
    Transfers t = transfers;
    if (t != null) {
      for (int i = 0; i < n; i++) {
        LoadedAdapter version = leased[i];
        if (version != null) {
          version.upload(t);
        }
      }
    }
  }

  /** Takes over what slots have lost; for batches. */
  void drop(List<Transfers.Leaving> dropped) {
    if (transfers != null) {
      transfers.drop(dropped, false);
    }
  }

  /** Takes over what slots and the host cache have lost. */
  private void dropAll(List<Transfers.Leaving> dropped, @Nullable HostFactors unused) {
    if (transfers != null) {
      transfers.drop(dropped, true);
    }
    if (unused != null) {
      unused.close();
    }
  }

  private @Nullable HostFactors pack(@Nullable LoraLayer[] layers) {
    requireOpen();
    return transfers == null ? null : transfers.pack(layers);
  }

  private static LoadedAdapter version(
      AdapterEntry entry, @Nullable LoraLayer[] layers, @Nullable HostFactors packed) {
    return new LoadedAdapter(entry, packed == null ? layers : packed.layers(), packed);
  }

  void requireOpen() {
    if (closed) {
      throw new IllegalStateException("the adapter registry is closed");
    }
  }

  // ---- under the lock ----

  private List<Transfers.Leaving> remove(AdapterEntry entry) {
    cache.remove(entry);
    return slots.retire(entry.current());
  }

  /** Sets one thing at a time; not thread-safe. */
  public static final class Builder {
    private static final int DEFAULT_HOST_CACHE = 64;

    private final TreeMap<Integer, MoeConfig> layers;
    private int maxLoras;
    private int maxCpuLoras;
    private Duration slotWait = Duration.ofSeconds(30);
    private @Nullable Device device;
    private @Nullable PunicaWrapper punica;

    private Builder(Map<Integer, MoeConfig> layers) {
      this.layers = new TreeMap<>(layers);
      if (this.layers.isEmpty()) {
        throw new IllegalArgumentException("layers is empty, need at least one MoE layer");
      }
      this.layers.forEach((index, config) -> {
        if (config.lora().isEmpty()) {
          throw new IllegalArgumentException("layer " + index + " has LoRA off in its config");
        }
      });
      this.maxLoras = slotsOfLayers();
    }

    private int slotsOfLayers() {
      return layers.values().stream()
          .mapToInt(c -> c.lora().orElseThrow().maxLoras())
          .min()
          .orElseThrow();
    }

    /**
     * Sets the number of slots.
     *
     * @param maxLoras distinct adapters in use at once, 1 to the least of the layers' {@code
     *     maxLoras}, which is the default
     * @return this
     */
    public Builder maxLoras(int maxLoras) {
      if (maxLoras < 1 || maxLoras > slotsOfLayers()) {
        throw new IllegalArgumentException(
            "maxLoras is "
                + maxLoras
                + ", must be 1.."
                + slotsOfLayers()
                + ", the least that the layers' configs allow");
      }
      this.maxLoras = maxLoras;
      return this;
    }

    /**
     * Sets the capacity of the host cache.
     *
     * @param maxCpuLoras adapters loaded at once, at least {@code maxLoras}; default: the larger of
     *     64 and {@code maxLoras}
     * @return this
     */
    public Builder maxCpuLoras(int maxCpuLoras) {
      if (maxCpuLoras < 1) {
        throw new IllegalArgumentException(
            "maxCpuLoras is " + maxCpuLoras + ", must be at least maxLoras");
      }
      this.maxCpuLoras = maxCpuLoras;
      return this;
    }

    /**
     * Sets how long a batch waits for slots that other batches use.
     *
     * @param slotWait zero = not at all; default 30 s
     * @return this
     */
    public Builder slotWait(Duration slotWait) {
      if (slotWait.isNegative() || slotWait.compareTo(Duration.ofDays(365)) > 0) {
        throw new IllegalArgumentException("slotWait is " + slotWait + ", must be 0 to 365 days");
      }
      this.slotWait = slotWait;
      return this;
    }

    /**
     * Sets where the layers run. The default is the host.
     *
     * @param device stays open longer than the registry and its batches
     * @return this
     */
    public Builder device(Device device) {
      this.device = device.info().id().type().equals(DeviceType.CPU) ? null : device;
      return this;
    }

    /**
     * Sets what batches hand to backends that do not fuse LoRA. On the host the default is {@link
     * CpuPunicaWrapper}; for another device the default is what a {@link
     * io.moe4j.api.spi.PunicaProvider} on the class path makes, like that of lora-punica-cuda.
     *
     * @param punica may be shared; stays its owner's
     * @return this
     */
    public Builder punicaWrapper(PunicaWrapper punica) {
      this.punica = punica;
      return this;
    }

    /**
     * {@return the registry, empty}
     *
     * @throws IllegalArgumentException if two settings do not fit, or nobody makes punica wrappers
     *     for the device
     */
    public AdapterRegistry build() {
      int cache = maxCpuLoras == 0 ? Math.max(DEFAULT_HOST_CACHE, maxLoras) : maxCpuLoras;
      if (cache < maxLoras) {
        throw new IllegalArgumentException(
            "maxCpuLoras is " + cache + ", must be at least maxLoras = " + maxLoras);
      }
      PunicaWrapper wrapper = punica;
      boolean found = wrapper == null && device != null;
      if (wrapper == null) {
        wrapper = device == null ? CpuPunicaWrapper.shared() : PunicaProviders.open(device);
      }
      Device target = device;
      boolean done = false;
      try {
        Transfers transfers = target == null ? null : new Transfers(target);
        AdapterRegistry registry =
            new AdapterRegistry(this, maxLoras, cache, wrapper, found, transfers);
        done = true;
        return registry;
      } finally {
        if (!done && found) {
          wrapper.close();
        }
      }
    }
  }
}
