package io.moe4j.backend.flashinfer;

import io.moe4j.api.platform.ComputeCapability;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;

/**
 * A module of the FlashInfer that is installed on the machine, and the TVM-FFI that goes with it.
 * Looking for them opens no library and touches no device.
 *
 * @param module the module's file
 * @param version of FlashInfer, by the package or the cache the file lies in
 * @param tvm the file of TVM-FFI
 * @param site the folder of Python packages they lie in, null where they lie elsewhere
 */
record FlashInferLibrary(Path module, FlashInferVersion version, Path tvm, @Nullable Path site) {
  private static final Pattern JIT_ARCHITECTURE = Pattern.compile("(?:^|_)(\\d+)[a-z]?(?=_|$)");
  private static final String INSTALL =
      "pip install flashinfer-python flashinfer-jit-cache apache-tvm-ffi";

  /** TVM-FFI by the package's version: 0.1.8 was withdrawn, its later corrections serve. */
  private static final Pattern TVM_VERSION = Pattern.compile("0\\.1\\.(\\d+)(?:\\.post(\\d+))?.*");

  /**
   * A file that may be it.
   *
   * @param site folder of packages it lies in
   * @param version as its surroundings tell it; null = they do not
   * @param origin which step found it
   */
  private record Candidate(
      Path file, @Nullable Path site, @Nullable String version, String origin) {}

  /**
   * Looks in all places, in order: what the user named; the package {@code flashinfer-jit-cache} in
   * each folder of Python packages; modules compiled ahead inside {@code flashinfer-python}; the
   * cache of modules compiled on this machine.
   *
   * @param places where
   * @param name of the module, like {@code fused_moe_90}
   * @param capability of the device, which a module from the cache must have been compiled for
   * @return the first that is complete and of a known version
   * @throws UnavailableException with the reason: of the first file that was found but does not
   *     serve, or that none was found
   */
  static FlashInferLibrary find(SearchPlaces places, String name, ComputeCapability capability)
      throws UnavailableException {
    List<Candidate> candidates = candidates(places, name, capability);
    UnavailableException first = null;
    for (Candidate c : candidates) {
      try {
        return complete(c, places);
      } catch (UnavailableException e) {
        first = first == null ? e : first;
      }
    }
    if (first != null) {
      throw first;
    }
    throw new UnavailableException(
        places
            .given()
            .map(g -> "there is no module " + name + " of FlashInfer at " + g)
            .orElseGet(() ->
                "no module "
                    + name
                    + " of FlashInfer was found in "
                    + places.sites().size()
                    + " folders of Python packages or in "
                    + places.cache().map(Path::toString).orElse("a cache (no home directory)")
                    + ": "
                    + INSTALL
                    + ", or name one with "
                    + FlashInferProperties.PATH));
  }

  /** {@return the module of the CUTLASS experts for a device, empty where FlashInfer has none} */
  static Optional<String> cutlassModule(ComputeCapability capability) {
    if (capability.major() == 12) {
      return Optional.of("fused_moe_120"); // one module for the family
    }
    int sm = capability.major() * 10 + capability.minor();
    return List.of(89, 90, 100, 103).contains(sm)
        ? Optional.of("fused_moe_" + sm)
        : Optional.empty();
  }

  /** {@return the module of the TRTLLM experts for a device, empty where FlashInfer has none} */
  static Optional<String> trtllmModule(ComputeCapability capability) {
    return capability.major() == 10 ? Optional.of("fused_moe_trtllm_sm100") : Optional.empty();
  }

  private static List<Candidate> candidates(
      SearchPlaces places, String name, ComputeCapability capability) {
    List<Candidate> found = new ArrayList<>();
    if (places.given().isPresent()) {
      Path given = places.given().get();
      String version = places.version().orElse(null);
      for (Path file :
          List.of(given, given.resolve(name + ".so"), given.resolve(name).resolve(name + ".so"))) {
        if (Files.isRegularFile(file)) {
          Path site = siteOf(file);
          String told = version;
          if (told == null) {
            told = site == null ? cacheVersion(file) : packageVersion(site).orElse(null);
          }
          found.add(new Candidate(file, site, told, "named by the user"));
        }
      }
      fromSite(given, name, found);
      return found;
    }
    for (Path site : places.sites()) {
      fromSite(site, name, found);
    }
    places.cache().ifPresent(cache -> fromCache(cache, name, capability, found));
    return found;
  }

  private static void fromSite(Path site, String name, List<Candidate> found) {
    Path packaged = Path.of("flashinfer_jit_cache", "jit_cache", name, name + ".so");
    if (Files.isRegularFile(site.resolve(packaged))) {
      String version = distribution(site, "flashinfer_jit_cache").orElse(null);
      found.add(new Candidate(site.resolve(packaged), site, version, "flashinfer-jit-cache"));
    }
    Path ahead = Path.of("flashinfer", "data", "aot", name, name + ".so");
    if (Files.isRegularFile(site.resolve(ahead))) {
      String version = distribution(site, "flashinfer_python").orElse(null);
      found.add(new Candidate(site.resolve(ahead), site, version, "flashinfer-python"));
    }
  }

