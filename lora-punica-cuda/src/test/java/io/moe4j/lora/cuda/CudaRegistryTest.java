package io.moe4j.lora.cuda;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaEvent;
import io.moe4j.cuda.CudaGraph;
import io.moe4j.cuda.CudaStream;
import io.moe4j.cuda.DeviceBuffer;
import io.moe4j.cuda.GpuTest;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.lora.DeltaReference;
import io.moe4j.lora.TestTensors;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;

/** A registry on the card: found by itself, adapters come and go, graphs see them. */
@GpuTest
class CudaRegistryTest {
  private static final int HIDDEN = 64;
  private static final int INTER = 40;
  private static final int EXPERTS = 4;
  private static final int TOKENS = 24;

  /** A hundred copies of so many bytes keep a card busy for tens of milliseconds. */
  private static final long BUSY = 1L << 30;

  private static final MoeConfig CONFIG =
      MoeConfig.builder(HIDDEN, INTER, EXPERTS, 2).lora(new LoraConfig(2, 64)).build();

  private final SplittableRandom rng = new SplittableRandom(6);
  private final Map<String, LoraLayer> adapters = new HashMap<>();
  private final int[][] ids = new int[TOKENS][];

  private LoraAdapter adapter(String name, int rank) {
    LoraLayer layer =
        new LoraLayer(
            Map.of(
                LoraTarget.GATE,
                TestTensors.factors(rng, DType.BF16, EXPERTS, rank, HIDDEN, INTER),
                LoraTarget.UP,
                TestTensors.factors(rng, DType.BF16, EXPERTS, rank, HIDDEN, INTER)));
    adapters.put(name, layer);
    return new LoraAdapter(name, Map.of(0, layer));
  }

  private DeltaReference reference(Rig.Output y, Tensor x, List<@Nullable String> names) {
    List<@Nullable LoraLayer> slots = new ArrayList<>();
    int[] mapping = new int[TOKENS];
    for (int t = 0; t < TOKENS; t++) {
      String name = names.get(t);
      mapping[t] = name == null ? -1 : slots.size();
      if (name != null) {
        slots.add(adapters.get(name));
      }
    }
    DeltaReference ref = new DeltaReference(y.old(), DType.BF16);
    ref.w13(
        new DeltaReference.Call(slots, mapping, ids, null, EXPERTS, null, true),
        x,
        true,
        GateUpLayout.HALVES,
        INTER);
    return ref;
  }

  private static List<@Nullable String> names(@Nullable String... cycle) {
    List<@Nullable String> out = new ArrayList<>();
    for (int t = 0; t < TOKENS; t++) {
      out.add(cycle[t % cycle.length]);
    }
    return out;
  }

  @Test
  void adaptersComeAndGoUnderAGraph() {
    try (Rig rig = new Rig();
        AdapterRegistry registry =
            AdapterRegistry.builder(Map.of(0, CONFIG)).device(rig.device).build();
        AdapterBatch batch = registry.newBatch()) {
      registry.load(adapter("a", 16));
      registry.load(adapter("b", 8));
      registry.load(adapter("c", 5));
      Arrays.setAll(ids, t -> rng.ints(2, 0, EXPERTS).toArray());
      ExpertRouting routing =
          new ExpertRouting(
              rig.upload(
                  Tensor.ofInts(
                      Arrays.stream(ids).flatMapToInt(Arrays::stream).toArray(), TOKENS, 2)),
              rig.upload(TestTensors.random(rng, DType.F32, TOKENS, 2)),
              null);
      Tensor x = TestTensors.random(rng, DType.BF16, TOKENS, HIDDEN);
      Tensor there = rig.upload(x);
      Rig.Output y = rig.new Output(rng, DType.BF16, 0, TOKENS, 2, 2 * INTER);

      List<@Nullable String> first = names("a", "b", null);
      batch.reset(first);
      assertThat(batch.context(0).punicaWrapper()).isInstanceOf(CudaPunicaWrapper.class);
      Runnable forward =
          () ->
              batch
                  .context(0)
                  .punicaWrapper()
                  .addLoraW13(
                      PunicaWrapper.W13.of(
                          batch.context(0), y.tensor, there, routing, true, GateUpLayout.HALVES),
                      rig.stream);
      forward.run();
      y.compare(reference(y, x, first), "eager");
      y.reset();
      try (CudaGraph graph = CudaGraph.capture(rig.device, rig.stream, forward)) {
        graph.launch(rig.stream);
        y.compare(reference(y, x, first), "graph");
        // Other tokens, then another adapter in a slot, then a new version of one: the same graph.
        for (List<@Nullable String> next :
            List.of(names("b", "a"), names("c", "a", null), names("c"))) {
          batch.reset(next);
          prepare(batch, rig.stream);
          y.reset();
          graph.launch(rig.stream);
          y.compare(reference(y, x, next), "graph, " + next.subList(0, 3));
        }
        batch.release();
        registry.replace(adapter("c", 7));
        batch.reset(names("c", "b"));
        prepare(batch, rig.stream);
        y.reset();
        graph.launch(rig.stream);
        y.compare(reference(y, x, names("c", "b")), "graph, replaced");
        batch.reset(names((String) null));
        y.reset();
        graph.launch(rig.stream);
        assertThat(y.download()).isEqualTo(y.before);
      }
    }
  }

