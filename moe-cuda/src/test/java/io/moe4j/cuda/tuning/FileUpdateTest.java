package io.moe4j.cuda.tuning;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIOException;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Writers at once lose nothing, and nothing that lies about is written over. */
class FileUpdateTest {
  private static final int WRITERS = 4;
  private static final int LINES = 25;

  @TempDir private Path directory;

  private static byte[] with(Path file, String line) throws IOException {
    String before = FileUpdate.read(file, 1 << 20).map(b -> new String(b, UTF_8)).orElse("");
    return (before + line + "\n").getBytes(UTF_8);
  }

  /** A writer in a process of its own. */
  static final class Writer {
    private Writer() {}

    public static void main(String[] args) throws IOException {
      write(Path.of(args[0]), args[1]);
    }

    static void write(Path file, String name) throws IOException {
      for (int i = 0; i < LINES; i++) {
        String line = name + i;
        FileUpdate.run(file, target -> with(target, line));
      }
    }
  }

  private static String[] expected() {
    return IntStream.range(0, WRITERS)
        .boxed()
        .flatMap(w -> IntStream.range(0, LINES).mapToObj(i -> w + "-" + i))
        .toArray(String[]::new);
  }

  @Test
  void threadsLoseNothing() throws Exception {
    Path file = directory.resolve("deep").resolve("file");
    try (ExecutorService threads = Executors.newFixedThreadPool(WRITERS)) {
      List<Future<?>> all = new ArrayList<>();
      for (int w = 0; w < WRITERS; w++) {
        String name = w + "-";
        all.add(
            threads.submit(() -> {
              Writer.write(file, name);
              return name;
            }));
      }
      for (Future<?> f : all) {
        f.get();
      }
    }
    assertThat(Files.readAllLines(file)).containsExactlyInAnyOrder(expected());
  }

  @Test
  void processesLoseNothing() throws Exception {
    Path file = directory.resolve("file");
    List<Process> all = new ArrayList<>();
    for (int w = 0; w < WRITERS; w++) {
      all.add(
          new ProcessBuilder(
                  Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                  "-XX:TieredStopAtLevel=1",
                  "-cp",
                  System.getProperty("java.class.path"),
                  Writer.class.getName(),
                  file.toString(),
                  w + "-")
              .inheritIO()
              .start());
    }
    for (Process p : all) {
      assertThat(p.waitFor()).isZero();
    }
    assertThat(Files.readAllLines(file)).containsExactlyInAnyOrder(expected());
    try (Stream<Path> files = Files.list(directory)) {
      assertThat(files).containsExactlyInAnyOrder(file, directory.resolve("file.lock"));
    }
  }

  @Test
  void aLinkStaysOneAndAFailedChangeChangesNothing() throws Exception {
    Path real = Files.writeString(directory.resolve("real"), "old\n");
    Path link = Files.createSymbolicLink(directory.resolve("link"), real);
    FileUpdate.run(link, target -> with(target, "new"));
    assertThat(link).isSymbolicLink();
    assertThat(real).hasContent("old\nnew\n");
    assertThatIOException()
        .isThrownBy(() ->
            FileUpdate.run(
                link,
                _ -> {
                  throw new IOException("no");
                }))
        .withMessage("no");
    assertThat(real).hasContent("old\nnew\n");
  }

  /** A lock that cannot be had, like another user's, is no reason not to write. */
  @Test
  void withoutALockItIsWrittenAllTheSame() throws Exception {
    Path file = directory.resolve("file");
    Files.createDirectory(directory.resolve("file.lock"));
    FileUpdate.run(file, target -> with(target, "a"));
    assertThat(file).hasContent("a\n");
    assertThat(PosixFilePermissions.toString(Files.getPosixFilePermissions(file)))
        .as("the user's usual permissions, like those of any file")
        .isEqualTo(
            PosixFilePermissions.toString(
                Files.getPosixFilePermissions(Files.writeString(directory.resolve("any"), "a"))));
  }

  @Test
  void whatIsReadIsBounded() throws Exception {
    Path file = directory.resolve("file");
    assertThat(FileUpdate.read(file, 3)).isEmpty();
    Files.writeString(file, "abc");
    assertThat(FileUpdate.read(file, 3)).hasValue("abc".getBytes(UTF_8));
    assertThatIOException()
        .isThrownBy(() -> FileUpdate.read(file, 2))
        .withMessage("is larger than 2 bytes");
    assertThatIOException()
        .isThrownBy(() -> FileUpdate.read(directory, 2))
        .withMessage("is not a regular file");
    assertThatIOException()
        .isThrownBy(() -> FileUpdate.read(Path.of("/dev/zero"), 2))
        .withMessage("is not a regular file");
  }
}
