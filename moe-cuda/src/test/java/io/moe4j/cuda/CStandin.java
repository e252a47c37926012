package io.moe4j.cuda;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.ConcurrentHashMap;

/**
 * Libraries of {@code src/test/resources/standin} that stand in for one that only machines with a
 * card have, compiled by this machine's C compiler when first asked for. Tests that need one are
 * skipped where there is no compiler. To be used from a module's directory, as Maven runs tests.
 */
public final class CStandin {
  private static final Path OUTPUT = Path.of("target/standin").toAbsolutePath();
  private static final Optional<String> COMPILER = compiler();

  private final String what;
  private final Map<String, Path> built = new ConcurrentHashMap<>();

  /**
   * @param what it stands in for, as the reason for skipping says it
   */
  public CStandin(String what) {
    this.what = what;
  }

  private static Optional<String> compiler() {
    String path = System.getenv().getOrDefault("PATH", "");
    for (String name : List.of("gcc", "cc", "clang")) {
      for (String directory : path.split(":")) {
        if (Files.isExecutable(Path.of(directory.isEmpty() ? "." : directory, name))) {
          return Optional.of(name);
        }
      }
    }
    return Optional.empty();
  }

  /** {@return where the sources are} */
  public Path sources() {
    return Path.of("src/test/resources/standin").toAbsolutePath();
  }

  /** Skips the test, with the reason, where nothing can be compiled. */
  public void assumeCompiler() {
    assumeTrue(
        COMPILER.isPresent() && System.getProperty("os.name", "").equals("Linux"),
        "the stand-in for "
            + what
            + " needs Linux and a C compiler (gcc, cc or clang) on the PATH");
  }

  /**
   * Compiles a library, once for each folder.
   *
   * @param folder where it goes, under the build's output
   * @param file its name
   * @param source of it
   * @param options like {@code -DVERSION=22105}
   * @return the library
   */
  public Path build(String folder, String file, String source, String... options) {
    assumeCompiler();
    return built.computeIfAbsent(folder + "/" + file, name -> compile(name, source, options));
  }

  private Path compile(String name, String source, String... options) {
    try {
      Path target = OUTPUT.resolve(name);
      Files.createDirectories(target.getParent());
      List<String> command =
          new ArrayList<>(
              List.of(
                  COMPILER.orElseThrow(),
                  "-std=gnu11",
                  "-shared",
                  "-fPIC",
                  "-O2",
                  "-fvisibility=hidden",
                  "-o",
                  target.toString()));
      command.addAll(List.of(options));
      command.add(sources().resolve(source).toString());
      command.addAll(List.of("-lm", "-ldl", "-lpthread"));
      Process compiler = new ProcessBuilder(command).redirectErrorStream(true).start();
      String words = new String(compiler.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
      assertThat(compiler.waitFor()).as("%s: %s", command, words).isZero();
      return target;
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    } catch (InterruptedException e) {
      throw new IllegalStateException(e);
    }
  }
}
