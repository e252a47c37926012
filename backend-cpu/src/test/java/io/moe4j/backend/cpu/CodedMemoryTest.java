package io.moe4j.backend.cpu;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.ExpertWeights.Expert;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** A quantised layer takes the memory of its codes, not that of what they stand for. */
class CodedMemoryTest {
  /** 2 GiB of codes and scales; a tenth of that where the machine has little memory to spare. */
  private static final int EXPERTS = availableBytes() > 6L << 30 ? 648 : 64;

  private static final int HIDDEN = 2048;
  private static final int INTERMEDIATE = 1024;
  private static final QuantScheme SCHEME = QuantScheme.int4(128);
  private static final long SLACK = 64 << 20;

  @TempDir private Path folder = Path.of("");

  /** In BF16 the same weights would take four times as much. */
  @ParameterizedTest
  @EnumSource(
      value = CpuExpertsTest.Path.class,
      names = {"VECTOR", "AVX2", "AVX512", "AMX"})
  void aLayerTakesItsCodesAndLittleMore(CpuExpertsTest.Path path) throws IOException {
    assumeTrue(Files.isReadable(Path.of("/proc/self/status")), "no /proc");
    Mlps mlps = path.with(new ThreadTeam(2));
    try (Arena arena = Arena.ofShared()) {
      ExpertWeights weights = weights(mapped(arena));
      long bytes =
          weights.experts().stream()
              .flatMap(e -> Stream.of(requireNonNull(e.gate()), e.up(), e.down()))
              .mapToLong(Weight::byteSize)
              .sum();
      long before = resident();
      MoeConfig config =
          MoeConfig.builder(HIDDEN, INTERMEDIATE, EXPERTS, 8).quantScheme(SCHEME).build();
      CpuExperts experts = new CpuExperts(config, weights, mlps);
      int tokens = 2;
      Tensor hidden = Tensor.of(DType.F32, arena.allocate(4L * tokens * HIDDEN), tokens, HIDDEN);
      Tensor output = Tensor.of(DType.F32, arena.allocate(4L * tokens * HIDDEN), tokens, HIDDEN);
      int[] ids = new int[tokens * 8];
      for (int i = 0; i < ids.length; i++) {
        ids[i] = 5 * i % EXPERTS;
      }
      experts.apply(
          ExpertsInputs.standard(
              hidden,
              new ExpertRouting(
                  Samples.ints(arena, ids, tokens, 8),
                  Tensor.of(DType.F32, arena.allocate(4L * tokens * 8), tokens, 8),
                  null),
              output),
          null,
          new Workspace(new HostMemory(arena.allocate(experts.workspaceBytes(tokens), 64))),
          DeviceStream.HOST);
      long taken = resident() - before;
      experts.close();
      assertThat(taken).as("bytes for %s of codes", bytes).isLessThan(bytes + SLACK);
    }
  }

  /** Who asks what a layer would take gives weights that have sizes and one row of zeros. */
  @ParameterizedTest
  @EnumSource(
      value = CpuExpertsTest.Path.class,
      names = {"VECTOR", "AVX2", "AVX512", "AMX"})
  void weightsWithoutContentsTakeNothing(CpuExpertsTest.Path path) throws IOException {
    assumeTrue(Files.isReadable(Path.of("/proc/self/status")), "no /proc");
    Mlps mlps = path.with(new ThreadTeam(2));
    MoeConfig config =
        MoeConfig.builder(HIDDEN, INTERMEDIATE, 64, 8).weightDtype(DType.BF16).build();
    try (Arena arena = Arena.ofShared()) {
      HostMemory row = new HostMemory(arena.allocate(2L * HIDDEN, 64));
      Tensor up =
          Tensor.strided(DType.BF16, row, 0, new long[] {INTERMEDIATE, HIDDEN}, new long[] {0, 1});
      Tensor down =
          Tensor.strided(DType.BF16, row, 0, new long[] {HIDDEN, INTERMEDIATE}, new long[] {0, 1});
      ExpertWeights weights =
          new ExpertWeights(Collections.nCopies(64, Expert.plain(up, up, down)));
      long before = resident();
      try (CpuExperts experts = new CpuExperts(config, weights, mlps)) {
        assertThat(experts.workspaceBytes(4)).isPositive();
        assertThat(resident() - before)
            .as("bytes for %s of weights", 64L * 3 * 2 * HIDDEN * INTERMEDIATE)
            .isLessThan(SLACK);
      }
    }
  }

  private MemorySegment mapped(Arena arena) throws IOException {
    Path file = folder.resolve("layer");
    long codes = (long) HIDDEN * INTERMEDIATE / 2;
    long scales = (long) HIDDEN * INTERMEDIATE / 128 * 2;
    long bytes = EXPERTS * 3 * (codes + scales);
    try (FileChannel c =
        FileChannel.open(
            file,
            StandardOpenOption.CREATE,
            StandardOpenOption.READ,
            StandardOpenOption.WRITE,
            StandardOpenOption.SPARSE)) {
      c.write(java.nio.ByteBuffer.allocate(1), bytes - 1);
      return c.map(FileChannel.MapMode.READ_ONLY, 0, bytes, arena);
    }
  }

  private static ExpertWeights weights(MemorySegment file) {
    List<Expert> experts = new ArrayList<>();
    long at = 0;
    for (int e = 0; e < EXPERTS; e++) {
      Weight[] w = new Weight[3];
      for (int p = 0; p < 3; p++) {
        long out = p == 2 ? HIDDEN : INTERMEDIATE;
        long in = p == 2 ? INTERMEDIATE : HIDDEN;
        long codes = out * in / 2;
        long scales = out * in / 128 * 2;
        w[p] =
            Weight.builder(
                    "w" + p,
                    SCHEME,
                    out,
                    in,
                    Tensor.of(DType.I32, file.asSlice(at, codes), out, in / 8),
                    Packing.WORDS_ALONG_IN)
                .scales(Tensor.of(DType.BF16, file.asSlice(at + codes, scales), out, in / 128))
                .build();
        at += codes + scales;
      }
      experts.add(Expert.of(w[0], w[1], w[2]));
    }
    return new ExpertWeights(experts);
  }

  /** Resident bytes of this process, files that it has mapped included. */
  private static long resident() throws IOException {
    System.gc();
    return bytes(Path.of("/proc/self/status"), "VmRSS:");
  }

  private static long availableBytes() {
    try {
      return bytes(Path.of("/proc/meminfo"), "MemAvailable:");
    } catch (IOException e) {
      return 0; // another system, where the test is skipped
    }
  }

  private static long bytes(Path file, String name) throws IOException {
    try (Stream<String> lines = Files.lines(file)) {
      return lines
          .filter(line -> line.startsWith(name))
          .mapToLong(line -> Long.parseLong(line.replaceAll("\\D", "")) << 10)
          .findFirst()
          .orElseThrow();
    }
  }
}
