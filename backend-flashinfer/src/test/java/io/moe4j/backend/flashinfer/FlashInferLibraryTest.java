package io.moe4j.backend.flashinfer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.platform.ComputeCapability;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Where FlashInfer is looked for, and what is said when something is missing. */
class FlashInferLibraryTest {
  private static final ComputeCapability HOPPER = new ComputeCapability(9, 0);
  private static final String MODULE = "fused_moe_90";

  @TempDir private Path temp;
  private Path site;
  private final Map<String, String> properties = new HashMap<>();
  private final Map<String, String> environment = new HashMap<>();

  @BeforeEach
  void machine() throws IOException {
    properties.put("user.home", temp.resolve("home").toString());
    site = Files.createDirectories(temp.resolve("venv/lib/python3.12/site-packages"));
    environment.put("VIRTUAL_ENV", temp.resolve("venv").toString());
  }

  private SearchPlaces places() {
    SearchPlaces all = SearchPlaces.of(properties::get, environment::get);
    // What is installed on the machine that runs the tests is none of their business.
    List<Path> sites = all.sites().stream().filter(s -> s.startsWith(temp)).toList();
    return new SearchPlaces(
        all.given(), all.version(), all.tvm(), sites, all.cache(), all.cuda(), all.cubins());
  }

  private FlashInferLibrary find() throws UnavailableException {
    return FlashInferLibrary.find(places(), MODULE, HOPPER);
  }

  private static Path file(Path path) throws IOException {
    Files.createDirectories(path.getParent());
    return Files.writeString(path, "");
  }

  private Path jitCache(Path where, String version) throws IOException {
    Files.createDirectories(where.resolve("flashinfer_jit_cache-" + version + ".dist-info"));
    return file(where.resolve("flashinfer_jit_cache/jit_cache/fused_moe_90/fused_moe_90.so"));
  }

  private Path tvm(Path where, String version) throws IOException {
    Files.createDirectories(where.resolve("apache_tvm_ffi-" + version + ".dist-info"));
    return file(where.resolve("tvm_ffi/lib/libtvm_ffi.so"));
  }

  @Test
  void nothingInstalled() {
    assertThatThrownBy(this::find)
        .isInstanceOf(UnavailableException.class)
        .hasMessage(
            "no module fused_moe_90 of FlashInfer was found in 1 folders of Python packages or in "
                + temp.resolve("home/.cache/flashinfer")
                + ": pip install flashinfer-python flashinfer-jit-cache apache-tvm-ffi, or name one"
                + " with moe4j.flashinfer.path");
  }

  @Test
  void thePackageOfCompiledModules() throws IOException, UnavailableException {
    Path module = jitCache(site, "0.6.18+cu130");
    Path tvm = tvm(site, "0.1.14");
    FlashInferLibrary found = find();
    assertThat(found.module()).isEqualTo(module);
    assertThat(found.tvm()).isEqualTo(tvm);
    assertThat(found.version().text()).isEqualTo("0.6.18+cu130");
    assertThat(found.site()).isEqualTo(site);
  }

  @Test
  void tvmMissing() throws IOException {
    Path module = jitCache(site, "0.6.18");
    assertThatThrownBy(this::find)
        .hasMessage(
            "FlashInfer 0.6.18 found at "
                + module
                + ", but apache-tvm-ffi is missing in "
                + site
                + ": pip install \"apache-tvm-ffi>=0.1.6,<0.2\"");
  }

