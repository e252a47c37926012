package io.moe4j.api.config;

/**
 * Settings of one backend for one layer, given with {@link MoeConfig.Builder#options}. A backend
 * defines its own type, a value with {@code equals}; layers of one process may differ. What a
 * backend reads from system properties are defaults of these settings, read once.
 *
 * @since 0.2.0
 */
public interface BackendOptions {
  /** {@return the name of the backend they are for, or of a family of backends in one jar} */
  String backend();
}
