package io.moe4j.backend.cpu.ffi;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * The C kernels under AddressSanitizer and UndefinedBehaviorSanitizer, against double, with every
 * instruction set that the machine has, and tiles in plain C where it has AVX-512 BF16 without AMX.
 * Needs gcc with its sanitizers; skipped without. Those for aarch64 run under qemu-user, where that
 * and a cross compiler are.
 */
class SanitizedKernelsTest {
  private static final Path SOURCES = Path.of("src/main/c");
  private static final List<String> SANITIZE =
      List.of(
          "-std=gnu11",
          "-O1",
          "-ffp-contract=fast",
          "-fsanitize=address,undefined",
          "-fno-sanitize-recover=all",
          "-fno-omit-frame-pointer",
          // Ten times as fast to compile as with everything in one function.
          "-DINLINE=static inline");
  private static final List<String> AVX512 =
      List.of("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c");

  /** What the test prints where no product had rows of int8. */
  private static final String NO_INT8 = ", 0 of them with rows of int8";

  @TempDir private Path out;

  @Test
  void nothingIsReadOrWrittenOutsideAndEveryResultIsRight() throws Exception {
    assumeTrue(
        System.getProperty("os.arch", "").equals("amd64") && works("gcc", "--version"),
        "needs gcc on x86-64");
    Path probe = Files.writeString(out.resolve("probe.c"), "int main(void) { return 0; }\n");
    assumeTrue(
        works("gcc", "-fsanitize=address,undefined", probe.toString(), "-o", out + "/probe")
            && works(out + "/probe"),
        "gcc has no sanitizers that run here");
    List<String> bf16 = new ArrayList<>(AVX512);
    bf16.add("-mavx512bf16");
    List<String> vnni = new ArrayList<>(AVX512);
    vnni.add("-mavx512vnni");
    List<String> amx = new ArrayList<>(bf16);
    List<String> test = new ArrayList<>(List.of("-mf16c", "-I" + SOURCES));
    // The C library's own memcpy, which the sanitizers watch.
    List<String> moe = new ArrayList<>(List.of("-Dmemcpy=moe_memcpy", "-Dmemset=moe_memset"));
    boolean tilesInC = !Files.readString(Path.of("/proc/cpuinfo")).contains("amx_bf16");
    if (tilesInC) {
      amx.addAll(List.of("-Isrc/test/c", "-DMOE_TILES=\"tiles_in_c.h\""));
      moe.add("-DMOE_TILES");
      test.add("-DMOE_TILES");
    } else {
      amx.addAll(List.of("-mamx-tile", "-mamx-bf16", "-mamx-int8"));
    }
    together(
        List.of(
            compile("avx512bf16.c", bf16),
            compile("amx.c", amx),
            compile("vnni.c", vnni),
            compile("avx512.c", AVX512),
            compile("avx2.c", List.of("-mavx2", "-mfma", "-mf16c")),
            compile("moe.c", moe),
            compile(Path.of("src/test/c/kernels_test.c"), test)));
    List<String> link = new ArrayList<>(List.of("gcc"));
    link.addAll(SANITIZE);
    for (String name : List.of("kernels_test", "moe", "avx2", "avx512", "avx512bf16", "vnni", "amx")) {
      link.add(out.resolve(name + ".c.o").toString());
    }
    link.addAll(List.of("-lm", "-o", out + "/kernels_test"));
    run(link);
    List<List<String>> sets = new ArrayList<>();
    for (int isa = 1; isa <= 4; isa++) {
      sets.add(List.of(out + "/kernels_test", String.valueOf(isa)));
    }
    // Tiles in C take longest, so they begin first.
    for (String text : together(sets.reversed())) {
      assertThat(text).isNotBlank();
      if (tilesInC && text.startsWith("amx (tiles in C)")) {
        assertThat(text).doesNotContain(NO_INT8);
      }
      System.out.print(text);
    }
  }

