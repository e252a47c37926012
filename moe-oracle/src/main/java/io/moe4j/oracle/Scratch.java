package io.moe4j.oracle;

import io.moe4j.api.device.Device;
import org.jspecify.annotations.Nullable;

/** One piece of scratch memory, and the views that its last user cut from it. */
final class Scratch {
  private final Device.Buffer buffer;
  private final long bytes;
  private @Nullable ScratchLayout layout;
  private ScratchLayout.@Nullable Views views;
  private int tokens = -1;

  Scratch(Device device, long bytes) {
    this.buffer = device.allocate(bytes);
    this.bytes = bytes;
  }

  long bytes() {
    return bytes;
  }

  /** Cut anew only when the layer or T changes: decoding repeats both. */
  @SuppressWarnings("ReferenceEquality") // a layer has one layout object
  ScratchLayout.Views views(ScratchLayout wanted, int t) {
    ScratchLayout.Views cut = views;
    if (cut == null || layout != wanted || tokens != t) {
      cut = wanted.views(buffer.memory(), t);
      views = cut;
      layout = wanted;
      tokens = t;
    }
    return cut;
  }

  void close() {
    buffer.close();
  }
}
