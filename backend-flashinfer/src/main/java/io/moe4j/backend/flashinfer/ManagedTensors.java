package io.moe4j.backend.flashinfer;

import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.flashinfer.ffi.DLManagedTensorVersioned;
import io.moe4j.backend.flashinfer.ffi.DLPackVersion;
import io.moe4j.backend.flashinfer.ffi.TvmFfi;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SegmentAllocator;
import java.util.Map;
import java.util.Queue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.atomic.AtomicLong;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Descriptions of tensors that a library keeps for as long as it likes, and what is to be done when
 * it drops one. DLPack's deleter may be called on any thread.
 */
final class ManagedTensors {
  private static final Logger LOG = LoggerFactory.getLogger(ManagedTensors.class);

  /** Room for the structure, and for the shape and strides of eight dimensions. */
  private static final long BLOCK_BYTES = 256;

  private record Kept(MemorySegment block, Runnable onDrop) {}

  private static final Map<Long, Kept> KEPT = new ConcurrentHashMap<>();
  private static final AtomicLong NEXT = new AtomicLong(1);

  /**
   * Blocks to be used again: a forward of some modules takes dozens, and an arena for each would
   * cost more than the call.
   */
  private static final Queue<MemorySegment> FREE = new ConcurrentLinkedQueue<>();

  private static final MemorySegment DELETER =
      DLManagedTensorVersioned.deleter.allocate(ManagedTensors::dropFromNative, Arena.global());

  private ManagedTensors() {}

  /** {@return a description of our tensor; the memory is not the description's} */
  static MemorySegment describe(Tensor tensor) {
    return describe(tensor, () -> {});
  }

  private static MemorySegment describe(Tensor tensor, Runnable onDrop) {
    return keep((at, memory) -> DlTensors.describe(tensor, at, memory), onDrop);
  }

  /**
   * Describes new memory for a library to keep.
   *
   * @param prototype dtype, device and shape, as the library asked for them
   * @param address of as many bytes as they take
   * @param onDrop run once, when the library has dropped the description
   * @return a {@code DLManagedTensorVersioned}, valid until dropped
   */
  static MemorySegment likePrototype(MemorySegment prototype, long address, Runnable onDrop) {
    return keep((at, memory) -> DlTensors.fill(prototype, address, at, memory), onDrop);
  }

  private interface Writer {
    void write(MemorySegment at, SegmentAllocator memory);
  }

  private static MemorySegment keep(Writer writer, Runnable onDrop) {
    MemorySegment free = FREE.poll();
    MemorySegment block =
        free == null ? Arena.global().allocate(BLOCK_BYTES, Long.BYTES) : free.fill((byte) 0);
    try {
      SegmentAllocator memory = SegmentAllocator.slicingAllocator(block);
      MemorySegment managed = DLManagedTensorVersioned.allocate(memory);
      MemorySegment version = DLManagedTensorVersioned.version(managed);
      DLPackVersion.major(version, TvmFfi.DLPACK_MAJOR_VERSION());
      DLPackVersion.minor(version, TvmFfi.DLPACK_MINOR_VERSION());
      writer.write(DLManagedTensorVersioned.dl_tensor(managed), memory);
      long id = NEXT.getAndIncrement();
      DLManagedTensorVersioned.manager_ctx(managed, MemorySegment.ofAddress(id));
      DLManagedTensorVersioned.deleter(managed, DELETER);
      KEPT.put(id, new Kept(block, onDrop));
      return managed;
    } catch (RuntimeException | Error e) {
      FREE.add(block);
      throw e;
    }
  }

  /** Drops a description that no library took. */
  static void drop(MemorySegment managed) {
    Kept kept = KEPT.remove(DLManagedTensorVersioned.manager_ctx(managed).address());
    if (kept != null) {
      FREE.add(kept.block());
      kept.onDrop().run();
    }
  }

  private static void dropFromNative(MemorySegment managed) {
    try {
      drop(managed.reinterpret(DLManagedTensorVersioned.sizeof()));
    } catch (RuntimeException | Error e) {
      // An exception that leaves an upcall ends the process.
      LOG.error("memory of a tensor that FlashInfer dropped could not be given back", e);
    }
  }

  /** {@return how many descriptions libraries hold; for tests} */
  static int held() {
    return KEPT.size();
  }
}
