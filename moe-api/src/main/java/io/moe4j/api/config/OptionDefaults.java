package io.moe4j.api.config;

import io.moe4j.api.MoeException;
import io.moe4j.api.SettingException;
import java.util.Objects;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;

/**
 * The options of layers that have none of their own: what system properties say, read once. A
 * mistyped property does not fail where it is read; it is a reason why such layers are not
 * supported, which a backend asks for with {@link #fault(MoeConfig)}. Immutable.
 *
 * @param <O> the backend's options
 * @since 0.2.0
 */
public class OptionDefaults<O extends BackendOptions> {
  private final Class<O> type;
  private final O defaults;
  private final @Nullable String fault;

  /**
   * Reads them.
   *
   * @param type of the options
   * @param builtIn what {@link #defaults} gives where a property is mistyped
   * @param read reads the properties, with {@link SystemSettings}
   */
  public OptionDefaults(Class<O> type, O builtIn, Supplier<O> read) {
    this.type = Objects.requireNonNull(type, "type");
    O found = Objects.requireNonNull(builtIn, "builtIn");
    String wrong = null;
    try {
      found = Objects.requireNonNull(read.get(), "read");
    } catch (SettingException e) {
      wrong = String.valueOf(e.getMessage());
    }
    this.defaults = found;
    this.fault = wrong;
  }

  /** {@return the options of layers that have none of their own} */
  public final O defaults() {
    return defaults;
  }

  /** {@return what is mistyped; null where nothing is} */
  public final @Nullable String fault() {
    return fault;
  }

  /**
   * {@return why a layer's options are not known: it has none and a property is mistyped; null
   * where they are}
   *
   * @param config of the layer
   */
  public final @Nullable String fault(MoeConfig config) {
    return config.options(type).isPresent() ? null : fault;
  }

  /**
   * {@return a layer's options, or the defaults}
   *
   * @param config of the layer
   * @throws MoeException if it has none and a property is mistyped
   */
  public final O options(MoeConfig config) {
    String why = fault(config);
    if (why != null) {
      throw new MoeException(why);
    }
    return config.options(type).orElse(defaults);
  }
}
