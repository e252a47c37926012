package io.moe4j.lora;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraLayer;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * A registry's traffic with its device: factors go over on a stream of their own, in the order in
 * which batches ask for them; what slots have lost goes once nothing on the device reads it.
 */
final class Transfers implements AutoCloseable {
  /**
   * Memory that nobody will ask for again.
   *
   * @param memory on the device, taken in the order of the uploads; or on the host
   * @param after behind what still reads it
   */
  record Leaving(Factors memory, List<Device.Fence> after) {
    boolean isFree() {
      return after.stream().allMatch(Device.Fence::isDone);
    }
  }

  /** One adapter's memory. */
  sealed interface Factors extends AutoCloseable permits HostFactors, DeviceFactors {
    @Override
    void close();
  }

  private final Device device;
  private final Device.OwnedStream uploads;
  private final Device.OwnedStream mappings;
  private final List<Leaving> leaving = new ArrayList<>();
  private boolean closed;

  Transfers(Device device) {
    this.device = device;
    this.uploads = device.newStream();
    boolean done = false;
    try {
      this.mappings = device.newStream();
      done = true;
    } finally {
      if (!done) {
        uploads.close();
      }
    }
  }

  Device device() {
    return device;
  }

  /** For the slots of tokens, which must not queue behind factors. */
  DeviceStream mappings() {
    return mappings;
  }

  HostFactors pack(@Nullable LoraLayer[] layers) {
    return HostFactors.pack(device, layers);
  }

  /** Enqueues an adapter's copies. If memory is short, waits for what is leaving. */
  DeviceFactors upload(HostFactors host) {
    try {
      return DeviceFactors.upload(device, uploads, host);
    } catch (DeviceException e) {
      if (!hurry()) {
        throw e;
      }
      return DeviceFactors.upload(device, uploads, host);
    }
  }

  /** A fence behind the uploads so far. */
  Device.Fence uploaded() {
    return device.fence(uploads);
  }

  /**
   * Takes over what slots have lost, and frees what nobody reads any more.
   *
   * @param all host memory too: giving back page-locked memory may wait for whatever the device is
   *     doing, which is no matter to who loads and unloads, but would be to a batch
   */
  synchronized void drop(List<Leaving> more, boolean all) {
    leaving.addAll(more);
    for (Iterator<Leaving> i = leaving.iterator(); i.hasNext(); ) {
      Leaving l = i.next();
      if ((all || l.memory() instanceof DeviceFactors) && l.isFree()) {
        i.remove();
        l.memory().close();
      }
    }
  }

  /** Gives device memory back in the order of the uploads, behind what reads it. */
  private synchronized boolean hurry() {
    boolean any = false;
    for (Iterator<Leaving> i = leaving.iterator(); i.hasNext(); ) {
      Leaving l = i.next();
      if (l.memory() instanceof DeviceFactors) {
        i.remove();
        l.after().forEach(f -> f.holdBack(uploads));
        l.memory().close();
        any = true;
      }
    }
    return any;
  }

  /** Waits for what reads the memory that is leaving, and frees it. May be called twice. */
  @Override
  public synchronized void close() {
    if (!closed) {
      closed = true;
      leaving.forEach(l -> l.after().forEach(f -> f.holdBack(uploads)));
      uploads.synchronize();
      leaving.forEach(l -> l.memory().close());
      leaving.forEach(l -> l.after().forEach(Device.Fence::close));
      leaving.clear();
      uploads.close();
      mappings.close();
    }
  }
}
