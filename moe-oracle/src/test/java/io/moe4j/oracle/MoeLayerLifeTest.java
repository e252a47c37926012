package io.moe4j.oracle;

import static io.moe4j.oracle.LayerFixture.H;
import static io.moe4j.oracle.LayerFixture.config;
import static io.moe4j.oracle.LayerFixture.expected;
import static io.moe4j.oracle.LayerFixture.hidden;
import static io.moe4j.oracle.LayerFixture.layer;
import static io.moe4j.oracle.LayerFixture.lora;
import static io.moe4j.oracle.LayerFixture.loraConfig;
import static io.moe4j.oracle.LayerFixture.modular;
import static io.moe4j.oracle.LayerFixture.oracle;
import static io.moe4j.oracle.LayerFixture.sharedConfig;
import static io.moe4j.oracle.LayerFixture.weights;
import static io.moe4j.oracle.LayerFixture.zeros;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.DeviceException;
import io.moe4j.api.MoeException;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.locks.LockSupport;
import java.util.function.IntToLongFunction;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** Building, threads, sessions, closing. */
@Timeout(60)
class MoeLayerLifeTest {
  private final FakeDevice device = new FakeDevice();

  @Test
  void threadsShareABoundedPoolAndDoNotDisturbEachOther() throws Exception {
    int threads = 8;
    int bound = 3;
    AtomicInteger running = new AtomicInteger();
    AtomicInteger most = new AtomicInteger();
    Set<Memory> held = ConcurrentHashMap.newKeySet();
    AtomicInteger shared = new AtomicInteger();
    FakeExperts.Probe probe =
        new FakeExperts.Probe() {
          @Override
          public void inApply(Workspace workspace) {
            most.accumulateAndGet(running.incrementAndGet(), Math::max);
            if (!held.add(workspace.memory())) {
              shared.incrementAndGet();
            }
            LockSupport.parkNanos(50_000); // give another one the time to come in
            held.remove(workspace.memory());
            running.decrementAndGet();
          }
        };
    MoeConfig c = sharedConfig().build();
    FakeBackend backend =
        new FakeBackend("fake", DeviceType.CPU)
            .withLora()
            .prepares((cfg, w, d) -> FakeExperts.lora(device, probe));
    try (ScratchPool pool = new ScratchPool(device, bound);
        MoeOracle oracle = oracle(device, backend);
        MoeLayer layer = MoeLayer.builder(c, weights(c)).oracle(oracle).scratchPool(pool).build();
        ExecutorService executor = Executors.newFixedThreadPool(threads)) {
      List<Future<?>> all = new ArrayList<>();
      for (int n = 0; n < threads; n++) {
        int first = n;
        all.add(
            executor.submit(() -> {
              for (int i = 0; i < 200; i++) {
                int tokens = 1 + (first + i) % 12; // some in two pieces
                Tensor output = zeros(tokens, H);
                layer.forward(hidden(tokens), output);
                for (int t = 0; t < tokens; t++) {
                  assertThat(output.get(t, 1)).isEqualTo(expected(t) + 1000);
                }
              }
            }));
      }
      for (Future<?> f : all) {
        f.get();
      }
      assertThat(most.get()).isBetween(2, bound);
      assertThat(shared).hasValue(0);
      assertThat(pool.size()).isLessThanOrEqualTo(bound);
    }
    assertThat(device.live).hasValue(0);
  }

  @Test
  void nothingIsTakenFromTheDeviceAfterTheFirstCall() {
    try (MoeLayer layer = layer(device, modular(device), sharedConfig().build())) {
      layer.forward(hidden(2), zeros(2, H));
      int before = device.allocations.get();
      for (int t = 0; t < 20; t++) {
        layer.forward(hidden(t), zeros(t, H));
      }
      assertThat(device.allocations).hasValue(before);
    }
  }