  @Test
  void tvmOfAVersionThatDoesNotServe() throws IOException {
    jitCache(site, "0.6.18");
    Path info = site.resolve("apache_tvm_ffi-0.1.8.post0.dist-info");
    tvm(site, "0.1.8.post0");
    assertThatThrownBy(this::find)
        .hasMessageContaining("apache-tvm-ffi 0.1.8.post0 in " + site + " does not serve it");
    Files.move(info, site.resolve("apache_tvm_ffi-0.1.5.dist-info"));
    assertThatThrownBy(this::find).hasMessageContaining("apache-tvm-ffi 0.1.5 in");
    Files.move(
        site.resolve("apache_tvm_ffi-0.1.5.dist-info"),
        site.resolve("apache_tvm_ffi-0.2.0.dist-info"));
    assertThatThrownBy(this::find).hasMessageContaining("apache-tvm-ffi 0.2.0 in");
  }

  @Test
  void correctedTvmServes() throws IOException, UnavailableException {
    jitCache(site, "0.6.18");
    Path tvm = tvm(site, "0.1.8.post2");
    assertThat(find().tvm()).isEqualTo(tvm);
  }

  @Test
  void unknownVersionsAreRefusedByName() throws IOException {
    Path module = jitCache(site, "0.7.2.post1+cu130");
    tvm(site, "0.1.15");
    assertThatThrownBy(this::find)
        .hasMessage(
            module
                + ": FlashInfer 0.7.2.post1+cu130 is not known to this moe4j, which knows the"
                + " argument lists of 0.6.0 to 0.6.18");
  }

  @Test
  void aCompleteOneBehindAnIncompleteOneIsTaken() throws IOException, UnavailableException {
    jitCache(site, "0.7.0");
    tvm(site, "0.1.14");
    Path second = Files.createDirectories(temp.resolve("home/.local/lib/python3.11/site-packages"));
    Path module = jitCache(second, "0.6.17");
    tvm(second, "0.1.14");
    assertThat(find().module()).isEqualTo(module);
  }

  @Test
  void modulesCompiledAheadInsideThePythonPackage() throws IOException, UnavailableException {
    Files.createDirectories(site.resolve("flashinfer_python-0.6.15.dist-info"));
    Path module = file(site.resolve("flashinfer/data/aot/fused_moe_90/fused_moe_90.so"));
    tvm(site, "0.1.14");
    assertThat(find().module()).isEqualTo(module);
    assertThat(find().version().text()).isEqualTo("0.6.15");
  }

  @Test
  void theCacheOfModulesCompiledHere() throws IOException, UnavailableException {
    Path cache = temp.resolve("home/.cache/flashinfer");
    file(cache.resolve("0.6.17/80_100a/cached_ops/fused_moe_90/fused_moe_90.so"));
    file(cache.resolve("0.6.17/900/cached_ops/fused_moe_90/fused_moe_90.so"));
    tvm(site, "0.1.14");
    assertThatThrownBy(this::find)
        .as("compiled for other cards")
        .hasMessageContaining("was found in");
    Path module = file(cache.resolve("0.6.17/80_90a/cached_ops/fused_moe_90/fused_moe_90.so"));
    assertThat(find().module()).isEqualTo(module);
    assertThat(find().site()).isNull();
    environment.put("FLASHINFER_WORKSPACE_BASE", temp.resolve("elsewhere").toString());
    assertThatThrownBy(this::find).hasMessageContaining("elsewhere/.cache/flashinfer");
  }

  @Test
  void whatTheUserNamesIsTheOnlyThingLookedAt() throws IOException, UnavailableException {
    jitCache(site, "0.6.18");
    tvm(site, "0.1.14");
    Path own = temp.resolve("own");
    environment.put(SearchPlaces.PATH_VARIABLE, own.toString());
    assertThatThrownBy(this::find)
        .hasMessage("there is no module fused_moe_90 of FlashInfer at " + own);
    Path module = file(own.resolve("fused_moe_90/fused_moe_90.so"));
    assertThatThrownBy(this::find)
        .hasMessageContaining("nothing beside it tells its version")
        .hasMessageContaining(FlashInferProperties.VERSION);
    properties.put(FlashInferProperties.VERSION, "0.6.18");
    assertThat(find().module()).isEqualTo(module);
    properties.put(FlashInferProperties.TVM_FFI, own.resolve("libtvm_ffi.so").toString());
    assertThatThrownBy(this::find).hasMessageContaining("no file");
    Path tvm = file(own.resolve("libtvm_ffi.so"));
    assertThat(find().tvm()).isEqualTo(tvm);
    properties.put(FlashInferProperties.PATH, module.toString());
    assertThat(find().module()).isEqualTo(module);
    properties.remove(FlashInferProperties.TVM_FFI);
    properties.remove(FlashInferProperties.VERSION);
    properties.put(FlashInferProperties.PATH, site.toString());
    assertThat(find().version().text()).isEqualTo("0.6.18");
  }

