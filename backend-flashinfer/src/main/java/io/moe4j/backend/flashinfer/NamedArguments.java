package io.moe4j.backend.flashinfer;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.HashMap;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * Arguments by name, for functions whose argument lists differ between versions: a call says all it
 * has to say, and {@link Signature#pack} takes what this version knows, in its order. What a
 * version does not know must be left at what it does without it, which is the caller's to check.
 * Not thread-safe.
 */
final class NamedArguments {
  /** One value. */
  interface Value {
    /** Adds it to a list of arguments. */
    void addTo(TvmArguments arguments);
  }

  private final Map<String, Value> values = new HashMap<>();

  private NamedArguments put(String name, Value value) {
    values.put(name, value);
    return this;
  }

  NamedArguments dtype(String name, DType value) {
    return put(name, a -> a.dtype(value));
  }

  NamedArguments integer(String name, long value) {
    return put(name, a -> a.integer(value));
  }

  NamedArguments real(String name, double value) {
    return put(name, a -> a.real(value));
  }

  NamedArguments bool(String name, boolean value) {
    return put(name, a -> a.bool(value));
  }

  /** A tensor; null = leave it out. */
  NamedArguments tensor(String name, @Nullable Tensor value) {
    return value == null ? this : put(name, a -> a.tensor(value));
  }

  /** An array; null = leave it out. */
  NamedArguments object(String name, @Nullable TvmObject value) {
    return value == null ? this : put(name, a -> a.object(value));
  }

  /** The arguments in a version's order, to be closed by the caller. */
  TvmArguments inOrderOf(Signature signature) {
    TvmArguments arguments = new TvmArguments(signature.size());
    try {
      signature.pack(values, arguments);
      return arguments;
    } catch (RuntimeException | Error e) {
      arguments.close();
      throw e;
    }
  }
}
