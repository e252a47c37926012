package io.moe4j.cuda.ops;

import io.moe4j.api.DeviceException;
import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.Kernel;
import io.moe4j.cuda.KernelLibrary;
import io.moe4j.cuda.KernelSpec;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Consumer;

/**
 * The kernels of some libraries on one device, found by name and constants and loaded when first
 * asked for. Safe for several threads.
 *
 * @since 0.2.0
 */
public final class KernelSet {
  private record Found(KernelLibrary library, KernelSpec spec) {}

  private final CudaDevice device;
  private final Map<String, Found> specs = new HashMap<>();
  private final Map<String, Kernel> loaded = new ConcurrentHashMap<>();
  private final Consumer<Kernel> onLoad;

  /**
   * Reads the manifests; loads nothing.
   *
   * @param device where to run
   * @param libraries no two have a kernel of the same name and constants for one target
   * @param derived constants that follow from the others and are not asked for
   * @param onLoad called once with each kernel that is loaded, to raise its limits
   */
  public KernelSet(
      CudaDevice device,
      List<KernelLibrary> libraries,
      Set<String> derived,
      Consumer<Kernel> onLoad) {
    this.device = device;
    this.onLoad = onLoad;
    ComputeCapability card = CudaDeviceProvider.capability(device.info());
    for (KernelLibrary library : libraries) {
      for (String name : library.kernels().stream().map(KernelSpec::name).distinct().toList()) {
        for (KernelSpec k :
            library.variants(name, card, CudaDeviceProvider.ptxIsa(device.info()))) {
          Map<String, String> constants = new TreeMap<>(k.constants());
          derived.forEach(constants::remove);
          // The same constants may be there for an older target with other derived ones: the newer
          // target wins.
          specs.merge(
              key(name, constants),
              new Found(library, k),
              (a, b) -> a.spec().arch().compareTo(b.spec().arch()) >= 0 ? a : b);
        }
      }
    }
  }

  /**
   * A kernel.
   *
   * @param name its name
   * @param constants keys and values in turn, all of the variant's but the derived ones
   * @return the kernel, loaded
   * @throws DeviceException if no library has it for this device; names what there is
   */
  public Kernel get(String name, String... constants) {
    StringBuilder request = new StringBuilder(name);
    for (String c : constants) {
      request.append(' ').append(c);
    }
    Kernel known = loaded.get(request.toString());
    return known != null ? known : load(request.toString(), name, constants);
  }

  private Kernel load(String request, String name, String... constants) {
    Map<String, String> wanted = new TreeMap<>();
    for (int i = 0; i < constants.length; i += 2) {
      wanted.put(constants[i], constants[i + 1]);
    }
    Found found = specs.get(key(name, wanted));
    if (found == null) {
      List<String> there = new ArrayList<>();
      specs.keySet().stream().filter(k -> k.startsWith(name + "{")).sorted().forEach(there::add);
      throw new DeviceException(
          "no kernel "
              + key(name, wanted)
              + " for compute capability "
              + CudaDeviceProvider.capability(device.info())
              + "; there are "
              + there);
    }
    Kernel kernel = device.kernel(found.library(), found.spec());
    onLoad.accept(kernel);
    loaded.put(request, kernel);
    return kernel;
  }

  private static String key(String name, Map<String, String> constants) {
    return name + constants;
  }
}