  @Test
  void layersOfAModelShareScratchAndDevice() {
    MoeConfig small = config().build();
    MoeConfig large = sharedConfig().maxTokens(64).build();
    try (ScratchPool pool = new ScratchPool(device, 2);
        MoeOracle oracle = oracle(device, modular(device))) {
      try (MoeLayer a =
              MoeLayer.builder(small, weights(small)).oracle(oracle).scratchPool(pool).build();
          MoeLayer b =
              MoeLayer.builder(large, weights(large)).oracle(oracle).scratchPool(pool).build()) {
        for (int i = 0; i < 3; i++) {
          Tensor output = zeros(3, H);
          a.forward(hidden(3), output);
          assertThat(output.get(2, 0)).isEqualTo(expected(2));
          b.forward(hidden(3), output);
          assertThat(output.get(2, 0)).isEqualTo(expected(2) + 1000);
        }
        assertThat(pool.size()).isEqualTo(1);
        assertThat(device.live).hasValue(1);
        assertThat(device.allocations).hasValue(2); // small, then one that serves both
      }
      assertThat(device.closed).hasValue(0); // given by way of the pool: not the layer's
    }
    assertThat(device.live).hasValue(0);
  }

  @Test
  void closingWaitsForRunningForwardsAndRefusesNewOnes() throws Exception {
    CountDownLatch inside = new CountDownLatch(1);
    CountDownLatch goOn = new CountDownLatch(1);
    FakeExperts.Probe probe =
        new FakeExperts.Probe() {
          @Override
          public void inApply(Workspace workspace) {
            inside.countDown();
            await(goOn);
          }
        };
    MoeLayer layer =
        layer(
            device,
            new FakeBackend("fake", DeviceType.CPU)
                .withLora()
                .prepares((c, w, d) -> FakeExperts.lora(device, probe)),
            config().build());
    Tensor output = zeros(2, H);
    Thread forward = Thread.ofVirtual().start(() -> layer.forward(hidden(2), output));
    await(inside);
    Thread closing = Thread.ofVirtual().start(layer::close);
    waitUntilRefused(layer);
    assertThat(closing.isAlive()).isTrue();
    assertThat(device.events).doesNotContain("close experts");
    goOn.countDown();
    forward.join();
    closing.join();
    assertThat(output.get(1, 0)).isEqualTo(expected(1));
    assertThat(device.events).containsSubsequence("close experts", "close block", "close device");
    assertThat(device.live).hasValue(0);
    layer.close();
    assertThat(device.closed).hasValue(1);
    assertThatThrownBy(() -> layer.newSession(1))
        .isInstanceOf(IllegalStateException.class)
        .hasMessage("the layer is closed");
  }

  private static void waitUntilRefused(MoeLayer layer) throws InterruptedException {
    while (true) {
      try {
        layer.newSession(1).close();
        Thread.sleep(1);
      } catch (IllegalStateException e) {
        assertThat(e).hasMessage("the layer is closed");
        return;
      }
    }
  }

  private static void await(CountDownLatch latch) {
    try {
      assertThat(latch.await(30, TimeUnit.SECONDS)).isTrue();
    } catch (InterruptedException e) {
      throw new AssertionError(e);
    }
  }

  @Test
  void aForwardThatFailsGivesItsScratchBack() {
    AtomicInteger calls = new AtomicInteger();
    FakeExperts.Probe probe =
        new FakeExperts.Probe() {
          @Override
          public void inApply(Workspace workspace) {
            if (calls.getAndIncrement() == 0) {
              throw new IllegalStateException("kernel failed");
            }
          }
        };
    MoeConfig c = config().build();
    try (ScratchPool pool = new ScratchPool(device, 1);
        MoeOracle oracle =
            oracle(
                device,
                new FakeBackend("fake", DeviceType.CPU)
                    .withLora()
                    .prepares((cfg, w, d) -> FakeExperts.lora(device, probe)));
        MoeLayer layer = MoeLayer.builder(c, weights(c)).oracle(oracle).scratchPool(pool).build()) {
      assertThatThrownBy(() -> layer.forward(hidden(1), zeros(1, H)))
          .hasMessageContaining("backend fake from ")
          .hasMessageContaining("kernel failed");
      Tensor output = zeros(2, H);
      layer.forward(hidden(2), output); // would wait for ever
      assertThat(output.get(1, 0)).isEqualTo(expected(1));
    }
  }

