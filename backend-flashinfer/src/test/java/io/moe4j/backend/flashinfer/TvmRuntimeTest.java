package io.moe4j.backend.flashinfer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Which files are taken for TVM-FFI, and what is said of the others. */
class TvmRuntimeTest {
  @TempDir private Path temp;

  @Test
  void theVersionIsTheLibrarysOwn() throws UnavailableException {
    assertThat(TvmRuntime.examine(Standin.tvm())).isEqualTo(new TvmRuntime.Version(0, 1, 14));
    assertThat(Standin.runtime().version()).hasToString("0.1.14");
  }

  @Test
  void otherVersionsAreRefused() {
    for (String[] v : new String[][] {{"2", "0"}, {"1", "5"}, {"0", "9"}}) {
      Path library =
          Standin.build(
              "tvm-" + v[0] + "." + v[1],
              TvmRuntime.FILE,
              "tvm.c",
              "-DTVM_MINOR=" + v[0],
              "-DTVM_PATCH=" + v[1]);
      assertThatThrownBy(() -> TvmRuntime.examine(library))
          .isInstanceOf(UnavailableException.class)
          .hasMessage(
              library + " is apache-tvm-ffi 0." + v[0] + "." + v[1] + ", must be 0.1.6 to 0.1.x");
    }
  }

  @Test
  void missingSymbolsAreNamed() {
    Path library = Standin.build("tvm-short", TvmRuntime.FILE, "tvm.c", "-DWITHOUT_ENV_ALLOC");
    assertThatThrownBy(() -> TvmRuntime.examine(library))
        .isInstanceOf(UnavailableException.class)
        .hasMessageContaining("lacks TVMFFIEnvTensorAlloc");
  }

  @Test
  void whatIsNoLibraryIsSaidInTheLoadersWords() throws IOException {
    Standin.assumeCompiler();
    Path text = Files.writeString(temp.resolve(TvmRuntime.FILE), "not a library");
    assertThatThrownBy(() -> TvmRuntime.examine(text))
        .isInstanceOf(UnavailableException.class)
        .hasMessageContaining(text.toString());
    assertThatThrownBy(() -> TvmRuntime.examine(temp.resolve("none.so")))
        .isInstanceOf(UnavailableException.class)
        .hasMessageContaining("No such file");
  }

  @Test
  void aProcessHasOne() {
    Standin.runtime();
    Path other = Standin.build("tvm-other", TvmRuntime.FILE, "tvm.c");
    assertThatThrownBy(() -> TvmRuntime.load(other))
        .isInstanceOf(UnavailableException.class)
        .hasMessageContaining("this process has loaded " + Standin.tvm())
        .hasMessageContaining("cannot load " + other);
  }
}