  @Test
  void twoBatchesOnTwoStreamsDoNotDisturbEachOther() {
    try (Rig rig = new Rig();
        CudaStream other = rig.device.newStream();
        AdapterRegistry registry =
            AdapterRegistry.builder(Map.of(0, CONFIG)).device(rig.device).build()) {
      registry.load(adapter("a", 16));
      registry.load(adapter("b", 48));
      Arrays.setAll(ids, t -> rng.ints(2, 0, EXPERTS).toArray());
      ExpertRouting routing =
          new ExpertRouting(
              rig.upload(
                  Tensor.ofInts(
                      Arrays.stream(ids).flatMapToInt(Arrays::stream).toArray(), TOKENS, 2)),
              rig.upload(TestTensors.random(rng, DType.F32, TOKENS, 2)),
              null);
      Tensor x = TestTensors.random(rng, DType.BF16, TOKENS, HIDDEN);
      Tensor there = rig.upload(x);
      Rig.Output y = rig.new Output(rng, DType.BF16, 0, TOKENS, 2, 2 * INTER);
      Rig.Output y2 = rig.new Output(rng, DType.BF16, 0, TOKENS, 2, 2 * INTER);
      for (int round = 0; round < 20; round++) {
        y.reset();
        y2.reset();
        List<@Nullable String> one = names("a", null);
        List<@Nullable String> two = round % 2 == 0 ? names("b") : names(null, "b", "a");
        try (AdapterBatch first = registry.batch(one);
            AdapterBatch second = registry.batch(two)) {
          for (int repeat = 0; repeat < 3; repeat++) {
            first
                .context(0)
                .punicaWrapper()
                .addLoraW13(
                    PunicaWrapper.W13
                        .of(first.context(0), y.tensor, there, routing, true, GateUpLayout.HALVES)
                        .withAddInputs(repeat > 0 ? false : true),
                    rig.stream);
            if (repeat == 0) {
              second
                  .context(0)
                  .punicaWrapper()
                  .addLoraW13(
                      PunicaWrapper.W13.of(
                          second.context(0), y2.tensor, there, routing, true, GateUpLayout.HALVES),
                      other);
            }
          }
          rig.stream.synchronize();
          other.synchronize();
          y2.compare(reference(y2, x, two), "second stream");
        }
      }
    }
  }

  private static void prepare(AdapterBatch batch, CudaStream stream) {
    batch.context(0).punicaWrapper().prepare(batch.context(0), stream);
  }

