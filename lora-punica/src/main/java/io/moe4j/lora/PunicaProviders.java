package io.moe4j.lora;

import io.moe4j.api.device.Device;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.spi.PunicaProvider;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.ServiceConfigurationError;
import java.util.ServiceLoader;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/** Finds who makes punica wrappers for a device that is not the host. */
public final class PunicaProviders {
  private PunicaProviders() {}

  /**
   * Asks the providers beside the device's classes, then those beside this library, then those of
   * the thread.
   *
   * @param device not the host; open as long as the wrapper is
   * @return a wrapper, owned by the caller
   * @throws IllegalArgumentException if there is no provider for the type, naming what was found
   */
  public static PunicaWrapper open(Device device) {
    Set<@Nullable ClassLoader> loaders = new LinkedHashSet<>();
    loaders.add(device.getClass().getClassLoader());
    loaders.add(PunicaProviders.class.getClassLoader());
    loaders.add(Thread.currentThread().getContextClassLoader());
    List<String> others = new ArrayList<>();
    for (ClassLoader loader : loaders) {
      var providers = ServiceLoader.load(PunicaProvider.class, loader).iterator();
      // A provider that fails to load is named; the bound is for the case that it comes again.
      for (int failures = 0; failures < 8; ) {
        try {
          if (!providers.hasNext()) {
            break;
          }
          PunicaProvider provider = providers.next();
          if (provider.deviceType().equals(device.info().id().type())) {
            return provider.open(device);
          }
          others.add(provider.getClass().getName() + " for " + provider.deviceType());
        } catch (ServiceConfigurationError | LinkageError e) {
          failures++;
          others.add(e.toString());
        }
      }
    }
    throw new IllegalArgumentException(
        "device "
            + device.info().id()
            + " needs a punicaWrapper, and nothing on the class path makes one for "
            + device.info().id().type()
            + " (lora-punica-cuda does for CUDA)"
            + (others.isEmpty() ? "" : "; found " + others));
  }
}
