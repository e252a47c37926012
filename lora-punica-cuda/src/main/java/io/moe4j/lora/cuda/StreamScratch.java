package io.moe4j.lora.cuda;

import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.DeviceBuffer;
import io.moe4j.cuda.ops.PairSort;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * What the calls of one stream share: scratch memory, and the last sort. Work of one stream is
 * ordered, so one set is enough; whoever enqueues holds the object's lock. Grows to the largest
 * call, at least twofold each time; what was outgrown is kept until the end, because captured
 * graphs may hold its address.
 */
final class StreamScratch implements AutoCloseable {
  private final CudaDevice device;
  private final long stream;
  private final List<DeviceBuffer> outgrown = new ArrayList<>();
  private @Nullable DeviceBuffer sort;
  private @Nullable DeviceBuffer part;
  private @Nullable DeviceBuffer ids;

  // Of the last sort; identity.
  private @Nullable MoeLoraContext context;
  private @Nullable ExpertRouting routing;
  private PairSort.@Nullable Layout layout;

  /**
   * @param stream its handle
   */
  StreamScratch(CudaDevice device, long stream) {
    this.device = device;
    this.stream = stream;
  }

  long stream() {
    return stream;
  }

  private DeviceBuffer grown(@Nullable DeviceBuffer now, long bytes) {
    if (now != null && now.memory().byteSize() >= bytes) {
      return now;
    }
    long had = now == null ? 0 : now.memory().byteSize();
    DeviceBuffer fresh = device.allocate(Math.max(Math.max(bytes, 2 * had), 1 << 16));
    if (now != null) {
      outgrown.add(now);
    }
    return fresh;
  }

  long sort(long bytes) {
    sort = grown(sort, bytes);
    return sort.memory().address();
  }

  long part(long bytes) {
    part = grown(part, bytes);
    return part.memory().address();
  }

  DeviceBuffer ids(long bytes) {
    ids = grown(ids, bytes);
    return ids;
  }

  void sorted(MoeLoraContext by, ExpertRouting of, PairSort.Layout as) {
    context = by;
    routing = of;
    layout = as;
  }

  void forget() {
    context = null;
    routing = null;
    layout = null;
  }

  /** Whether the sort of the very same call is there. */
  @SuppressWarnings("ReferenceEquality")
  boolean isSorted(MoeLoraContext by, ExpertRouting of, PairSort.Layout as) {
    return context == by && routing == of && as.equals(layout);
  }

  @Override
  public void close() {
    outgrown.forEach(DeviceBuffer::close);
    outgrown.clear();
    for (DeviceBuffer b : new @Nullable DeviceBuffer[] {sort, part, ids}) {
      if (b != null) {
        b.close();
      }
    }
    sort = null;
    part = null;
    ids = null;
  }
}
