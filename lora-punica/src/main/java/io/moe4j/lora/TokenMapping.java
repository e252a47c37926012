package io.moe4j.lora;

import io.moe4j.api.device.Device;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * Slot per token: an array on the host, and for a device registry a buffer there that keeps its
 * address as long as the number of tokens does not outgrow it. Grows by doubling, never shrinks.
 */
final class TokenMapping implements AutoCloseable {
  private static final int MIN_TOKENS = 64;

  private final @Nullable Transfers transfers;
  private int[] slots = new int[0];
  private int size;
  private @Nullable Tensor whole;
  private @Nullable Tensor tensor;
  private Device.@Nullable Buffer buffer;
  private Device.@Nullable Buffer staging;
  private Device.Fence reads = Device.Fence.DONE;

  TokenMapping(@Nullable Transfers transfers) {
    this.transfers = transfers;
  }

  /**
   * What has been published is read by work that still runs.
   *
   * @param behind stands behind it; becomes this object's
   */
  void readUntil(Device.Fence behind) {
    reads.close();
    reads = behind;
  }

  void resize(int numTokens) {
    if (tensor == null || numTokens != size) {
      if (numTokens > slots.length || whole == null) {
        grow(Math.max(MIN_TOKENS, Integer.highestOneBit(Math.max(1, numTokens - 1)) * 2));
      }
      size = numTokens;
      tensor = Objects.requireNonNull(whole).narrow(0, 0, numTokens);
    }
  }

  private void grow(int capacity) {
    close();
    slots = new int[capacity];
    Memory memory;
    Transfers t = transfers;
    if (t == null) {
      memory = new HostMemory(MemorySegment.ofArray(slots));
    } else {
      staging = t.device().allocateHost((long) capacity * Integer.BYTES);
      buffer = t.device().allocate((long) capacity * Integer.BYTES);
      memory = buffer.memory();
    }
    whole = Tensor.of(DType.I32, memory, capacity);
  }

  int size() {
    return size;
  }

  void set(int token, int value) {
    slots[token] = value;
  }

  int get(int token) {
    return slots[token];
  }

  /** From positions among the leased adapters to their slots. */
  void translate(@Nullable LoadedAdapter[] leased) {
    for (int t = 0; t < size; t++) {
      LoadedAdapter version = slots[t] < 0 ? null : leased[slots[t]];
      slots[t] = version == null ? -1 : version.slot;
    }
  }

  /** Brings the slots to the device; done when it returns. */
  void publish() {
    Transfers t = transfers;
    if (t != null && staging != null && tensor != null && size > 0) {
      Tensor from = Tensor.of(DType.I32, staging.memory(), size);
      MemorySegment.copy(slots, 0, from.segment(), ValueLayout.JAVA_INT, 0, size);
      reads.makeWait(t.mappings());
      t.device().copy(from, tensor, t.mappings());
      // Replays of a graph read it without asking whether it has arrived.
      t.mappings().synchronize();
      readUntil(Device.Fence.DONE);
    }
  }

  Tensor tensor() {
    return Objects.requireNonNull(tensor);
  }

  @Override
  public void close() {
    Transfers t = transfers;
    if (t != null && reads.makeWait(t.device().defaultStream())) {
      t.device().defaultStream().synchronize();
    }
    readUntil(Device.Fence.DONE);
    if (buffer != null) {
      buffer.close();
      buffer = null;
    }
    if (staging != null) {
      staging.close();
      staging = null;
    }
    // Or what comes after a failure to grow would go on with memory that is gone.
    whole = null;
    tensor = null;
  }
}