  private static void fromCache(
      Path cache, String name, ComputeCapability capability, List<Candidate> found) {
    for (Path version : SearchPlaces.children(cache, "")) {
      for (Path architectures : SearchPlaces.children(version, "")) {
        Path file = architectures.resolve("cached_ops").resolve(name).resolve(name + ".so");
        if (isFor(String.valueOf(architectures.getFileName()), capability)
            && Files.isRegularFile(file)) {
          found.add(
              new Candidate(
                  file, null, String.valueOf(version.getFileName()), "FlashInfer's cache"));
        }
      }
    }
  }

  /** Whether a folder of the cache, like {@code 90a_100a}, holds code for a device. */
  private static boolean isFor(String architectures, ComputeCapability capability) {
    String wanted = Integer.toString(capability.major() * 10 + capability.minor());
    return JIT_ARCHITECTURE
        .matcher(architectures)
        .results()
        .anyMatch(one -> one.group(1).equals(wanted));
  }

  private static FlashInferLibrary complete(Candidate c, SearchPlaces places)
      throws UnavailableException {
    String told = c.version();
    if (told == null) {
      throw new UnavailableException(
          c.file()
              + " ("
              + c.origin()
              + ") was found, but nothing beside it tells its version: name it with "
              + FlashInferProperties.VERSION);
    }
    FlashInferVersion version =
        FlashInferVersion.parse(told)
            .orElseThrow(() ->
                new UnavailableException(
                    c.file() + " was found, but \"" + told + "\" is no version of FlashInfer"));
    if (!ArgumentLists.knows(version)) {
      throw new UnavailableException(c.file() + ": " + ArgumentLists.whyUnknown(version.text()));
    }
    return new FlashInferLibrary(c.file(), version, tvm(c, version, places), c.site());
  }

  /** The TVM-FFI in the same folder of packages; of a module elsewhere, in any. */
  private static Path tvm(Candidate c, FlashInferVersion version, SearchPlaces places)
      throws UnavailableException {
    if (places.tvm().isPresent()) {
      Path file = places.tvm().get();
      if (!Files.isRegularFile(file)) {
        throw new UnavailableException(
            FlashInferProperties.TVM_FFI + " names " + file + ", no file");
      }
      return file;
    }
    List<Path> sites = c.site() == null ? places.sites() : List.of(c.site());
    String refused = null;
    for (Path site : sites) {
      Path file = site.resolve("tvm_ffi").resolve("lib").resolve(TvmRuntime.FILE);
      if (!Files.isRegularFile(file)) {
        continue;
      }
      Optional<String> packaged = distribution(site, "apache_tvm_ffi");
      if (packaged.isEmpty() || serves(packaged.get())) {
        return file;
      }
      refused = "apache-tvm-ffi " + packaged.get() + " in " + site;
    }
    throw new UnavailableException(
        "FlashInfer "
            + version
            + " found at "
            + c.file()
            + ", but "
            + (refused == null
                ? "apache-tvm-ffi is missing"
                    + (c.site() == null ? "" : " in " + c.site())
                    + ": pip install \"apache-tvm-ffi>=0.1.6,<0.2\""
                : refused
                    + " does not serve it: pip install \"apache-tvm-ffi>=0.1.6,!=0.1.8,<0.2\""));
  }

  private static boolean serves(String version) {
    Matcher m = TVM_VERSION.matcher(version);
    if (!m.matches()) {
      return false;
    }
    int patch = Integer.parseInt(m.group(1));
    boolean withdrawn = patch == 8 && (m.group(2) == null || m.group(2).equals("0"));
    return patch >= 6 && !withdrawn;
  }

  /** The version in the name of {@code <name>-<version>.dist-info}. */
  private static Optional<String> distribution(Path site, String name) {
    for (Path folder : SearchPlaces.children(site, name + "-")) {
      String full = String.valueOf(folder.getFileName());
      if (full.endsWith(".dist-info")) {
        return Optional.of(
            full.substring(name.length() + 1, full.length() - ".dist-info".length()));
      }
    }
    return Optional.empty();
  }

  private static Optional<String> packageVersion(Path site) {
    return distribution(site, "flashinfer_jit_cache")
        .or(() -> distribution(site, "flashinfer_python"));
  }

  /** The folder of packages that a file lies under. */
  private static @Nullable Path siteOf(Path file) {
    for (Path p = file.getParent(); p != null; p = p.getParent()) {
      if (packageVersion(p).isPresent()) {
        return p;
      }
    }
    return null;
  }

  /** The version's folder above {@code <architectures>/cached_ops/<name>/<name>.so}. */
  private static @Nullable String cacheVersion(Path file) {
    int names = file.getNameCount();
    return names > 5 && file.getName(names - 3).toString().equals("cached_ops")
        ? file.getName(names - 5).toString()
        : null;
  }
}