  @Test
  void damagedPlacesAreNoErrors() throws IOException {
    file(temp.resolve("home/.cache/flashinfer"));
    environment.put("VIRTUAL_ENV", "\0");
    environment.put("PYTHONPATH", "::\0:" + temp.resolve("nowhere"));
    environment.put("PATH", ":" + temp);
    assertThatThrownBy(this::find).isInstanceOf(UnavailableException.class);
    properties.remove("user.home");
    assertThatThrownBy(this::find).hasMessageContaining("no home directory");
  }

  @Test
  void modulesByDevice() {
    assertThat(FlashInferLibrary.cutlassModule(HOPPER)).contains(MODULE);
    assertThat(FlashInferLibrary.cutlassModule(new ComputeCapability(8, 9)))
        .contains("fused_moe_89");
    assertThat(FlashInferLibrary.cutlassModule(new ComputeCapability(10, 3)))
        .contains("fused_moe_103");
    assertThat(FlashInferLibrary.cutlassModule(new ComputeCapability(12, 1)))
        .contains("fused_moe_120");
    assertThat(FlashInferLibrary.cutlassModule(new ComputeCapability(11, 0))).isEmpty();
    assertThat(FlashInferLibrary.cutlassModule(new ComputeCapability(8, 0))).isEmpty();
    assertThat(FlashInferLibrary.trtllmModule(HOPPER)).isEmpty();
    assertThat(FlashInferLibrary.trtllmModule(new ComputeCapability(10, 0)))
        .contains("fused_moe_trtllm_sm100");
  }

  @Test
  void aFoundModuleIsLoadedAndWhatItLacksIsSaid() throws UnavailableException {
    FlashInferVersion version = FlashInferVersion.parse("0.6.18").orElseThrow();
    FlashInferLibrary library = new FlashInferLibrary(Standin.moe(), version, Standin.tvm(), null);
    FlashInferModule module = FlashInferModule.load(library, places());
    assertThat(FlashInferModule.load(library, places())).isSameAs(module);
    try (FlashInferModule.Bound init = module.bind(module.function("init"), "init")) {
      assertThat(init.signature().size()).isEqualTo(9);
    }
    Path lacking =
        Standin.build(
            "lacking",
            "fused_moe_90.so",
            "moe.c",
            "-Wl,--no-as-needed",
            "-L" + needed(),
            "-lneeded");
    FlashInferLibrary other = new FlashInferLibrary(lacking, version, Standin.tvm(), null);
    assertThatThrownBy(() -> FlashInferModule.load(other, places()))
        .isInstanceOf(UnavailableException.class)
        .hasMessageContaining(lacking + " could not be loaded: libneeded.so: cannot open");
    SearchPlaces with =
        new SearchPlaces(
            Optional.empty(),
            Optional.empty(),
            Optional.empty(),
            List.of(),
            Optional.empty(),
            List.of(needed()),
            Optional.empty());
    assertThat(FlashInferModule.load(other, with).library()).isEqualTo(other);
  }

  /** The folder of a library that another one depends on, and that the loader does not know. */
  private static Path needed() {
    Path folder =
        Standin.build("needed", "libneeded.so", "needed.c", "-Wl,-soname,libneeded.so").getParent();
    return folder;
  }
}
