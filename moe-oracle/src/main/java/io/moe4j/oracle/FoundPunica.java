package io.moe4j.oracle;

import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.PunicaProvider;

/**
 * A provider of punica wrappers that was found.
 *
 * @param provider the provider itself
 * @param type the device type it serves, asked once
 * @param origin jar and version
 */
record FoundPunica(PunicaProvider provider, DeviceType type, PluginOrigin origin) {}