  @Test
  void sessionsRunOnTheCallersStream() {
    FakeDevice gpu = new FakeDevice(new DeviceId(DeviceType.CUDA, 0));
    try (MoeLayer layer = layer(gpu, lora(gpu), loraConfig().build())) {
      Tensor in = Tensor.of(DType.F32, new DeviceMemory(gpu.info().id(), 1 << 12, 256), 5, H);
      Tensor out = Tensor.of(DType.F32, new DeviceMemory(gpu.info().id(), 1 << 13, 256), 5, H);
      MoeSession session = layer.newSession(3);
      int taken = gpu.allocations.get();
      session.forward(MoeForward.of(in, out), gpu.stream("mine"));
      assertThat(gpu.events)
          .contains("apply F32[3, 4] -> F32[3, 4] on mine", "apply F32[2, 4] -> F32[2, 4] on mine")
          .noneMatch(e -> e.startsWith("synchronize"));
      assertThat(gpu.allocations).hasValue(taken);
      assertThatThrownBy(() ->
              session.forward(
                  MoeForward.of(in, out),
                  new FakeDevice(new DeviceId(DeviceType.CUDA, 1)).stream("other")))
          .hasMessage("stream is of cuda:1, the layer of cuda:0");
      session.close();
      session.close();
      assertThat(gpu.events).contains("synchronize mine");
      assertThat(gpu.live).hasValue(taken - 1);
      assertThatThrownBy(() -> session.forward(MoeForward.of(in, out), gpu.stream("mine")))
          .isInstanceOf(IllegalStateException.class);
      assertThatThrownBy(() -> layer.newSession(9)).hasMessage("maxTokens is 9, must be 1..8");
      layer.newSession(8); // left open: goes with the layer
    }
    assertThat(gpu.live).hasValue(0);
  }

  @Test
  void onADeviceForwardsAreEnqueuedOneAtATimeWithoutWaiting() {
    FakeDevice gpu = new FakeDevice(new DeviceId(DeviceType.CUDA, 0));
    assertThat(new ScratchPool(gpu, 5).maxConcurrent()).isEqualTo(1);
    try (MoeLayer layer = layer(gpu, lora(gpu), config().build())) {
      Tensor in = Tensor.of(DType.F32, new DeviceMemory(gpu.info().id(), 1 << 12, 256), 5, H);
      Tensor out = Tensor.of(DType.F32, new DeviceMemory(gpu.info().id(), 1 << 13, 256), 5, H);
      layer.forward(in, out);
      layer.forward(in, out);
      assertThat(gpu.events).noneMatch(e -> e.startsWith("synchronize"));
      assertThat(gpu.allocations).hasValue(1);
    }
    assertThat(gpu.events)
        .containsSubsequence("synchronize default", "close experts", "close device");
  }

  @Test
  void loraClaimedButNotImplementedIsFoundWhenTheLayerIsBuilt() {
    MoeConfig c = loraConfig().build();
    FakeBackend liar = modular(device).withLora();
    assertThatThrownBy(() -> layer(device, liar, c))
        .isInstanceOf(MoeException.class)
        .hasMessageContaining("broke its contract: supportsLora() is true but prepare made")
        .hasMessageContaining("is not LoraExperts");
    FakeBackend modest =
        new FakeBackend("modest", DeviceType.CPU).prepares((cfg, w, d) -> FakeExperts.lora(device));
    assertThatThrownBy(() -> layer(device, modest, config().build()))
        .isInstanceOf(MoeException.class)
        .hasMessageContaining("supportsLora() is false")
        .hasMessageContaining("which is LoraExperts");
    assertThat(device.events.stream().filter("close experts"::equals)).hasSize(2);
    assertThat(device.closed).hasValue(2);
    assertThat(device.live).hasValue(0);
  }

