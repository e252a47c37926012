package io.moe4j.cuda;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import io.moe4j.api.DeviceException;
import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.api.platform.DeviceInfo;
import java.io.IOException;
import java.io.InputStream;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.stream.Collectors;
import java.util.zip.GZIPInputStream;

/**
 * The compiled kernels that one module carries: {@code META-INF/moe4j/kernels/MODULE/manifest.json}
 * and the PTX files beside it. Reading it touches no device; choosing from it is pure. Immutable.
 *
 * <p>The manifest is one object: {@code format} 1, {@code module}, and {@code kernels}, a list
 * whose entries have the components of {@link KernelSpec} by the same names ({@code constants} and
 * {@code sources} are objects, {@code params} a list of {@code [name, type]} with the types of
 * {@link ParamType} in lower case). {@code cluster}, {@code pdl}, {@code sharedBytes} and {@code
 * constants} may be left out.
 */
public final class KernelLibrary {
  /** Where modules keep their kernels; the module's name follows. */
  public static final String ROOT = "META-INF/moe4j/kernels/";

  private static final int FORMAT = 1;

  private final String module;
  private final ClassLoader loader;
  private final List<KernelSpec> kernels;

  private KernelLibrary(String module, ClassLoader loader, List<KernelSpec> kernels) {
    this.module = module;
    this.loader = loader;
    this.kernels = List.copyOf(kernels);
  }

  /**
   * Reads a module's manifest.
   *
   * @param owner a class of the jar that carries the kernels
   * @param module the module's name
   * @return the library
   * @throws DeviceException if the jar carries none, or its manifest is damaged
   */
  public static KernelLibrary of(Class<?> owner, String module) {
    ClassLoader loader = Objects.requireNonNull(owner.getClassLoader(), "class loader of owner");
    String path = ROOT + module + "/manifest.json";
    try (InputStream in = loader.getResourceAsStream(path)) {
      if (in == null) {
        throw new DeviceException(
            "no kernels: " + path + " is not in the jar of " + owner.getName());
      }
      return new KernelLibrary(module, loader, parse(module, new ObjectMapper().readTree(in)));
    } catch (IOException | IllegalArgumentException e) {
      throw new DeviceException("kernel manifest " + path + " is damaged: " + e.getMessage(), e);
    }
  }

  private static List<KernelSpec> parse(String module, JsonNode root) {
    if (root.path("format").asInt() != FORMAT || !module.equals(root.path("module").asText())) {
      throw new IllegalArgumentException(
          "it is of format "
              + root.path("format")
              + " and module "
              + root.path("module")
              + ", expected "
              + FORMAT
              + " and "
              + module);
    }
    List<KernelSpec> specs = new ArrayList<>();
    for (JsonNode k : root.path("kernels")) {
      List<KernelSpec.Param> params = new ArrayList<>();
      for (JsonNode p : k.path("params")) {
        params.add(
            new KernelSpec.Param(p.path(0).asText(), ParamType.ofManifest(p.path(1).asText())));
      }
      specs.add(
          new KernelSpec(
              text(k, "name"),
              strings(k.path("constants")),
              KernelArch.parse(text(k, "arch")),
              PtxVersion.parse(text(k, "ptxIsa")),
              strings(k.path("sources")),
              text(k, "compiler"),
              text(k, "options"),
              text(k, "ptx"),
              text(k, "ptxSha256"),
              text(k, "entry"),
              params,
              k.path("sharedBytes").asInt(0),
              k.path("threads").asInt(0),
              k.path("cluster").asInt(1),
              k.path("pdl").asBoolean(false)));
    }
    return specs;
  }

  private static String text(JsonNode node, String key) {
    JsonNode value = node.get(key);
    if (value == null || !value.isTextual()) {
      throw new IllegalArgumentException(
          "kernel " + node.path("name").asText("?") + " has no text \"" + key + "\"");
    }
    return value.asText();
  }

  private static Map<String, String> strings(JsonNode node) {
    Map<String, String> map = new LinkedHashMap<>();
    node.properties().forEach(e -> map.put(e.getKey(), e.getValue().asText()));
    return map;
  }

  /** {@return the module's name} */
  public String module() {
    return module;
  }

  /** {@return everything in the manifest} */
  public List<KernelSpec> kernels() {
    return kernels;
  }

