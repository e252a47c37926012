package io.moe4j.backend.flashinfer;

import io.moe4j.api.DeviceException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * A loaded module of FlashInfer. Each file is loaded once and kept until the process ends: its
 * kernels hold on to the driver, and loading takes long. Loading touches no device. Safe for
 * several threads.
 */
final class FlashInferModule {
  private static final Logger LOG = LoggerFactory.getLogger(FlashInferModule.class);

  /** What the loader says of a library that another one depends on. */
  private static final Pattern MISSING =
      Pattern.compile("^(lib[\\w.+-]+\\.so[\\w.]*): cannot open shared object file");

  /** Under a folder of Python packages. */
  private static final Path HEADERS =
      Path.of("flashinfer", "data", "csrc", "nv_internal", "tensorrt_llm");

  private static final int MOST_DEPENDENCIES = 8;
  private static final Map<FlashInferLibrary, FlashInferModule> LOADED = new HashMap<>();

  private final FlashInferLibrary library;
  private final TvmRuntime runtime;
  private final TvmModule module;
  private final List<Path> cubins;
  private final Optional<Path> headers;
  private boolean toldHeaders;

  private FlashInferModule(
      FlashInferLibrary library,
      TvmRuntime runtime,
      TvmModule module,
      List<Path> cubins,
      Optional<Path> headers) {
    this.library = library;
    this.runtime = runtime;
    this.module = module;
    this.cubins = cubins;
    this.headers = headers;
  }

  /**
   * Loads a module, with TVM-FFI before it and CUDA's libraries from where they lie.
   *
   * @param library what was found
   * @param places where CUDA's libraries may lie, if the loader does not know them
   * @return the module
   * @throws UnavailableException in the loader's words, if something is missing or does not fit
   */
  static FlashInferModule load(FlashInferLibrary library, SearchPlaces places)
      throws UnavailableException {
    synchronized (LOADED) {
      FlashInferModule known = LOADED.get(library);
      if (known != null) {
        return known;
      }
      TvmRuntime runtime = TvmRuntime.load(library.tvm());
      NativeLibrary loaded = loadDependencies(library, places);
      List<Path> cubins = Cubins.folders(library, places);
      Cubins.serve(loaded, cubins);
      try {
        FlashInferModule now =
            new FlashInferModule(
                library,
                runtime,
                runtime.module(library.module()),
                cubins,
                headers(library, places));
        LOADED.put(library, now);
        LOG.info(
            "FlashInfer {} ({}), apache-tvm-ffi {} ({})",
            library.version(),
            library.module(),
            runtime.version(),
            runtime.path());
        return now;
      } catch (DeviceException e) {
        throw new UnavailableException(String.valueOf(e.getMessage()), e);
      }
    }
  }

  /** Python finds CUDA's libraries in packages of their own; here they are loaded by name. */
  private static NativeLibrary loadDependencies(FlashInferLibrary library, SearchPlaces places)
      throws UnavailableException {
    for (int i = 0; ; i++) {
      try {
        return NativeLibrary.tryOut(library.module());
      } catch (UnavailableException e) {
        Matcher missing = MISSING.matcher(e.reason());
        Optional<Path> file =
            missing.find() && i < MOST_DEPENDENCIES
                ? find(missing.group(1), library, places)
                : Optional.empty();
        if (file.isEmpty()) {
          throw new UnavailableException(
              library.module() + " could not be loaded: " + e.reason(), e);
        }
        NativeLibrary.loadForAll(file.get());
      }
    }
  }

  private static Optional<Path> find(String name, FlashInferLibrary library, SearchPlaces places) {
    List<Path> folders = new ArrayList<>();
    for (Path s : sites(library, places)) {
      for (Path part : SearchPlaces.children(s.resolve("nvidia"), "")) {
        folders.add(part.resolve("lib"));
      }
    }
    folders.addAll(places.cuda());
    return folders.stream().map(f -> f.resolve(name)).filter(Files::isRegularFile).findFirst();
  }

