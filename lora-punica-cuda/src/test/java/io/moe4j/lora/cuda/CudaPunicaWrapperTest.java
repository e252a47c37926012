package io.moe4j.lora.cuda;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaGraph;
import io.moe4j.cuda.GpuTest;
import io.moe4j.lora.DeltaReference;
import io.moe4j.lora.TestTensors;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestInstance;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Against the formulas in double, every path. */
@GpuTest
@TestInstance(TestInstance.Lifecycle.PER_CLASS)
class CudaPunicaWrapperTest {
  /** One problem; {@code hidden} and {@code inter} are the widths, {@code slices} 1 or 2. */
  record Shape(
      int tokens, int topK, int experts, int loras, int hidden, int inter, int rank, int slices) {}

  /** How the problem is stored and asked. */
  record Style(
      DType y,
      DType x,
      DType factors,
      GateUpLayout layout,
      boolean add,
      boolean weights,
      boolean map,
      boolean perPair,
      int padding) {
    static final Style PLAIN =
        new Style(
            DType.BF16, DType.BF16, DType.BF16, GateUpLayout.HALVES, true, false, false, false, 0);
  }

  private static final List<LoraPath> PATHS = List.of(LoraPath.values());

  private Rig rig;
  private Map<LoraPath, CudaPunicaWrapper> wrappers;

  @BeforeAll
  void open() {
    rig = new Rig();
    wrappers = new EnumMap<>(LoraPath.class);
    PATHS.forEach(p -> wrappers.put(p, new CudaPunicaWrapper(rig.device, p)));
  }

  @AfterAll
  void close() {
    if (rig != null) {
      wrappers.values().forEach(CudaPunicaWrapper::close);
      rig.close();
    }
  }

  static List<Shape> grid() {
    List<Shape> shapes = new ArrayList<>();
    for (int slices : new int[] {1, 2}) {
      for (int rank : new int[] {16, 32, 64}) {
        shapes.add(new Shape(100, 6, 64, 4, 128, 88, rank, slices));
      }
      for (int rank : new int[] {128, 256, 512}) {
        shapes.add(new Shape(8, 2, 4, 2, 256, 256, rank, slices));
      }
      for (int rank : new int[] {1, 4, 8}) {
        shapes.add(new Shape(16, 2, 8, 4, 96, 40, rank, slices));
        shapes.add(new Shape(100, 2, 64, 4, 33, 17, rank, slices));
      }
      for (int tokens : new int[] {1, 2, 4, 8}) {
        shapes.add(new Shape(tokens, 1, 128, 8, 256, 176, 32, slices));
        shapes.add(new Shape(tokens, 2, 64, 4, 256, 176, 16, slices));
      }
      // Many rows an adapter, and 32 adapters.
      shapes.add(new Shape(300, 2, 2, 1, 192, 72, 16, slices));
      shapes.add(new Shape(128, 4, 16, 32, 128, 64, 8, slices));
    }
    return shapes;
  }

  @ParameterizedTest
  @MethodSource("grid")
  void agreesWithTheFormulas(Shape s) {
    check(s, Style.PLAIN, 1);
  }

  @Test
  void agreesAtUpstreamsFullWidth() {
    check(new Shape(24, 6, 16, 4, 2048, 1408, 16, 2), Style.PLAIN, 2);
  }

  @ParameterizedTest
  @ValueSource(
      ints = {
        1, 2, 7, 8, 9, 15, 16, 17, 24, 31, 40, 48, 63, 65, 72, 96, 127, 129, 200, 320, 511, 512
      })
  void anyRank(int rank) {
    check(new Shape(20, 2, 4, 3, 64, 48, rank, 2), Style.PLAIN, rank);
  }

  static List<Style> styles() {
    List<Style> all = new ArrayList<>();
    DType[] types = {DType.F32, DType.BF16, DType.F16};
    for (DType y : types) {
      for (DType x : types) {
        for (DType f : types) {
          all.add(new Style(y, x, f, GateUpLayout.HALVES, true, true, false, false, 0));
        }
      }
    }
    for (DType t : new DType[] {DType.BF16, DType.F16}) {
      for (boolean add : new boolean[] {true, false}) {
        all.add(new Style(t, t, t, GateUpLayout.INTERLEAVED, add, true, true, false, 0));
        all.add(new Style(DType.F32, t, t, GateUpLayout.INTERLEAVED, add, false, false, true, 8));
        all.add(new Style(t, t, t, GateUpLayout.HALVES, add, true, true, true, 8));
        all.add(new Style(t, t, t, GateUpLayout.HALVES, add, true, true, true, 3));
      }
    }
    return all;
  }

