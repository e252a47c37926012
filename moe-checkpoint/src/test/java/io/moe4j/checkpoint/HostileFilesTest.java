package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.fail;
import static org.junit.jupiter.api.Assertions.assertTimeoutPreemptively;

import com.sun.management.ThreadMXBean;
import io.moe4j.api.AdapterException;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.MoeException;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.HashSet;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.stream.Stream;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.DynamicContainer;
import org.junit.jupiter.api.DynamicNode;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.api.io.TempDir;

/**
 * Malformed checkpoints, adapters and configs give documented exceptions with a readable message,
 * quickly and without large allocations.
 */
@NullUnmarked
class HostileFilesTest {
  /** Of a processor, not of a clock: other work on the machine does not count. */
  private static final long MAX_CPU_NANOS = 20_000_000_000L;

  /** For what never ends. */
  private static final Duration HANG = Duration.ofMinutes(4);

  /**
   * No input may take 1 GiB of heap. This counts what is allocated, not what is alive at a time;
   * the most is taken by objects for 131,072 experts, which a file may have.
   */
  private static final long MAX_ALLOCATED = 512L << 20;

  private static final ThreadMXBean THREADS = (ThreadMXBean) ManagementFactory.getThreadMXBean();

  @TempDir Path dir;

  @TestFactory
  Stream<DynamicNode> everyCaseIsRefusedInWords() throws IOException {
    List<HostileCases.Case> cases = HostileCases.all();
    Set<String> names = new HashSet<>();
    cases.forEach(c -> assertThat(names.add(c.name())).as(c.name()).isTrue());
    assertThat(cases).hasSizeGreaterThanOrEqualTo(200);
    System.out.println("hostile files: " + cases.size() + " hand-made cases");
    Path root = Files.createTempDirectory("hostile");
    return Stream.of(
        DynamicContainer.dynamicContainer(
            cases.size() + " distinct cases",
            cases.stream().map(c -> DynamicTest.dynamicTest(c.name(), () -> refused(c, root)))));
  }

  private static void refused(HostileCases.Case c, Path root) throws IOException {
    Path at = Files.createTempDirectory(root, "case");
    MoeException e =
        assertTimeoutPreemptively(
            HANG,
            () -> {
              long before = THREADS.getCurrentThreadAllocatedBytes();
              long cpu = THREADS.getCurrentThreadCpuTime();
              try {
                c.attempt().run(at);
              } catch (CheckpointException | AdapterException expected) {
                long allocated = THREADS.getCurrentThreadAllocatedBytes() - before;
                assertThat(allocated).as("bytes allocated").isLessThan(MAX_ALLOCATED);
                assertThat(THREADS.getCurrentThreadCpuTime() - cpu)
                    .as("nanoseconds of a processor")
                    .isLessThan(MAX_CPU_NANOS);
                return expected;
              }
              return fail("accepted");
            });
    assertThat(e.getMessage())
        .isNotBlank()
        .doesNotContain("\u0000")
        .hasSizeLessThan(4000)
        .as("names the file or folder")
        .contains(at.toString());
    try (Stream<Path> left = Files.walk(at)) {
      for (Path p : left.sorted(java.util.Comparator.reverseOrder()).toList()) {
        Files.delete(p);
      }
    }
  }

  /** Random damage to valid files: either the file still opens, or a documented exception. */
  @Test
  void damageAtRandomPlacesNeverEndsOtherwise() throws IOException {
    byte[] adapter = HostileCases.validFile();
    byte[] config =
        Files.readAllBytes(Fixtures.adapter("qwen3_moe", "a_2d").resolve("adapter_config.json"));
    Files.write(dir.resolve("adapter_config.json"), config);
    Files.write(dir.resolve("adapter_model.safetensors"), adapter);
    assertThat(
            PeftAdapter.load(dir, "x", HostileAdapters.model(), AdapterPolicy.DEFAULT)
                .report()
                .accepted())
        .as("undamaged")
        .isTrue();
    int refused = 0;
    for (int seed = 0; seed < 600; seed++) {
      Random random = new Random(seed);
      boolean damageConfig = seed % 3 == 0;
      byte[] bytes = (damageConfig ? config : adapter).clone();
      // Mostly in the header, where the structure is.
      int reach =
          damageConfig ? bytes.length : 8 + (random.nextInt(4) == 0 ? bytes.length - 8 : 280);
      for (int n = 1 + random.nextInt(3); n > 0; n--) {
        bytes[random.nextInt(Math.min(reach, bytes.length))] = (byte) random.nextInt(256);
      }
      Files.write(dir.resolve("adapter_config.json"), damageConfig ? bytes : config);
      Files.write(dir.resolve("adapter_model.safetensors"), damageConfig ? adapter : bytes);
      boolean wasRefused =
          assertTimeoutPreemptively(
              HANG,
              () -> {
                try {
                  PeftAdapter.load(dir, "x", HostileAdapters.model(), AdapterPolicy.DEFAULT);
                  return false;
                } catch (CheckpointException | AdapterException e) {
                  return true;
                }
              });
      refused += wasRefused ? 1 : 0;
    }
    System.out.println("hostile files: " + refused + " of 600 randomly damaged ones refused");
    assertThat(refused).isGreaterThan(200);
  }
}