  @Test
  void whatABuildOpenedIsClosedWhenItFails() {
    MoeConfig c =
        config()
            .parallel(ParallelConfig.expert(2, 0))
            .expertMap(ExpertMap.of(0, 1, -1, -1))
            .build();
    FakeBackend fails =
        new FakeBackend("fails", DeviceType.CPU)
            .prepares((cfg, w, d) -> {
              throw new NoClassDefFoundError("com/acme/Gemm");
            });
    assertThatThrownBy(() -> layer(device, fails, c))
        .isInstanceOf(MoeException.class)
        .hasMessageContaining("backend fails from")
        .hasMessageContaining("class com.acme.Gemm is missing");
    assertThat(device.events).containsExactly("open 0", "close block", "close device");
    device.failAbove = 15;
    assertThatThrownBy(() -> layer(device, modular(device), c)).isInstanceOf(DeviceException.class);
    assertThat(device.closed).hasValue(2);
    assertThat(device.live).hasValue(0);
  }

  @Test
  void aBackendThatFailsToPrepareIsNamed() {
    FakeBackend fails =
        new FakeBackend("fails", DeviceType.CPU)
            .prepares((cfg, w, d) -> {
              throw new UnsupportedOperationException("no such kernel");
            });
    assertThatThrownBy(() -> layer(device, fails, config().build()))
        .isInstanceOf(MoeException.class)
        .hasMessageContaining("backend fails from")
        .hasMessageContaining("no such kernel")
        .hasCauseInstanceOf(UnsupportedOperationException.class);
    assertThat(device.live).hasValue(0);
  }

  /** The caller's weights are to blame, says the kind of the exception; who says so is named. */
  @Test
  void aBackendThatRefusesTheWeightsIsNamedToo() {
    FakeBackend fails =
        new FakeBackend("fails", DeviceType.CPU)
            .prepares((cfg, w, d) -> {
              throw new IllegalArgumentException("up of expert 3 has an odd stride");
            });
    assertThatThrownBy(() -> layer(device, fails, config().build()))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageMatching("backend fails from .*: up of expert 3 has an odd stride");
    FakeBackend silent =
        new FakeBackend("silent", DeviceType.CPU)
            .prepares((cfg, w, d) -> {
              throw new NumberFormatException();
            });
    assertThatThrownBy(() -> layer(device, silent, config().build()))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageMatching("backend silent from .*: java.lang.NumberFormatException");
    assertThat(device.live).hasValue(0);
  }

  @Test
  void scratchThatCannotBeIsABrokenContract() {
    assertThatThrownBy(() -> layer(device, asking(rows -> -5), config().build()))
        .isInstanceOf(MoeException.class)
        .hasMessageMatching(
            "backend asks from .* broke its contract: workspaceBytes\\(8\\) is -5, must be 0 \\(none\\)"
                + " or more");
    FakeBackend throwing =
        asking(rows -> {
          throw new ArithmeticException("long overflow");
        });
    assertThatThrownBy(() -> layer(device, throwing, config().build()))
        .isInstanceOf(MoeException.class)
        .hasMessageMatching(
            "backend asks from .* failed to say what scratch it needs:"
                + " java.lang.ArithmeticException: long overflow");
    assertThat(device.events.stream().filter("close experts"::equals)).hasSize(2);
    assertThat(device.live).hasValue(0);
  }

