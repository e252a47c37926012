package io.moe4j.oracle;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.ExpertsBackend;

/**
 * A backend that was found and told what it is.
 *
 * @param backend the provider itself
 * @param name its name, asked once
 * @param description a one-line description
 * @param deviceType where it computes
 * @param activationFormat what its experts take
 * @param supportsLora whether they take adapters
 * @param origin jar and version
 */
public record FoundBackend(
    ExpertsBackend backend,
    String name,
    String description,
    DeviceType deviceType,
    ActivationFormat activationFormat,
    boolean supportsLora,
    PluginOrigin origin) {}