  private static List<Path> sites(FlashInferLibrary library, SearchPlaces places) {
    List<Path> sites = new ArrayList<>(places.sites());
    Path site = library.site();
    if (site != null) {
      sites.addFirst(site);
    }
    return sites;
  }

  /** The headers that kernels are compiled from at run time, in the package flashinfer-python. */
  private static Optional<Path> headers(FlashInferLibrary library, SearchPlaces places) {
    return sites(library, places).stream()
        .map(s -> s.resolve(HEADERS))
        .filter(h -> Files.isDirectory(h.resolve("deep_gemm")))
        .findFirst();
  }

  /** {@return why a scheme's kernels cannot be compiled at run time, empty where they can} */
  Optional<String> whyNotCompiled(CutlassScheme scheme) {
    return !scheme.needsHeaders() || headers.isPresent()
        ? Optional.empty()
        : Optional.of(
            scheme.scheme()
                + ": FlashInfer compiles these kernels while it runs, from headers of its Python"
                + " package, and no folder of packages has "
                + HEADERS
                + ": pip install flashinfer-python=="
                + library.version().text());
  }

  /**
   * Makes ready for a scheme: one whose kernels are compiled at run time needs to know its headers.
   *
   * @throws DeviceException if that cannot be said or they are missing
   */
  synchronized void compileFrom(CutlassScheme scheme) {
    if (!scheme.needsHeaders() || toldHeaders) {
      return;
    }
    Path folder =
        headers.orElseThrow(() -> new DeviceException(whyNotCompiled(scheme).orElseThrow()));
    try (Bound f =
            bind(function(ArgumentLists.HEADERS.function()), List.of(ArgumentLists.HEADERS));
        TvmObject folders = runtime.strings(List.of(folder.toString()))) {
      f.call(new NamedArguments().object("include_dirs", folders));
      toldHeaders = true;
    } catch (UnavailableException e) {
      throw new DeviceException(e.reason(), e);
    }
  }

  /** {@return folders that the kernels of the TRTLLM experts are taken from} */
  List<Path> cubins() {
    return cubins;
  }

  FlashInferLibrary library() {
    return library;
  }

  TvmRuntime runtime() {
    return runtime;
  }

  /**
   * A function of the module.
   *
   * @param name one that has no versions
   * @return owned by the caller
   * @throws UnavailableException if the module has none of that name
   */
  TvmFunction function(String name) throws UnavailableException {
    return module.function(name);
  }

  /** A function with the argument list that it has in this version. */
  Bound bind(TvmFunction function, String name) throws UnavailableException {
    List<Signature> candidates = ArgumentLists.of(name, library.version());
    if (candidates.isEmpty()) {
      throw new UnavailableException(
          "FlashInfer " + library.version() + " has no " + name + " that moe4j knows");
    }
    return bind(function, candidates);
  }

  /** A function whose argument list must be one of several. */
  Bound bind(TvmFunction function, List<Signature> candidates) throws UnavailableException {
    try {
      return new Bound(function, Signature.match(function, candidates, library.version().text()));
    } catch (UnavailableException | RuntimeException | Error e) {
      function.close();
      throw e;
    }
  }

  /**
   * A function and its argument list.
   *
   * @param function owned by this
   * @param signature of this version
   */
  record Bound(TvmFunction function, Signature signature) implements AutoCloseable {
    /** Calls, and drops whatever comes back. */
    void call(NamedArguments arguments) {
      try (TvmArguments a = arguments.inOrderOf(signature)) {
        function.call(a);
      }
    }

    /** Calls for an integer. */
    long callForLong(NamedArguments arguments) {
      try (TvmArguments a = arguments.inOrderOf(signature)) {
        return function.callForLong(a);
      }
    }

    @Override
    public void close() {
      function.close();
    }
  }
}
