package io.moe4j.comm.nccl;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.comm.CommException;
import io.moe4j.api.platform.Platform;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class NcclLibraryTest {
  @TempDir Path folder;

  private static NcclPlaces given(Path path) {
    return new NcclPlaces(Optional.of(path), List.of(), List.of());
  }

  private static String refusal(NcclPlaces places) {
    try {
      return "found " + NcclLibrary.find(places);
    } catch (UnavailableException e) {
      return e.reason();
    }
  }

  @Test
  void nothingInstalled() {
    assertThat(refusal(new NcclPlaces(Optional.empty(), List.of(folder), List.of(folder, folder))))
        .isEqualTo(
            "no libnccl.so.2 was found in 1 folders of the dynamic loader and 2 folders of Python"
                + " packages: pip install nvidia-nccl-cu13, or name one with moe4j.nccl.path");
    assertThat(refusal(given(folder))).isEqualTo("there is no libnccl.so.2 at " + folder);
  }

  @Test
  void theFileItsFolderOrAFolderOfPackages() throws Exception {
    Path file = Standin.library();
    assertThat(NcclLibrary.find(given(file)).version()).hasToString("2.30.7");
    assertThat(NcclLibrary.find(given(Objects.requireNonNull(file.getParent()))).path())
        .isEqualTo(file);
    Path lib = Files.createDirectories(folder.resolve("nvidia/nccl/lib"));
    Path packaged = Files.copy(file, lib.resolve(NcclLibrary.FILE));
    assertThat(NcclLibrary.find(given(folder)).path()).isEqualTo(packaged);
    NcclPlaces site = new NcclPlaces(Optional.empty(), List.of(), List.of(folder));
    assertThat(NcclLibrary.find(site).path()).isEqualTo(packaged);
    NcclPlaces loader = new NcclPlaces(Optional.empty(), List.of(lib), List.of());
    assertThat(NcclLibrary.find(loader).path()).isEqualTo(packaged);
  }

  @Test
  void theUsersWordComesFirstThenTheLoaderThenPackages() {
    Map<String, String> environment = new HashMap<>();
    environment.put("LD_LIBRARY_PATH", "/first:/second");
    environment.put("PYTHONPATH", folder.toString());
    NcclPlaces found = NcclPlaces.of(_ -> null, environment::get);
    assertThat(found.files())
        .startsWith(Path.of("/first/libnccl.so.2"), Path.of("/second/libnccl.so.2"))
        .contains(folder.resolve("nvidia/nccl/lib/libnccl.so.2"));
    environment.put("MOE_NCCL_PATH", "/mine");
    assertThat(NcclPlaces.of(_ -> null, environment::get).files())
        .allMatch(p -> p.startsWith("/mine"));
    NcclPlaces property = NcclPlaces.of(Map.of("moe4j.nccl.path", "/that")::get, environment::get);
    assertThat(property.given()).hasValue(Path.of("/that"));
  }

  @Test
  void tooOldOrTooNew() {
    Path old = Standin.build("old", "-DVERSION=22605");
    assertThat(refusal(given(old)))
        .isEqualTo(old + " is NCCL 2.26.5, must be 2.27 to 2.x: pip install nvidia-nccl-cu13");
    Path next = Standin.build("next", "-DVERSION=30001");
    assertThat(refusal(given(next))).contains("is NCCL 3.0.1, must be 2.27 to 2.x");
    assertThat(NcclVersion.ofCode(2708)).hasToString("2.7.8");
  }

  @Test
  void aLaterFileServesWhereAnEarlierDoesNot() throws Exception {
    Path old = Standin.build("old", "-DVERSION=22605");
    List<Path> folders =
        List.of(
            Objects.requireNonNull(old.getParent()),
            Objects.requireNonNull(Standin.library().getParent()));
    assertThat(NcclLibrary.find(new NcclPlaces(Optional.empty(), folders, List.of())).path())
        .isEqualTo(Standin.library());
  }

  @Test
  void aSymbolIsMissing() {
    Path lacking = Standin.build("lacking", "-DLACKS_RECV");
    assertThat(refusal(given(lacking)))
        .isEqualTo(lacking + " lacks ncclRecv: no NCCL of 2.27 to 2.x");
  }

  @Test
  void noLibraryAtAll() throws Exception {
    Path text = Files.writeString(folder.resolve(NcclLibrary.FILE), "hello");
    assertThat(refusal(given(text))).startsWith(text + " could not be loaded: ");
  }

  @Test
  void oneInAProcess() throws Exception {
    NcclLibrary first = NcclLibrary.load(NcclLibrary.find(given(Standin.library())));
    assertThat(NcclLibrary.load(first)).isSameAs(NcclLibrary.load(first));
    Path other = Files.copy(Standin.library(), folder.resolve(NcclLibrary.FILE));
    assertThatThrownBy(() -> NcclLibrary.load(NcclLibrary.find(given(other))))
        .isInstanceOf(UnavailableException.class)
        .hasMessageContaining("has loaded " + Standin.library() + " (NCCL 2.30.7) already");
  }

  @Test
  void theProviderSaysWhyNot() {
    NcclCommProvider none = new NcclCommProvider(new NcclLibrary.Installed(() -> given(folder)));
    assertThat(none.version()).isEmpty();
    assertThat(none.whyUnsupported(new Platform(List.of(), Map.of())))
        .hasValue("there is no libnccl.so.2 at " + folder);
    assertThatThrownBy(none::newGroup)
        .isInstanceOf(CommException.class)
        .hasMessageContaining("there is no libnccl.so.2 at " + folder);
  }
}