  @ParameterizedTest
  @MethodSource("styles")
  void everyWayToStoreIt(Style style) {
    check(new Shape(40, 3, 6, 4, 64, 32, 24, 2), style, 7);
  }

  /** Ragged: every slot has a rank of its own, and some lack a target. */
  private static List<@Nullable LoraLayer> slots(SplittableRandom rng, Shape s, Style style) {
    List<@Nullable LoraLayer> out = new ArrayList<>();
    for (int l = 0; l < s.loras; l++) {
      if (l == 3) {
        out.add(null);
        continue;
      }
      int rank = l % 2 == 0 ? s.rank : Math.max(1, s.rank / 2);
      Map<LoraTarget, LoraFactors> f = new EnumMap<>(LoraTarget.class);
      f.put(
          LoraTarget.UP,
          TestTensors.factors(rng, style.factors, s.experts, rank, s.hidden, s.inter));
      if (s.slices == 2 && l != 1) {
        LoraFactors up = f.get(LoraTarget.UP);
        f.put(
            LoraTarget.GATE,
            l == 2
                ? new LoraFactors(
                    up.a(), TestTensors.random(rng, style.factors, s.experts, s.inter, rank))
                : TestTensors.factors(
                    rng, style.factors, s.experts, Math.max(1, rank - 1), s.hidden, s.inter));
      }
      if (l != 5) {
        f.put(
            LoraTarget.DOWN,
            TestTensors.factors(rng, style.factors, s.experts, rank, s.inter, s.hidden));
      }
      out.add(new LoraLayer(f));
    }
    return out;
  }

  private void check(Shape s, Style style, long seed) {
    SplittableRandom rng = new SplittableRandom(seed * 31 + s.hashCode());
    List<@Nullable LoraLayer> slots = slots(rng, s, style);
    int[] mapping = rng.ints(s.tokens, -1, s.loras + 1).toArray(); // one past the slots too
    int global = style.map ? s.experts * 2 : s.experts;
    int[][] ids = new int[s.tokens][];
    for (int t = 0; t < s.tokens; t++) {
      ids[t] = rng.ints(s.topK, -1, global).toArray();
    }
    int[] map = null;
    if (style.map) {
      map = new int[global];
      Arrays.setAll(map, e -> e % 2 == 1 ? e / 2 : -1);
    }
    Tensor weights = TestTensors.random(rng, DType.F32, s.tokens, s.topK);
    double[][] w = new double[s.tokens][];
    Arrays.setAll(w, t -> weights.select(0, t).toDoubles());
    ExpertRouting routing =
        new ExpertRouting(
            rig.upload(
                Tensor.ofInts(
                    Arrays.stream(ids).flatMapToInt(Arrays::stream).toArray(), s.tokens, s.topK)),
            rig.upload(weights),
            map == null ? null : rig.upload(Tensor.ofInts(map, global)));
    Rig.Context context = rig.context(wrappers.get(LoraPath.AUTO), slots, mapping);
    var call = new DeltaReference.Call(slots, mapping, ids, map, s.experts, null, style.add);

    Tensor x =
        TestTensors.random(rng, style.x, style.perPair ? s.tokens * s.topK : s.tokens, s.hidden);
    int columns = s.slices * s.inter;
    Rig.Output y = rig.new Output(rng, style.y, style.padding, s.tokens, s.topK, columns);
    DeltaReference ref = new DeltaReference(y.old(), style.y);
    ref.w13(call, x, s.slices == 2, style.layout, s.inter);
    Tensor there = rig.upload(x);
    run(
        y,
        ref,
        path ->
            wrappers
                .get(path)
                .addLoraW13(
                    PunicaWrapper.W13
                        .of(context, y.tensor, there, routing, s.slices == 2, style.layout)
                        .withAddInputs(style.add),
                    rig.stream));

    Tensor act = TestTensors.random(rng, style.x, s.tokens * s.topK, s.inter);
    var call2 =
        new DeltaReference.Call(
            slots, mapping, ids, map, s.experts, style.weights ? w : null, style.add);
    Rig.Output y2 = rig.new Output(rng, style.y, style.padding, s.tokens, s.topK, s.hidden);
    DeltaReference ref2 = new DeltaReference(y2.old(), style.y);
    ref2.w2(call2, act, s.hidden);
    Tensor act2 = rig.upload(act);
    run(
        y2,
        ref2,
        path ->
            wrappers
                .get(path)
                .addLoraW2(
                    PunicaWrapper.W2
                        .of(context, y2.tensor, act2, routing)
                        .withMulRoutedWeight(style.weights)
                        .withAddInputs(style.add),
                    rig.stream));
  }

