package io.moe4j.lora.cuda;

import java.lang.ref.Reference;
import java.lang.ref.ReferenceQueue;
import java.lang.ref.WeakReference;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Consumer;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;

/**
 * A value for each key, by the key's identity. Keys are not held: once nobody else has one, the
 * next {@link #closeUnreachable} closes its value, unless it is to be {@linkplain #keep kept}. So
 * keys may come and go without end. A value must not refer to its key. Safe for several threads.
 *
 * @param <K> keys
 * @param <V> values
 */
final class KeyedValues<K, V> implements AutoCloseable {
  private final Consumer<V> closer;
  private final ConcurrentHashMap<Object, V> values = new ConcurrentHashMap<>();
  private final ConcurrentHashMap<Object, K> kept = new ConcurrentHashMap<>();
  private final ReferenceQueue<Object> unreachable = new ReferenceQueue<>();

  /**
   * @param closer closes a value, and first waits for what uses it
   */
  KeyedValues(Consumer<V> closer) {
    this.closer = closer;
  }

  /** What is stored: equal to itself, and to a probe for its key. */
  private static final class Key extends WeakReference<Object> {
    private final int hash;

    Key(Object key, ReferenceQueue<Object> queue) {
      super(key, queue);
      this.hash = System.identityHashCode(key);
    }

    @Override
    public int hashCode() {
      return hash;
    }

    @Override
    public boolean equals(Object other) {
      return this == other || (other instanceof Probe p && refersTo(p.key));
    }
  }

  /** What is looked up with. */
  private record Probe(Object key) {
    @Override
    public int hashCode() {
      return System.identityHashCode(key);
    }

    @SuppressWarnings("ReferenceEquality") // keys are identities
    @Override
    public boolean equals(Object other) {
      return other instanceof Key k ? k.refersTo(key) : other instanceof Probe p && p.key == key;
    }
  }

  /** {@return the value of a key, or null if it has none} */
  @Nullable V get(K key) {
    return values.get(new Probe(key));
  }

  /**
   * {@return the value of a key}
   *
   * @param make makes one if it has none; once, however many threads ask
   */
  V get(K key, Supplier<V> make) {
    V value = get(key);
    if (value == null) {
      synchronized (this) {
        value = get(key);
        if (value == null) {
          value = make.get();
          values.put(new Key(key, unreachable), value);
        }
      }
    }
    return value;
  }

  /** Holds a key, and with it its value, until this is closed. */
  void keep(K key) {
    kept.putIfAbsent(new Probe(key), key);
  }

  /** Closes the values of keys that nobody has any more. */
  void closeUnreachable() {
    for (Reference<?> r = unreachable.poll(); r != null; r = unreachable.poll()) {
      V value = values.remove(r);
      if (value != null) {
        closer.accept(value);
      }
    }
  }

  /** {@return how many keys have a value} */
  int size() {
    return values.size();
  }

  @Override
  public synchronized void close() {
    for (Map.Entry<Object, V> e : values.entrySet()) {
      if (values.remove(e.getKey(), e.getValue())) {
        closer.accept(e.getValue());
      }
    }
    kept.clear();
  }
}