  /**
   * The variants of a kernel that a card and driver can run: for each set of constants the best
   * target. This is what a tile heuristic chooses from.
   *
   * @param name the kernel's name
   * @param card the card's capability
   * @param isa the newest PTX its driver compiles
   * @return in the manifest's order of constants; empty if none runs
   */
  public List<KernelSpec> variants(String name, ComputeCapability card, PtxVersion isa) {
    Map<Map<String, String>, KernelSpec> best = new LinkedHashMap<>();
    for (KernelSpec k : kernels) {
      if (k.name().equals(name) && k.arch().runsOn(card) && k.ptxIsa().compareTo(isa) <= 0) {
        best.merge(k.constants(), k, (a, b) -> a.arch().compareTo(b.arch()) >= 0 ? a : b);
      }
    }
    return List.copyOf(best.values());
  }

  /**
   * The one variant with all of the given constants, for a device.
   *
   * @param device a CUDA device
   * @param name the kernel's name
   * @param constants a subset of the variant's constants that singles it out
   * @return the kernel for the best target the device runs
   * @throws DeviceException if there is none, naming what there is and what the driver would need
   */
  public KernelSpec select(DeviceInfo device, String name, Map<String, String> constants) {
    ComputeCapability card = CudaDeviceProvider.capability(device);
    PtxVersion isa = CudaDeviceProvider.ptxIsa(device);
    List<KernelSpec> fit =
        variants(name, card, isa).stream()
            .filter(k -> k.constants().entrySet().containsAll(constants.entrySet()))
            .toList();
    if (fit.size() == 1) {
      return fit.getFirst();
    }
    String wanted = name + (constants.isEmpty() ? "" : " with " + new TreeMap<>(constants));
    if (fit.size() > 1) {
      throw new IllegalArgumentException(
          "kernel "
              + wanted
              + " is not unique in "
              + module
              + ": "
              + fit.stream().map(KernelSpec::id).collect(Collectors.joining(", ")));
    }
    throw new DeviceException(
        "no kernel "
            + wanted
            + " in "
            + module
            + " for compute capability "
            + card
            + " and a driver of PTX "
            + isa
            + "; there are "
            + kernels.stream()
                .filter(k -> k.name().equals(name))
                .map(k -> k.id() + " (PTX " + k.ptxIsa() + ")")
                .collect(Collectors.joining(", ")));
  }

  /**
   * Why a device cannot run this library, if it cannot: for a backend's refusal.
   *
   * @param device a CUDA device
   * @return one clause with the offending version and the needed one; empty if for every kernel
   *     name at least one variant runs
   */
  public Optional<String> whyUnsupported(DeviceInfo device) {
    if (device.capability().isEmpty()) {
      return Optional.of(device.id() + " has no compute capability");
    }
    ComputeCapability card = device.capability().get();
    PtxVersion isa = CudaDeviceProvider.ptxIsa(device);
    for (String name :
        kernels.stream().map(KernelSpec::name).collect(Collectors.toCollection(TreeSet::new))) {
      List<KernelSpec> all = kernels.stream().filter(k -> k.name().equals(name)).toList();
      List<KernelSpec> onCard = all.stream().filter(k -> k.arch().runsOn(card)).toList();
      if (onCard.isEmpty()) {
        KernelArch least =
            all.stream().map(KernelSpec::arch).min(Comparator.naturalOrder()).orElseThrow();
        return Optional.of("compute capability " + card + " < " + least.capability());
      }
      PtxVersion needed =
          onCard.stream().map(KernelSpec::ptxIsa).min(Comparator.naturalOrder()).orElseThrow();
      if (needed.compareTo(isa) > 0) {
        return Optional.of(
            "the driver compiles PTX "
                + isa
                + ", kernel "
                + name
                + " needs PTX "
                + needed
                + ": driver "
                + needed.driverHint()
                + " or later");
      }
    }
    return Optional.empty();
  }

  /**
   * The PTX of a kernel.
   *
   * @param spec one of {@link #kernels}
   * @return the text
   * @throws DeviceException if the jar lacks the file or it is damaged
   */
  public byte[] ptx(KernelSpec spec) {
    String path = ROOT + module + "/" + spec.ptx();
    try (InputStream in = loader.getResourceAsStream(path)) {
      if (in == null) {
        throw new DeviceException("kernel " + spec.id() + ": " + path + " is not in the jar");
      }
      return spec.ptx().endsWith(".gz")
          ? new GZIPInputStream(in).readAllBytes()
          : in.readAllBytes();
    } catch (IOException e) {
      throw new DeviceException("kernel " + spec.id() + ": " + path + " is damaged", e);
    }
  }

  /**
   * Like {@code kernels of moe-cuda (42)}.
   *
   * @return module and count
   */
  @Override
  public String toString() {
    return "kernels of " + module + " (" + kernels.size() + ")";
  }
}