  private interface Step {
    void on(LoraPath path);
  }

  /** On every path, twice: the same bits both times. */
  private static void run(Rig.Output y, DeltaReference ref, Step step) {
    for (LoraPath path : PATHS) {
      y.reset();
      step.on(path);
      y.compare(ref, path.text());
      byte[] first = y.download();
      y.reset();
      step.on(path);
      assertThat(Arrays.equals(y.download(), first)).as("%s twice", path.text()).isTrue();
    }
  }

  @ParameterizedTest
  @EnumSource(LoraPath.class)
  void nothingAppliesNothingIsWritten(LoraPath path) {
    SplittableRandom rng = new SplittableRandom(4);
    Shape s = new Shape(48, 2, 4, 3, 64, 32, 16, 2);
    List<@Nullable LoraLayer> slots = slots(rng, s, Style.PLAIN);
    int[] none = new int[s.tokens];
    Arrays.fill(none, -1);
    int[] some = rng.ints(s.tokens, 0, 3).toArray();
    int[] ids = rng.ints(s.tokens * 2L, 0, 4).toArray();
    int[] noIds = new int[s.tokens * 2];
    Arrays.fill(noIds, -1);
    List<@Nullable LoraLayer> empty = Arrays.asList(null, LoraLayer.NONE, null);
    record Case(List<@Nullable LoraLayer> slots, int[] mapping, int[] ids) {}
    for (Case c :
        List.of(
            new Case(slots, none, ids), new Case(empty, some, ids), new Case(slots, some, noIds))) {
      Rig.Context context = rig.context(wrappers.get(path), c.slots, c.mapping);
      ExpertRouting routing =
          new ExpertRouting(
              rig.upload(Tensor.ofInts(c.ids, s.tokens, 2)),
              rig.upload(TestTensors.random(rng, DType.F32, s.tokens, 2)),
              null);
      Rig.Output y = rig.new Output(rng, DType.BF16, 0, s.tokens, 2, 64);
      Tensor x = rig.upload(TestTensors.random(rng, DType.BF16, s.tokens, 64));
      CudaPunicaWrapper w = wrappers.get(path);
      w.addLoraW13(
          PunicaWrapper.W13.of(context, y.tensor, x, routing, true, GateUpLayout.HALVES),
          rig.stream);
      w.addLoraW13(
          PunicaWrapper.W13
              .of(context, y.tensor, x, routing, true, GateUpLayout.HALVES)
              .withAddInputs(false),
          rig.stream);
      Tensor act = rig.upload(TestTensors.random(rng, DType.BF16, s.tokens * 2L, 32));
      w.addLoraW2(
          PunicaWrapper.W2
              .of(context, y.tensor, act, routing)
              .withMulRoutedWeight(true)
              .withAddInputs(false),
          rig.stream);
      assertThat(y.download()).isEqualTo(y.before);
    }
  }

  @ParameterizedTest
  @EnumSource(LoraPath.class)
  void noTokens(LoraPath path) {
    SplittableRandom rng = new SplittableRandom(1);
    Shape s = new Shape(0, 2, 4, 2, 64, 32, 16, 2);
    Rig.Context context = rig.context(wrappers.get(path), slots(rng, s, Style.PLAIN));
    ExpertRouting routing =
        new ExpertRouting(
            rig.upload(Tensor.ofInts(new int[0], 0, 2)),
            rig.upload(Tensor.ofFloats(new float[0], 0, 2)),
            null);
    Rig.Output y = rig.new Output(rng, DType.BF16, 0, 0, 2, 64);
    wrappers
        .get(path)
        .addLoraW13(
            PunicaWrapper.W13.of(
                context,
                y.tensor,
                rig.upload(TestTensors.random(rng, DType.BF16, 0, 64)),
                routing,
                true,
                GateUpLayout.HALVES),
            rig.stream);
    assertThat(y.download()).isEqualTo(y.before);
  }