  private FakeBackend asking(IntToLongFunction bytes) {
    FakeExperts.Probe probe =
        new FakeExperts.Probe() {
          @Override
          public long workspaceBytes(int maxTokens) {
            return bytes.applyAsLong(maxTokens);
          }
        };
    return new FakeBackend("asks", DeviceType.CPU)
        .withLora()
        .prepares((cfg, w, d) -> FakeExperts.lora(device, probe));
  }

  @Test
  void weightsThatDoNotFitAreRefusedBeforeAnythingIsOpened() {
    MoeConfig c = config().build();
    MoeConfig other =
        config()
            .parallel(ParallelConfig.expert(2, 0))
            .expertMap(ExpertMap.of(0, -1, -1, -1))
            .build();
    try (MoeOracle oracle = oracle(device, modular(device))) {
      assertThatThrownBy(() -> MoeLayer.builder(c, weights(other)).oracle(oracle).build())
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("weights hold 1 experts");
    }
    assertThat(device.events).isEmpty();
  }

  @Test
  void missingDeviceProviderNamesTheJar() {
    MoeConfig c = config().build();
    FakeBackend onGpu = new FakeBackend("gpu-only", DeviceType.CUDA);
    try (MoeOracle oracle =
        MoeOracle.of(
            BackendCatalog.of(
                List.of(modular(device), onGpu), List.of(), List.of(device.blockOps())))) {
      // Nobody looked for a processor: the table says what to add.
      assertThatThrownBy(() -> MoeLayer.builder(c, weights(c)).oracle(oracle).build())
          .isInstanceOf(UnsupportedConfigException.class)
          .hasMessageContaining("opens cpu devices: add backend-cpu")
          .hasMessageContaining("opens cuda devices: add moe-cuda");
      // The caller says there is one.
      assertThatThrownBy(() ->
              MoeLayer.builder(c, weights(c)).oracle(oracle).platform(Platform.cpuOnly()).build())
          .isInstanceOf(DeviceException.class)
          .hasMessage(
              "backend fake needs a cpu device; nothing on the class path or among the plugins"
                  + " opens cpu devices: add backend-cpu");
    }
  }

  @Test
  void aGivenDeviceIsTheOnlyOneChosenForAndStaysOpen() {
    MoeConfig c = config().build();
    FakeDevice gpu = new FakeDevice(new DeviceId(DeviceType.CUDA, 1));
    FakeBackend better = new FakeBackend("better", DeviceType.CPU).priority(900);
    FakeBackend onGpu =
        new FakeBackend("on-gpu", DeviceType.CUDA)
            .prepares((cfg, w, d) -> FakeExperts.modular(gpu));
    try (MoeOracle oracle =
            MoeOracle.of(
                BackendCatalog.of(
                    List.of(better, onGpu),
                    List.of(device.provider()),
                    List.of(device.blockOps(), gpu.blockOps())));
        MoeLayer layer = MoeLayer.builder(c, weights(c)).oracle(oracle).device(gpu).build()) {
      assertThat(layer.selection().chosenBackend().name()).isEqualTo("on-gpu");
      assertThat(layer.device()).isSameAs(gpu);
      assertThat(layer).hasToString("MoeLayer[on-gpu on cuda:1]");
    }
    assertThat(gpu.closed).hasValue(0);
  }

  @Test
  void aBackendAskedForByNameIsUsedOrRefused() {
    MoeConfig c = config().build();
    FakeBackend other = new FakeBackend("other", DeviceType.CPU).priority(900);
    try (MoeOracle oracle = oracle(device, modular(device), other)) {
      try (MoeLayer layer =
          MoeLayer.builder(c, weights(c)).oracle(oracle).backend("fake").build()) {
        assertThat(layer.selection().chosenBackend().name()).isEqualTo("fake");
      }
      assertThatThrownBy(
              () -> MoeLayer.builder(c, weights(c)).oracle(oracle).backend("missing").build())
          .isInstanceOf(UnsupportedConfigException.class)
          .hasMessageContaining("known are [fake, other]");
    }
  }
}
