package io.moe4j.backend.marlin;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.DType;
import io.moe4j.cuda.tuning.TunedTable;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.function.Function;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Which entry serves which forward, and what a layer makes of a file; no card is needed. */
class TunedPlansTest {
  private static final DeviceInfo H200 = DeviceInfo.cuda(0, "NVIDIA H200", 9, 0);
  private static final QuantScheme INT4 = QuantScheme.int4(128);
  private static final MoeConfig CONFIG =
      MoeConfig.builder(2048, 768, 128, 8)
          .inputDtype(DType.BF16)
          .weightDtype(DType.BF16)
          .quantScheme(INT4)
          .build();
  private static final PlanEntry WIDE =
      new PlanEntry(64, 0, 0, MarlinKernels.WIDE, 32, 1, 2, 16, 12.34, 15);
  private static final PlanEntry NARROW =
      new PlanEntry(64, 8, 16, MarlinKernels.NARROW, 16, 4, 2, 8, 100, 110.5);

  @TempDir private Path directory;
  private Path file;

  @BeforeEach
  void name() {
    file = directory.resolve("deep").resolve("plans.json");
    System.setProperty(MarlinProperties.PLANS, file.toString());
  }

  @AfterEach
  void clear() {
    System.clearProperty(MarlinProperties.PLANS);
  }

  private static TunedTable.Key key() {
    return MarlinTuning.key(CONFIG, H200, 128);
  }

  private static MarlinPlan.Problem forward(int tokens, int rank) {
    return MarlinPlanTest.problem(INT4, 9, PlanSearchTest.QWEN3, tokens, rank, false);
  }

  private static MarlinPlan choose(int tokens, int rank, PlanEntry... entries) {
    return new TunedPlans(new TunedTable<>(key(), List.of(entries)).entries())
        .apply(forward(tokens, rank));
  }

  private static MarlinPlan builtIn(int tokens, int rank) {
    return MarlinPlan.choose(forward(tokens, rank));
  }

  @Test
  void theNearestEntryServes() {
    for (int tokens : new int[] {32, 64, 128}) {
      MarlinPlan plan = choose(tokens, 0, WIDE, NARROW);
      assertThat(plan.text()).isEqualTo("wide 32 rows, shared by 1 + 2, groups of 16");
      MarlinPlanTest.check(forward(tokens, 0), plan);
    }
    // Four adapters in the problem: within a factor of two of eight.
    assertThat(choose(64, 16, WIDE, NARROW).text())
        .isEqualTo("narrow 16 rows, shared by 4 + 2, groups of 8");
    assertThat(choose(31, 0, WIDE)).isEqualTo(builtIn(31, 0));
    assertThat(choose(129, 0, WIDE)).isEqualTo(builtIn(129, 0));
    assertThat(choose(64, 64, WIDE, NARROW)).isEqualTo(builtIn(64, 64));
  }

  /** Those of {@code GpuTunedPlansTest}, which sees results only. */
  @Test
  void whatTheTestOnACardForcesIsUsed() {
    int[] layer = {8, 4, 512, 256};
    for (int tokens : new int[] {40, 200}) {
      MarlinPlan.Problem p = MarlinPlanTest.problem(INT4, 9, layer, tokens, 32, false);
      List<PlanEntry> forced =
          List.of(
              new PlanEntry(tokens, 4, 32, MarlinKernels.NARROW, 16, 2, 4, 8, 1, 2),
              new PlanEntry(tokens, 4, 32, MarlinKernels.NARROW, 8, 1, 8, 8, 1, 2),
              new PlanEntry(tokens, 4, 32, MarlinKernels.WIDE, 32, 2, 1, 4, 1, 2),
              new PlanEntry(tokens, 4, 32, MarlinKernels.WIDE, 64, 1, 1, 1, 1, 2));
      for (PlanEntry e : forced) {
        assertThat(new TunedPlans(List.of(e)).apply(p).text())
            .as("T=%d", tokens)
            .isEqualTo(
                "%s %d rows, shared by %d + %d, groups of %d"
                    .formatted(e.kind(), e.rows(), e.warps13(), e.warps2(), e.groupTiles()));
      }
    }
  }

  /** One token is never sorted, so nothing that was measured on sorted pairs is for it. */
  @Test
  void singlePairsAreServedByTheirOwn() {
    PlanEntry one = new PlanEntry(1, 0, 0, MarlinKernels.NARROW, 16, 8, 8, 8, 1, 2);
    assertThat(choose(1, 0, one).first().warps()).isEqualTo(8);
    assertThat(choose(1, 0, one).naive()).isTrue();
    PlanEntry four = new PlanEntry(4, 0, 0, MarlinKernels.NARROW, 16, 8, 8, 8, 1, 2);
    assertThat(forward(4, 0).naive()).isTrue();
    assertThat(forward(5, 0).naive()).isFalse();
    assertThat(choose(5, 0, four)).isEqualTo(builtIn(5, 0));
  }

  /** The built-in rules follow the sizes closer than the entry that confirms them. */
  @Test
  void whereTheBuiltInChoiceWasBestItIsAsked() {
    PlanEntry confirmed = PlanEntry.of(forward(64, 0), builtIn(64, 0), 1, 1);
    assertThat(builtIn(128, 0)).isNotEqualTo(builtIn(64, 0));
    assertThat(choose(128, 0, confirmed)).isEqualTo(builtIn(128, 0));
  }