  @ParameterizedTest
  @ValueSource(ints = {5, 200})
  void factorsSharedByAllExperts(int tokens) {
    SplittableRandom rng = new SplittableRandom(5);
    int experts = 6;
    Tensor a = TestTensors.random(rng, DType.BF16, 1, 8, 64);
    Tensor b = TestTensors.random(rng, DType.BF16, experts, 40, 8);
    Tensor sharedB = TestTensors.random(rng, DType.BF16, 1, 64, 24);
    Tensor strideZero = TestTensors.random(rng, DType.BF16, 24, 40).expand(experts);
    LoraLayer mixed =
        new LoraLayer(
            Map.of(
                LoraTarget.UP,
                new LoraFactors(a, b),
                LoraTarget.DOWN,
                new LoraFactors(strideZero, sharedB)));
    LoraLayer all =
        new LoraLayer(
            Map.of(
                LoraTarget.UP,
                new LoraFactors(
                    TestTensors.random(rng, DType.BF16, 1, 16, 64),
                    TestTensors.random(rng, DType.BF16, 1, 40, 16))));
    for (List<@Nullable LoraLayer> slots : List.of(List.of(mixed, all), List.of(all, all))) {
      int[] mapping = rng.ints(tokens, -1, 2).toArray();
      int[][] ids = new int[tokens][];
      Arrays.setAll(ids, t -> rng.ints(2, -1, experts).toArray());
      ExpertRouting routing =
          new ExpertRouting(
              rig.upload(
                  Tensor.ofInts(
                      Arrays.stream(ids).flatMapToInt(Arrays::stream).toArray(), tokens, 2)),
              rig.upload(TestTensors.random(rng, DType.F32, tokens, 2)),
              null);
      var call = new DeltaReference.Call(slots, mapping, ids, null, experts, null, true);
      Rig.Context context = rig.context(wrappers.get(LoraPath.AUTO), slots, mapping);
      Tensor x = TestTensors.random(rng, DType.BF16, tokens * 2L, 64);
      Tensor xThere = rig.upload(x);
      Rig.Output y = rig.new Output(rng, DType.BF16, 0, tokens, 2, 40);
      DeltaReference ref = new DeltaReference(y.old(), DType.BF16);
      ref.w13(call, x, false, GateUpLayout.HALVES, 40);
      run(
          y,
          ref,
          path ->
              wrappers
                  .get(path)
                  .addLoraW13(
                      PunicaWrapper.W13.of(
                          context, y.tensor, xThere, routing, false, GateUpLayout.HALVES),
                      rig.stream));
      Tensor act = TestTensors.random(rng, DType.BF16, tokens * 2L, 40);
      Tensor actThere = rig.upload(act);
      Rig.Output y2 = rig.new Output(rng, DType.BF16, 0, tokens, 2, 64);
      DeltaReference ref2 = new DeltaReference(y2.old(), DType.BF16);
      ref2.w2(call, act, 64);
      run(
          y2,
          ref2,
          path ->
              wrappers
                  .get(path)
                  .addLoraW2(
                      PunicaWrapper.W2.of(context, y2.tensor, actThere, routing), rig.stream));
    }
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 9, 150})
  void denseMaps(int tokens) {
    SplittableRandom rng = new SplittableRandom(tokens);
    List<@Nullable LoraLayer> slots = new ArrayList<>();
    for (int rank : new int[] {8, 5, 64}) {
      slots.add(
          new LoraLayer(
              Map.of(
                  LoraTarget.SHARED_UP,
                  TestTensors.factors(rng, DType.BF16, 1, rank, 64, 48),
                  LoraTarget.SHARED_EXPERT_GATE,
                  TestTensors.factors(rng, DType.BF16, 1, rank, 64, 1))));
    }
    int[] mapping = rng.ints(tokens, -1, 3).toArray();
    int[][] ids = new int[tokens][1];
    Rig.Context context = rig.context(wrappers.get(LoraPath.AUTO), slots, mapping);
    var call = new DeltaReference.Call(slots, mapping, ids, null, 1, null, true);
    Tensor x = TestTensors.random(rng, DType.BF16, tokens, 64);
    Tensor there = rig.upload(x);
    for (LoraTarget target :
        new LoraTarget[] {LoraTarget.SHARED_UP, LoraTarget.SHARED_EXPERT_GATE}) {
      int width = target == LoraTarget.SHARED_UP ? 48 : 1;
      Rig.Output y = rig.new Output(rng, DType.F32, 0, tokens, width);
      DeltaReference ref = new DeltaReference(y.old(), DType.F32);
      ref.linear(call, target, x, width);
      run(
          y,
          ref,
          path ->
              wrappers
                  .get(path)
                  .addLoraLinear(
                      PunicaWrapper.Linear.of(context, target, y.tensor, there), rig.stream));
    }
  }

  @Test
  void twoStreamsGiveTheDeltaRoundedOnce() {
    SplittableRandom rng = new SplittableRandom(12);
    Shape s = new Shape(64, 2, 4, 3, 64, 32, 16, 2);
    List<@Nullable LoraLayer> slots = slots(rng, s, Style.PLAIN);
    int[] mapping = rng.ints(s.tokens, -1, 3).toArray();
    int[][] ids = new int[s.tokens][];
    Arrays.setAll(ids, t -> rng.ints(2, -1, 4).toArray());
    ExpertRouting routing =
        new ExpertRouting(
            rig.upload(
                Tensor.ofInts(
                    Arrays.stream(ids).flatMapToInt(Arrays::stream).toArray(), s.tokens, 2)),
            rig.upload(TestTensors.random(rng, DType.F32, s.tokens, 2)),
            null);
    CudaPunicaWrapper w = wrappers.get(LoraPath.AUTO);
    Rig.Context context = rig.context(w, slots, mapping);
    var call = new DeltaReference.Call(slots, mapping, ids, null, 4, null, true);
    Tensor x = TestTensors.random(rng, DType.BF16, s.tokens, 64);
    Tensor there = rig.upload(x);
    Tensor act = TestTensors.random(rng, DType.BF16, s.tokens * 2L, 32);
    Tensor actThere = rig.upload(act);
    Rig.Output y = rig.new Output(rng, DType.F32, 0, s.tokens, 2, 64);
    Rig.Output y2 = rig.new Output(rng, DType.F32, 8, s.tokens, 2, 64);
    Tensor delta = rig.upload(TestTensors.random(rng, DType.F32, s.tokens, 2, 64));
    DeltaReference ref = new DeltaReference(y.old(), DType.F32);
    ref.w13(call, x, true, GateUpLayout.HALVES, 32);
    DeltaReference ref2 = new DeltaReference(y2.old(), DType.F32);
    ref2.w2(call, act, 64);
    try (TwoStreams two = new TwoStreams(rig.device, w)) {
      Runnable both =
          () -> {
            two.w13(
                stream -> {},
                context,
                y.tensor,
                delta,
                there,
                routing,
                true,
                GateUpLayout.HALVES,
                rig.stream);
            two.w2(stream -> {}, context, y2.tensor, delta, actThere, routing, false, rig.stream);
          };
      both.run();
      y.compare(ref, "two streams, w13");
      y2.compare(ref2, "two streams, w2");
      y.reset();
      y2.reset();
      try (CudaGraph graph = CudaGraph.capture(rig.device, rig.stream, both)) {
        graph.launch(rig.stream);
        y.compare(ref, "two streams in a graph, w13");
        y2.compare(ref2, "two streams in a graph, w2");
      }
    }
  }

  @Test
  void misfitsAreNamedBeforeAnythingIsWritten() {
    SplittableRandom rng = new SplittableRandom(3);
    Shape s = new Shape(4, 2, 3, 2, 8, 6, 2, 2);
    CudaPunicaWrapper w = wrappers.get(LoraPath.AUTO);
    Rig.Context context = rig.context(w, slots(rng, s, Style.PLAIN), new int[4]);
    ExpertRouting routing =
        new ExpertRouting(
            rig.upload(Tensor.ofInts(new int[8], 4, 2)),
            rig.upload(Tensor.ofFloats(new float[8], 4, 2)),
            null);
    Rig.Output y = rig.new Output(rng, DType.F32, 0, 4, 2, 12);
    Tensor wide = rig.upload(TestTensors.random(rng, DType.F32, 4, 9));
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            w.addLoraW13(
                PunicaWrapper.W13.of(context, y.tensor, wide, routing, true, GateUpLayout.HALVES),
                rig.stream))
        .withMessageContaining("GATE factors map 8 -> 6")
        .withMessageContaining("rows of 9");
    Tensor five = rig.upload(TestTensors.random(rng, DType.F32, 5, 8));
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            w.addLoraW13(
                PunicaWrapper.W13.of(context, y.tensor, five, routing, true, GateUpLayout.HALVES),
                rig.stream))
        .withMessageContaining("x is F32[5, 8]");
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            w.addLoraLinear(
                PunicaWrapper.Linear.of(context, LoraTarget.UP, y.tensor, five), rig.stream))
        .withMessageContaining("target is UP");
    assertThat(y.download()).isEqualTo(y.before);
  }
}