  @Test
  void kernelsOfAarch64AreRightUnderQemu() throws Exception {
    String gcc = "aarch64-linux-gnu-gcc";
    assumeTrue(
        works(gcc, "--version") && works("qemu-aarch64", "--version"),
        "needs " + gcc + " and qemu-aarch64");
    List<List<String>> compile = new ArrayList<>();
    List<String> link = new ArrayList<>(List.of(gcc));
    for (String name : List.of("kernels_test.c", "moe.c", "neon.c", "neonbf16.c", "neoni8mm.c")) {
      String object = out.resolve(name + ".o").toString();
      List<String> command =
          new ArrayList<>(List.of(gcc, "-std=gnu11", "-O2", "-ffp-contract=fast"));
      switch (name) {
        case "neonbf16.c" -> command.add("-march=armv8.2-a+bf16");
        case "neoni8mm.c" -> command.add("-march=armv8.2-a+i8mm");
        default -> {}
      }
      command.addAll(List.of("-Dmemcpy=moe_memcpy", "-Dmemset=moe_memset", "-I" + SOURCES));
      Path source = (name.equals("kernels_test.c") ? Path.of("src/test/c") : SOURCES).resolve(name);
      command.addAll(List.of("-c", source.toString(), "-o", object));
      compile.add(command);
      link.add(object);
    }
    together(compile);
    String program = out + "/kernels_test_arm";
    link.addAll(List.of("-static", "-lm", "-o", program));
    run(link);
    List<String> texts =
        together(
            List.of(
                List.of("qemu-aarch64", "-cpu", "max", program, "5"),
                List.of("qemu-aarch64", "-cpu", "max", program, "6"),
                // Neither BF16 nor I8MM: neither is chosen, and only codes are computed otherwise.
                List.of("qemu-aarch64", "-cpu", "cortex-a57", program, "0", "codes")));
    assertThat(texts.get(0)).startsWith("neon: ").doesNotContain(NO_INT8);
    assertThat(texts.get(1)).startsWith("neonbf16: ").doesNotContain(NO_INT8, "skipped");
    assertThat(texts.get(2)).contains(NO_INT8, "neonbf16: skipped");
    texts.forEach(System.out::print);
  }

  private List<String> compile(String name, List<String> options) {
    return compile(SOURCES.resolve(name), options);
  }

  private List<String> compile(Path source, List<String> options) {
    List<String> command = new ArrayList<>(List.of("gcc"));
    command.addAll(SANITIZE);
    command.addAll(options);
    Path object = out.resolve(source.getFileName() + ".o");
    command.addAll(List.of("-c", source.toString(), "-o", object.toString()));
    return command;
  }

  /** As many at a time as there are processors: this is what takes longest in the build. */
  private List<String> together(List<List<String>> commands) throws Exception {
    try (var pool = Executors.newFixedThreadPool(Runtime.getRuntime().availableProcessors())) {
      List<Future<String>> started = new ArrayList<>();
      for (List<String> command : commands) {
        started.add(pool.submit(() -> run(command)));
      }
      List<String> texts = new ArrayList<>();
      for (Future<String> f : started) {
        texts.add(f.get());
      }
      return texts;
    }
  }

  private String run(List<String> command) throws Exception {
    File log = Files.createTempFile(out, "run", ".log").toFile();
    Process p = new ProcessBuilder(command).redirectErrorStream(true).redirectOutput(log).start();
    assertThat(p.waitFor(20, TimeUnit.MINUTES)).isTrue();
    String text = Files.readString(log.toPath());
    assertThat(p.exitValue()).as("%s%n%s", String.join(" ", command), text).isZero();
    return text;
  }

  private static boolean works(String... command) throws InterruptedException {
    try {
      Process p =
          new ProcessBuilder(command)
              .redirectErrorStream(true)
              .redirectOutput(ProcessBuilder.Redirect.DISCARD)
              .start();
      return p.waitFor() == 0;
    } catch (IOException e) {
      return false;
    }
  }
}
