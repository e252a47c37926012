package io.moe4j.lora;

import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.spi.Device;
import org.jspecify.annotations.Nullable;

/**
 * One version of one adapter: replacing an adapter makes a new one, and the old one lives on until
 * the last batch that reads it is released.
 *
 * <p>{@link #slot}, {@link #leases}, {@link #retired} and {@link #lastUse} belong to the lock of
 * the {@link SlotTable}. The device copy is made by a batch that holds a lease and is dropped,
 * under that lock, only when there is none.
 */
final class LoadedAdapter {
  final AdapterEntry entry;
  int slot = -1;
  int leases;
  boolean retired;
  long lastUse;

  private final @Nullable LoraLayer[] host;
  private volatile @Nullable DeviceFactors device;

  /**
   * @param host by layer ordinal; null where the adapter leaves the layer alone
   */
  LoadedAdapter(AdapterEntry entry, @Nullable LoraLayer[] host) {
    this.entry = entry;
    this.host = host;
  }

  boolean isPinned() {
    return entry.pinned && !retired;
  }

  /** Whether another adapter may take its slot. */
  boolean isEvictable() {
    return leases == 0 && !isPinned();
  }

  /** Brings the factors to a device. The caller holds a lease; a host registry never calls this. */
  void upload(Device target) {
    if (device == null) {
      synchronized (this) {
        if (device == null) {
          device = DeviceFactors.upload(target, host);
        }
      }
    }
  }

  /** Takes the device copy away; the caller closes it outside the slot table's lock. */
  @Nullable DeviceFactors detachDevice() {
    DeviceFactors copy = device;
    device = null;
    return copy;
  }

  /** What it does to a layer, on the registry's device; null for nothing. */
  @Nullable LoraLayer layer(int ordinal) {
    DeviceFactors copy = device;
    return copy == null ? host[ordinal] : copy.layer(ordinal);
  }
}
