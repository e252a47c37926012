package io.moe4j.lora;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraLayer;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * One version of one adapter: replacing an adapter makes a new one, and the old one lives on until
 * the last batch that reads it is released.
 *
 * <p>{@link #slot}, {@link #leases}, {@link #retired}, {@link #lastUse} and the reads belong to the
 * lock of the {@link SlotTable}. The device copy is made by a batch that holds a lease and is
 * dropped, under that lock, only when there is none.
 */
final class LoadedAdapter {
  final AdapterEntry entry;
  int slot = -1;
  int leases;
  boolean retired;
  long lastUse;

  private final @Nullable LoraLayer[] host;
  private @Nullable HostFactors packed;
  private volatile @Nullable DeviceFactors device;
  // Behind the copies from the packed memory; done before there were any.
  private volatile Device.Fence uploaded = Device.Fence.DONE;
  // Behind forwards of released batches that read this version where it is now.
  private final List<Device.Fence> reads = new ArrayList<>();
  // Behind forwards that read what was in the slot before; empty once they are known to be done.
  private volatile List<Device.Fence> readsBefore = List.of();

  /**
   * @param host by layer ordinal; null where the adapter leaves the layer alone
   * @param packed the same for a device, where the layers are views of it; closed with the version
   */
  LoadedAdapter(AdapterEntry entry, @Nullable LoraLayer[] host, @Nullable HostFactors packed) {
    this.entry = entry;
    this.host = host;
    this.packed = packed;
  }

  boolean isPinned() {
    return entry.pinned && !retired;
  }

  /** Whether another adapter may take its slot. */
  boolean isEvictable() {
    return leases == 0 && !isPinned();
  }

  /** Begins to bring the factors to the device. The caller holds a lease. */
  void upload(Transfers transfers) {
    if (device == null) {
      synchronized (this) {
        HostFactors from = packed;
        if (device == null && from != null) {
          device = transfers.upload(from);
          Device.Fence before = uploaded;
          uploaded = transfers.uploaded();
          before.close();
        }
      }
    }
  }

  /** Makes a stream wait until a layer's factors are there and its slot is this version's alone. */
  void await(int ordinal, DeviceStream stream) {
    List<Device.Fence> before = readsBefore;
    if (!before.isEmpty()) {
      boolean any = false;
      for (Device.Fence f : before) {
        any |= f.holdBack(stream);
      }
      if (!any) {
        readsBefore = List.of();
      }
    }
    DeviceFactors copy = device;
    if (copy != null) {
      copy.await(ordinal, stream);
    }
  }

  // ---- under the slot table's lock ----

  void addRead(Device.Fence behind) {
    reads.removeIf(Device.Fence::isDone);
    reads.add(behind);
  }

  /** It got a slot. */
  void enter(int newSlot, List<Device.Fence> readsOfSlot) {
    slot = newSlot;
    readsBefore = readsOfSlot;
  }

  /**
   * It lost its slot.
   *
   * @param leaving receives the device copy
   * @return what reads the slot still
   */
  List<Device.Fence> leave(List<Transfers.Leaving> leaving) {
    slot = -1;
    // If nothing has read it, what read the slot before it may still run.
    reads.addAll(readsBefore);
    reads.removeIf(Device.Fence::isDone);
    List<Device.Fence> after = List.copyOf(reads);
    reads.clear();
    readsBefore = List.of();
    DeviceFactors copy = device;
    device = null;
    if (copy != null) {
      leaving.add(new Transfers.Leaving(copy, after));
    }
    return after;
  }

  /** No batch will get it any more. */
  void forget(List<Transfers.Leaving> leaving) {
    HostFactors from = packed;
    packed = null;
    if (from != null) {
      leaving.add(new Transfers.Leaving(from, List.of(uploaded)));
    }
  }

  /** What it does to a layer, on the registry's device; null for nothing. */
  @Nullable LoraLayer layer(int ordinal) {
    DeviceFactors copy = device;
    return copy == null ? host[ordinal] : copy.layer(ordinal);
  }
}