  /** What the search can find can be written and used: there and back. */
  @Test
  void everyPlanOfASearchServes() throws Exception {
    for (int tokens : new int[] {1, 3, 64, 1024}) {
      for (int rank : new int[] {0, 16}) {
        MarlinPlan.Problem p = forward(tokens, rank);
        for (MarlinPlan plan : PlanSearchTest.all(p)) {
          assertThat(choose(tokens, rank, PlanEntry.of(p, plan, 1, 2))).isEqualTo(plan);
        }
      }
    }
  }

  /** Whatever a file says: only plans that the jar has kernels for, and that fit the layer. */
  @Test
  void entriesWithoutKernelsAreIgnored() {
    for (PlanEntry bad :
        List.of(
            new PlanEntry(64, 0, 0, "tall", 32, 1, 1, 8, 1, 2),
            new PlanEntry(64, 0, 0, MarlinKernels.WIDE, 48, 1, 1, 8, 1, 2),
            new PlanEntry(64, 0, 0, MarlinKernels.WIDE, 64, 2, 1, 8, 1, 2),
            new PlanEntry(64, 0, 0, MarlinKernels.WIDE, 32, 4, 1, 8, 1, 2),
            new PlanEntry(64, 0, 0, MarlinKernels.NARROW, 32, 1, 1, 8, 1, 2),
            new PlanEntry(64, 0, 0, MarlinKernels.NARROW, 16, 3, 1, 8, 1, 2),
            new PlanEntry(64, 0, 0, MarlinKernels.NARROW, 16, 0, 1, 8, 1, 2),
            new PlanEntry(64, 0, 0, MarlinKernels.NARROW, 16, 1, 16, 8, 1, 2),
            new PlanEntry(64, 0, 0, MarlinKernels.WIDE, 32, 1, 1, 0, 1, 2),
            new PlanEntry(64, 0, 0, MarlinKernels.WIDE, 32, 1, 1, 1 << 20, 1, 2),
            new PlanEntry(64, 0, 16, MarlinKernels.WIDE, 32, 1, 1, 8, 1, 2),
            new PlanEntry(1 << 24, 0, 0, MarlinKernels.WIDE, 32, 1, 1, 8, 1, 2))) {
      assertThat(choose(64, 0, bad)).as("%s", bad).isEqualTo(builtIn(64, 0));
    }
    // A card without wide kernels never gets one.
    MarlinPlan.Problem ampere = MarlinPlanTest.problem(INT4, 8, PlanSearchTest.QWEN3, 64, 0, false);
    assertThat(new TunedPlans(List.of(WIDE)).apply(ampere)).isEqualTo(MarlinPlan.choose(ampere));
  }

  @Test
  void whatIsWrittenIsReadByALayerOfTheSameKind() throws Exception {
    MarlinTuning.FILE.merge(file, new TunedTable<>(key(), List.of(WIDE)));
    MarlinTuning.FILE.merge(file, new TunedTable<>(key(), List.of(NARROW)));
    assertThat(MarlinTuning.FILE.read(file).orElseThrow())
        .containsExactly(new TunedTable<>(key(), List.of(WIDE, NARROW)));
    assertThat(MarlinTuning.forLayer(CONFIG, H200, 128).apply(forward(64, 0)).first().kind())
        .isEqualTo(MarlinKernels.WIDE);
    for (MoeConfig other :
        List.of(
            CONFIG.toBuilder().quantScheme(QuantScheme.int4(32)).build(),
            CONFIG.toBuilder().quantSchemes(List.of(INT4), List.of(QuantScheme.int8(128))).build(),
            CONFIG.toBuilder().inputDtype(DType.F16).weightDtype(DType.F16).build())) {
      assertThat(MarlinTuning.forLayer(other, H200, 128).apply(forward(64, 0)))
          .isEqualTo(builtIn(64, 0));
    }
    assertThat(MarlinTuning.forLayer(CONFIG, H200, 64).apply(forward(64, 0)))
        .isEqualTo(builtIn(64, 0));
    assertThat(new MarlinBackend().tuningFile()).hasValue(file);
    assertThat(new MarlinBackend().tuningStatus(H200).explanation())
        .isEqualTo("2 of 2 entries apply to NVIDIA H200");
    assertThat(new MarlinBackend().tuningStatus(DeviceInfo.cuda(0, "L4", 8, 9)).applying())
        .isZero();
    System.setProperty(MarlinProperties.PLANS, "off");
    assertThat(new MarlinBackend().tuningFile()).isEmpty();
    assertThat(new MarlinBackend().tuningStatus(H200).explanation())
        .isEqualTo("turned off by moe4j.marlin.plans");
  }

  /** Bytes changed anywhere: the built-in choice, or plans that fit; never an exception. */
  @Test
  void changedBytesNeverHurt() throws Exception {
    MarlinTuning.FILE.merge(file, new TunedTable<>(key(), List.of(WIDE, NARROW)));
    byte[] good = Files.readAllBytes(file);
    Random random = new Random(20261130);
    for (int i = 0; i < 400; i++) {
      byte[] bad = good.clone();
      for (int n = random.nextInt(1, 4); n > 0; n--) {
        String digits = "0123456789-\"{}[],x";
        bad[random.nextInt(bad.length)] =
            random.nextBoolean()
                ? (byte) random.nextInt()
                : (byte) digits.charAt(random.nextInt(digits.length()));
      }
      Files.delete(file);
      Files.write(file, i % 7 == 0 ? Arrays.copyOf(bad, random.nextInt(bad.length)) : bad);
      Function<MarlinPlan.Problem, MarlinPlan> choice = MarlinTuning.forLayer(CONFIG, H200, 128);
      for (MarlinPlan.Problem p : List.of(forward(64, 0), forward(64, 16))) {
        MarlinPlanTest.check(p, choice.apply(p));
      }
    }
  }
}
