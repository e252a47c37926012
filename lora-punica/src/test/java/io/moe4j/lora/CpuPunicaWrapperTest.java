package io.moe4j.lora;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.fail;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.lora.TestTensors.Guarded;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;

/** Against the formulas in double. Shapes of the grids follow the kernels' upstream tests. */
class CpuPunicaWrapperTest {
  private static final List<FloatKernels> KERNELS =
      List.of(new ScalarKernels(), new VectorKernels());

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
      boolean map) {
    static final Style PLAIN =
        new Style(DType.F32, DType.F32, DType.F32, GateUpLayout.HALVES, true, false, false);
  }

  static Stream<Arguments> grid() {
    List<Shape> shapes = new ArrayList<>();
    for (int slices : new int[] {1, 2}) {
      for (int rank : new int[] {16, 32, 64}) {
        shapes.add(new Shape(100, 6, 64, 4, 128, 88, rank, slices));
      }
      for (int rank : new int[] {128, 256, 520}) {
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
    }
    return shapes.stream().map(Arguments::of);
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

  @Test
  void severalThreadsGiveTheSameBits() {
    Shape s = new Shape(100, 6, 64, 4, 128, 88, 64, 2);
    List<byte[]> one = check(s, Style.PLAIN, 1);
    List<byte[]> four = check(s, Style.PLAIN, 4);
    for (int i = 0; i < one.size(); i++) {
      assertThat(four.get(i)).isEqualTo(one.get(i));
    }
  }

  static Stream<Style> styles() {
    List<DType> dtypes = List.of(DType.F32, DType.BF16, DType.F16);
    List<Style> all = new ArrayList<>();
    for (DType y : dtypes) {
      for (DType x : dtypes) {
        for (DType f : dtypes) {
          for (int bits = 0; bits < 16; bits++) {
            GateUpLayout layout = (bits & 1) == 0 ? GateUpLayout.HALVES : GateUpLayout.INTERLEAVED;
            all.add(new Style(y, x, f, layout, (bits & 2) == 0, (bits & 4) == 0, (bits & 8) == 0));
          }
        }
      }
    }
    return all.stream();
  }

  @ParameterizedTest
  @MethodSource("styles")
  void agreesInEveryStyle(Style style) {
    check(new Shape(19, 3, 10, 5, 37, 21, 6, 2), style, 1);
    check(new Shape(19, 3, 10, 5, 37, 21, 6, 1), style, 1);
  }

  /** Runs w13, w2 and a dense map on random data, checks all, and returns the output bytes. */
  private static List<byte[]> check(Shape s, Style style, int threads) {
    List<byte[]> outputs = new ArrayList<>();
    List<@Nullable LoraLayer> slots = slots(new SplittableRandom(s.hashCode()), s, style);
    for (FloatKernels kernels : KERNELS) {
      SplittableRandom rng = new SplittableRandom(~s.hashCode());
      CpuPunicaWrapper wrapper = new CpuPunicaWrapper(threads, kernels);
      int[] mapping = rng.ints(s.tokens(), -1, s.loras()).toArray();
      int global = style.map() ? s.experts() + 5 : s.experts();
      int[] map = style.map() ? map(rng, global, s.experts()) : null;
      int[][] ids = ids(rng, s, global);
      Tensor weights = TestTensors.random(rng, DType.F32, s.tokens(), s.topK());
      ExpertRouting routing =
          new ExpertRouting(
              Tensor.ofInts(
                  Arrays.stream(ids).flatMapToInt(Arrays::stream).toArray(), s.tokens(), s.topK()),
              weights,
              map == null ? null : Tensor.ofInts(map, map.length));
      TestContext context = new TestContext(slots, Tensor.ofInts(mapping, s.tokens()));
      var plain = new DeltaReference.Call(slots, mapping, ids, map, s.experts(), null, style.add());

      boolean gated = s.slices() == 2;
      Guarded y =
          new Guarded(rng, style.y(), true, s.tokens(), s.topK(), (long) s.slices() * s.inter());
      Tensor x = TestTensors.random(rng, style.x(), s.tokens(), s.hidden());
      DeltaReference ref = new DeltaReference(y.old(), style.y());
      ref.w13(plain, x, gated, style.layout(), s.inter());
      wrapper.addLoraW13(
          PunicaWrapper.W13
              .of(context, y.tensor, x, routing, gated, style.layout())
              .withAddInputs(style.add()),
          DeviceStream.HOST);
      compare(y, ref);
      outputs.add(y.bytes);

      Guarded y2 = new Guarded(rng, style.y(), true, s.tokens(), s.topK(), s.hidden());
      Tensor act = TestTensors.random(rng, style.x(), (long) s.tokens() * s.topK(), s.inter());
      DeltaReference ref2 = new DeltaReference(y2.old(), style.y());
      var call =
          new DeltaReference.Call(
              slots,
              mapping,
              ids,
              map,
              s.experts(),
              style.weights() ? rows(weights) : null,
              style.add());
      ref2.w2(call, act, s.hidden());
      wrapper.addLoraW2(
          PunicaWrapper.W2
              .of(context, y2.tensor, act, routing)
              .withMulRoutedWeight(style.weights())
              .withAddInputs(style.add()),
          DeviceStream.HOST);
      compare(y2, ref2);
      outputs.add(y2.bytes);

      Guarded y3 = new Guarded(rng, style.y(), true, s.tokens(), s.inter());
      DeltaReference ref3 = new DeltaReference(y3.old(), style.y());
      ref3.linear(
          new DeltaReference.Call(
              slots, mapping, new int[s.tokens()][1], null, 1, null, style.add()),
          LoraTarget.SHARED_UP,
          x,
          s.inter());
      wrapper.addLoraLinear(
          PunicaWrapper.Linear.of(context, LoraTarget.SHARED_UP, y3.tensor, x)
              .withAddInputs(style.add()),
          DeviceStream.HOST);
      compare(y3, ref3);
      outputs.add(y3.bytes);
    }
    return outputs;
  }

  /** Slots differ: both projections with one A, one of them, none, an empty slot; ragged ranks. */
  private static List<@Nullable LoraLayer> slots(SplittableRandom rng, Shape s, Style style) {
    List<@Nullable LoraLayer> slots = new ArrayList<>();
    DType t = style.factors();
    for (int slot = 0; slot < s.loras(); slot++) {
      int rank = Math.max(1, s.rank() - slot);
      Map<LoraTarget, LoraFactors> f = new EnumMap<>(LoraTarget.class);
      LoraFactors up = TestTensors.factors(rng, t, s.experts(), rank, s.hidden(), s.inter());
      if (slot != 3) {
        f.put(LoraTarget.UP, up);
        f.put(LoraTarget.SHARED_UP, TestTensors.factors(rng, t, 1, rank, s.hidden(), s.inter()));
      }
      if (s.slices() == 2 && slot % 2 == 0) {
        Tensor b = TestTensors.random(rng, t, s.experts(), s.inter(), rank);
        f.put(LoraTarget.GATE, new LoraFactors(up.a(), b));
      }
      if (slot != 1) {
        // B as PEFT stores it: rank-major columns, so that an expert's B has stride E along the
        // rank.
        Tensor b =
            TestTensors.random(rng, t, s.hidden(), rank, s.experts())
                .transpose(0, 2)
                .transpose(1, 2);
        f.put(
            LoraTarget.DOWN,
            new LoraFactors(TestTensors.random(rng, t, s.experts(), rank, s.inter()), b));
      }
      slots.add(slot == 4 ? null : new LoraLayer(f));
    }
    return slots;
  }

  private static int[] map(SplittableRandom rng, int global, int local) {
    int[] map = new int[global];
    Arrays.fill(map, -1);
    int next = 0;
    for (int e = 0; e < global && next < local; e++) {
      if (global - e <= local - next || rng.nextInt(3) > 0) {
        map[e] = next++;
      }
    }
    return map;
  }

  /** Distinct experts per token, a few -1, a few unknown. */
  private static int[][] ids(SplittableRandom rng, Shape s, int experts) {
    int[][] ids = new int[s.tokens()][];
    for (int t = 0; t < s.tokens(); t++) {
      ids[t] = rng.ints(0, experts).distinct().limit(s.topK()).toArray();
      if (t % 7 == 3) {
        ids[t][rng.nextInt(s.topK())] = -1;
      }
      if (t % 11 == 5) {
        ids[t][rng.nextInt(s.topK())] = rng.nextBoolean() ? experts : Integer.MAX_VALUE;
      }
    }
    return ids;
  }

  private static double[][] rows(Tensor t) {
    return IntStream.range(0, (int) t.size(0))
        .mapToObj(i -> t.select(0, i).toDoubles())
        .toArray(double[][]::new);
  }

  private static void compare(Guarded y, DeltaReference ref) {
    assertThat(y.guardsIntact()).as("guard bands").isTrue();
    double[] actual = y.tensor.toDoubles();
    for (int i = 0; i < actual.length; i++) {
      if (!ref.written[i]) {
        if (!y.untouched(i, 1)) {
          fail("element %d has no delta but was written", i);
        }
      } else if (!(Math.abs(actual[i] - ref.expected[i]) <= ref.bound[i])) {
        assertThat(actual[i])
            .as("element %d, off by more than %g", i, ref.bound[i])
            .isEqualTo(ref.expected[i]);
      }
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"F32", "BF16", "F16"})
  void nothingToDoLeavesEveryBit(DType dtype) {
    SplittableRandom rng = new SplittableRandom(42);
    Shape s = new Shape(16, 4, 8, 4, 64, 32, 16, 2);
    List<@Nullable LoraLayer> slots = slots(rng, s, Style.PLAIN);
    List<@Nullable LoraLayer> empty = Arrays.asList(null, null, null, null);
    int[] base = new int[16];
    Arrays.fill(base, -1);
    int[] outside = new int[16];
    Arrays.fill(outside, 4);
    int[] none = new int[64];
    Arrays.fill(none, -1);
    Tensor someIds = Tensor.ofInts(rng.ints(64, 0, 8).toArray(), 16, 4);
    Tensor noIds = Tensor.ofInts(none, 16, 4);
    Tensor weights = TestTensors.random(rng, DType.F32, 16, 4);
    Tensor x = TestTensors.random(rng, dtype, 16, 64);
    for (boolean add : new boolean[] {true, false}) {
      untouched(rng, slots, base, new ExpertRouting(someIds, weights, null), x, add);
      untouched(rng, slots, outside, new ExpertRouting(someIds, weights, null), x, add);
      untouched(rng, empty, new int[16], new ExpertRouting(someIds, weights, null), x, add);
      untouched(rng, slots, new int[16], new ExpertRouting(noIds, weights, null), x, add);
      untouched(
          rng,
          slots,
          new int[16],
          new ExpertRouting(someIds, weights, Tensor.ofInts(Arrays.copyOf(none, 8), 8)),
          x,
          add);
    }
  }

  private static void untouched(
      SplittableRandom rng,
      List<@Nullable LoraLayer> slots,
      int[] mapping,
      ExpertRouting routing,
      Tensor x,
      boolean add) {
    CpuPunicaWrapper wrapper = new CpuPunicaWrapper(2);
    TestContext context = new TestContext(slots, Tensor.ofInts(mapping, mapping.length));
    Guarded y = new Guarded(rng, x.dtype(), false, 16, 4, 64);
    wrapper.addLoraW13(
        PunicaWrapper.W13
            .of(context, y.tensor, x, routing, true, GateUpLayout.HALVES)
            .withAddInputs(add),
        DeviceStream.HOST);
    assertThat(y.untouched()).isTrue();
    Guarded y2 = new Guarded(rng, x.dtype(), false, 16, 4, 64);
    Tensor act = TestTensors.random(rng, x.dtype(), 64, 32);
    wrapper.addLoraW2(
        PunicaWrapper.W2
            .of(context, y2.tensor, act, routing)
            .withMulRoutedWeight(true)
            .withAddInputs(add),
        DeviceStream.HOST);
    assertThat(y2.untouched()).isTrue();
  }

  @Test
  void noTokens() {
    SplittableRandom rng = new SplittableRandom(1);
    Shape s = new Shape(1, 2, 4, 2, 8, 6, 3, 2);
    TestContext context = new TestContext(slots(rng, s, Style.PLAIN), Tensor.ofInts(new int[0], 0));
    ExpertRouting routing =
        new ExpertRouting(
            Tensor.ofInts(new int[0], 0, 2), Tensor.ofFloats(new float[0], 0, 2), null);
    Guarded y = new Guarded(rng, DType.F32, false, 0, 2, 12);
    CpuPunicaWrapper wrapper = CpuPunicaWrapper.shared();
    wrapper.addLoraW13(
        PunicaWrapper.W13.of(
            context,
            y.tensor,
            Tensor.ofFloats(new float[0], 0, 8),
            routing,
            true,
            GateUpLayout.HALVES),
        DeviceStream.HOST);
    Guarded y2 = new Guarded(rng, DType.F32, false, 0, 2, 8);
    wrapper.addLoraW2(
        PunicaWrapper.W2
            .of(context, y2.tensor, Tensor.ofFloats(new float[0], 0, 6), routing)
            .withMulRoutedWeight(true),
        DeviceStream.HOST);
    assertThat(y.untouched() && y2.untouched()).isTrue();
  }

  @Test
  void factorsSharedByAllExperts() {
    SplittableRandom rng = new SplittableRandom(5);
    int experts = 6;
    Tensor a = TestTensors.random(rng, DType.BF16, 1, 4, 20);
    Tensor b = TestTensors.random(rng, DType.F32, experts, 14, 4);
    Tensor sharedB = TestTensors.random(rng, DType.F32, 1, 20, 3);
    Tensor strideZero = TestTensors.random(rng, DType.F16, 3, 14).expand(experts);
    List<@Nullable LoraLayer> slots =
        List.of(
            new LoraLayer(
                Map.of(
                    LoraTarget.UP,
                    new LoraFactors(a, b),
                    LoraTarget.DOWN,
                    new LoraFactors(strideZero, sharedB))),
            new LoraLayer(
                Map.of(
                    LoraTarget.UP,
                    new LoraFactors(
                        TestTensors.random(rng, DType.F32, 1, 2, 20),
                        TestTensors.random(rng, DType.F32, 1, 14, 2)))));
    int[] mapping = {0, 1, 0, 1, -1, 0, 1};
    int[][] ids = {{0, 5}, {1, 4}, {2, 3}, {3, 3}, {4, 1}, {5, 5}, {6, 2}};
    ExpertRouting routing =
        new ExpertRouting(
            Tensor.ofInts(Arrays.stream(ids).flatMapToInt(Arrays::stream).toArray(), 7, 2),
            TestTensors.random(rng, DType.F32, 7, 2),
            null);
    TestContext context = new TestContext(slots, Tensor.ofInts(mapping, 7));
    var call = new DeltaReference.Call(slots, mapping, ids, null, experts, null, true);
    // One row a pair, as with the router weight on the input.
    Tensor x = TestTensors.random(rng, DType.F32, 14, 20);
    Guarded y = new Guarded(rng, DType.F32, true, 7, 2, 14);
    DeltaReference ref = new DeltaReference(y.old(), DType.F32);
    ref.w13(call, x, false, GateUpLayout.HALVES, 14);
    CpuPunicaWrapper.shared()
        .addLoraW13(
            PunicaWrapper.W13.of(context, y.tensor, x, routing, false, GateUpLayout.HALVES),
            DeviceStream.HOST);
    compare(y, ref);
    Guarded y2 = new Guarded(rng, DType.F32, true, 7, 2, 20);
    Tensor act = TestTensors.random(rng, DType.F32, 14, 14);
    DeltaReference ref2 = new DeltaReference(y2.old(), DType.F32);
    ref2.w2(call, act, 20);
    CpuPunicaWrapper.shared()
        .addLoraW2(PunicaWrapper.W2.of(context, y2.tensor, act, routing), DeviceStream.HOST);
    compare(y2, ref2);
  }

  @Test
  void infinitiesAndNaNStayInTheirRows() {
    SplittableRandom rng = new SplittableRandom(9);
    Shape s = new Shape(12, 2, 2, 1, 24, 16, 4, 2);
    List<@Nullable LoraLayer> slots = slots(rng, s, Style.PLAIN);
    ExpertRouting routing =
        new ExpertRouting(
            Tensor.ofInts(rng.ints(24, 0, 2).toArray(), 12, 2),
            TestTensors.random(rng, DType.F32, 12, 2),
            null);
    TestContext context = new TestContext(slots, Tensor.ofInts(new int[12], 12));
    Tensor x = TestTensors.random(rng, DType.F32, 12, 24);
    Tensor clean = Tensor.ofFloats(new float[12 * 2 * 32], 12, 2, 32);
    Tensor dirty = Tensor.ofFloats(new float[12 * 2 * 32], 12, 2, 32);
    CpuPunicaWrapper w = CpuPunicaWrapper.shared();
    w.addLoraW13(
        PunicaWrapper.W13.of(context, clean, x, routing, true, GateUpLayout.HALVES),
        DeviceStream.HOST);
    x.set(Double.NaN, 5, 3);
    x.set(Double.POSITIVE_INFINITY, 7, 0);
    w.addLoraW13(
        PunicaWrapper.W13.of(context, dirty, x, routing, true, GateUpLayout.HALVES),
        DeviceStream.HOST);
    for (int t = 0; t < 12; t++) {
      double[] row = dirty.select(0, t).toDoubles();
      if (t == 5 || t == 7) {
        assertThat(Arrays.stream(row).noneMatch(Double::isFinite)).isTrue();
      } else {
        assertThat(row).isEqualTo(clean.select(0, t).toDoubles());
      }
    }
  }

  @Test
  void misfitsAreNamedBeforeAnythingIsWritten() {
    SplittableRandom rng = new SplittableRandom(3);
    Shape s = new Shape(4, 2, 3, 2, 8, 6, 2, 2);
    TestContext context = new TestContext(slots(rng, s, Style.PLAIN), Tensor.ofInts(new int[4], 4));
    ExpertRouting routing =
        new ExpertRouting(
            Tensor.ofInts(new int[8], 4, 2), Tensor.ofFloats(new float[8], 4, 2), null);
    Guarded y = new Guarded(rng, DType.F32, false, 4, 2, 12);
    CpuPunicaWrapper w = CpuPunicaWrapper.shared();
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            w.addLoraW13(
                PunicaWrapper.W13.of(
                    context,
                    y.tensor,
                    TestTensors.random(rng, DType.F32, 4, 9),
                    routing,
                    true,
                    GateUpLayout.HALVES),
                DeviceStream.HOST))
        .withMessageContaining("GATE factors")
        .withMessageContaining("rows of 9");
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            w.addLoraW13(
                PunicaWrapper.W13.of(
                    context,
                    y.tensor,
                    TestTensors.random(rng, DType.F32, 5, 8),
                    routing,
                    true,
                    GateUpLayout.HALVES),
                DeviceStream.HOST))
        .withMessageContaining("x is F32[5, 8]")
        .withMessageContaining("4 rows");
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            w.addLoraLinear(
                PunicaWrapper.Linear.of(
                    context,
                    LoraTarget.UP,
                    TestTensors.random(rng, DType.F32, 4, 6),
                    TestTensors.random(rng, DType.F32, 4, 8)),
                DeviceStream.HOST))
        .withMessageContaining("target is UP");
    TestContext wrongMapping = new TestContext(context.slots(), Tensor.ofInts(new int[3], 3));
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            w.addLoraW13(
                PunicaWrapper.W13.of(
                    wrongMapping,
                    y.tensor,
                    TestTensors.random(rng, DType.F32, 4, 8),
                    routing,
                    true,
                    GateUpLayout.HALVES),
                DeviceStream.HOST))
        .withMessageContaining("tokenLoraMapping is I32[3]");
    assertThat(y.untouched()).isTrue();
  }
}