  /**
   * One slot, and a card that is busy: the next adapter's upload and forward are enqueued while the
   * forward that reads the slot has not even begun.
   */
  @Test
  void theNextAdapterComesWhileAForwardReadsTheSlot() {
    MoeConfig one =
        MoeConfig.builder(HIDDEN, INTER, EXPERTS, 2).lora(new LoraConfig(1, 64)).build();
    try (Rig rig = new Rig();
        CudaStream other = rig.device.newStream();
        DeviceBuffer from = rig.device.allocate(BUSY);
        DeviceBuffer to = rig.device.allocate(BUSY)) {
      Arrays.setAll(ids, t -> rng.ints(2, 0, EXPERTS).toArray());
      ExpertRouting routing =
          new ExpertRouting(
              rig.upload(
                  Tensor.ofInts(
                      Arrays.stream(ids).flatMapToInt(Arrays::stream).toArray(), TOKENS, 2)),
              rig.upload(TestTensors.random(rng, DType.F32, TOKENS, 2)),
              null);
      Tensor x = TestTensors.random(rng, DType.BF16, TOKENS, HIDDEN);
      Tensor there = rig.upload(x);
      Rig.Output y = rig.new Output(rng, DType.BF16, 0, TOKENS, 2, 2 * INTER);
      Rig.Output y2 = rig.new Output(rng, DType.BF16, 0, TOKENS, 2, 2 * INTER);
      long memory = rig.device.allocatedBytes();
      long pinned = rig.device.pinnedBytes();
      try (AdapterRegistry registry =
              AdapterRegistry.builder(Map.of(0, one)).device(rig.device).build();
          AdapterBatch first = registry.newBatch();
          AdapterBatch second = registry.newBatch()) {
        registry.load(adapter("a", 16));
        registry.load(adapter("b", 13));
        // Kernels are loaded and scratch memory is taken when they are first needed.
        for (String name : List.of("a", "b")) {
          for (CudaStream s : List.of(rig.stream, other)) {
            try (AdapterBatch warm = registry.batch(names(name))) {
              add(warm, y, there, routing, s);
              s.synchronize();
            }
          }
        }
        second.reset(names("b"));
        second.release();
        for (int round = 0; round < 10; round++) {
          y.reset();
          y2.reset();
          first.reset(names("a"));
          for (int i = 0; i < 100; i++) {
            rig.device.copy(from.tensor(DType.U8, BUSY), to.tensor(DType.U8, BUSY), rig.stream);
          }
          try (CudaEvent busy = rig.device.newEvent(false)) {
            busy.record(rig.stream);
            add(first, y, there, routing, rig.stream);
            first.release(rig.stream);
            second.reset(names(null, "b"));
            add(second, y2, there, routing, other);
            second.release(other);
            assertThat(busy.isDone()).as("nobody has waited on the host").isFalse();
            if (round % 2 == 0) {
              registry.replace(adapter("b", 13));
            }
          }
          y.compare(reference(y, x, names("a")), "first, round " + round);
          other.synchronize();
          if (round % 2 == 1) {
            y2.compare(reference(y2, x, names(null, "b")), "second, round " + round);
          }
        }
      }
      assertThat(rig.device.pinnedBytes()).as("page-locked memory").isEqualTo(pinned);
      assertThat(rig.device.allocatedBytes()).as("device memory").isEqualTo(memory);
    }
  }

  private static void add(
      AdapterBatch batch, Rig.Output y, Tensor x, ExpertRouting routing, CudaStream stream) {
    batch
        .context(0)
        .punicaWrapper()
        .addLoraW13(
            PunicaWrapper.W13.of(batch.context(0), y.tensor, x, routing, true, GateUpLayout.HALVES),
            stream);
  }

  /** Loading, taking slots, losing them, unloading: whoever ends last, everything is given back. */
  @Test
  void thousandsOfUploadsLeaveNothingBehind() {
    try (Rig rig = new Rig()) {
      rig.upload(TestTensors.random(rng, DType.BF16, TOKENS, HIDDEN));
      rig.upload(TestTensors.random(rng, DType.BF16, TOKENS, HIDDEN));
      long memory = rig.device.allocatedBytes();
      long pinned = rig.device.pinnedBytes();
      for (int cycle = 0; cycle < 4; cycle++) {
        AdapterRegistry registry =
            AdapterRegistry.builder(Map.of(0, CONFIG, 1, CONFIG)).device(rig.device).build();
        for (String name : List.of("a", "b", "c", "d", "e")) {
          registry.load(adapter(name, 8));
        }
        AdapterBatch batch = registry.newBatch();
        for (int i = 0; i < 250; i++) {
          batch.reset(names("abcde".substring(i % 5, i % 5 + 1), i % 2 == 0 ? "a" : null));
          if (i % 7 == 0) {
            batch.release(rig.stream);
          }
          if (i % 50 == 49) {
            registry.replace(adapter("c", 16));
          }
        }
        if (cycle % 2 == 0) {
          batch.close();
          registry.close();
        } else {
          registry.close();
          batch.close();
        }
        assertThat(rig.device.pinnedBytes()).as("page-locked memory").isEqualTo(pinned);
        assertThat(rig.device.allocatedBytes()).as("device memory").isEqualTo(memory);
      }
    }
  }
}
