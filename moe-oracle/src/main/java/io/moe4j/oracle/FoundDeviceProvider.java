package io.moe4j.oracle;

import io.moe4j.api.device.DeviceProvider;
import io.moe4j.api.platform.DeviceType;

/**
 * A device provider that was found.
 *
 * @param provider the provider itself
 * @param type the device type it opens, asked once
 * @param origin jar and version
 */
public record FoundDeviceProvider(DeviceProvider provider, DeviceType type, PluginOrigin origin) {}
