package io.moe4j.lora;

import java.util.concurrent.atomic.AtomicReferenceArray;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;

/** Objects to use again. Lock-free; what does not fit is left to the garbage collector. */
final class Pool<T> {
  private final AtomicReferenceArray<@Nullable T> idle;
  private final Supplier<T> factory;

  Pool(int size, Supplier<T> factory) {
    this.idle = new AtomicReferenceArray<>(size);
    this.factory = factory;
  }

  T take() {
    for (int i = 0; i < idle.length(); i++) {
      if (idle.getPlain(i) != null) {
        T object = idle.getAndSet(i, null);
        if (object != null) {
          return object;
        }
      }
    }
    return factory.get();
  }

  void give(T object) {
    for (int i = 0; i < idle.length(); i++) {
      if (idle.compareAndSet(i, null, object)) {
        return;
      }
    }
  }
}
