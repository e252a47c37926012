package io.moe4j.oracle;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.DeviceException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.Tensor;
import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import jdk.jfr.Recording;
import jdk.jfr.consumer.RecordedEvent;
import jdk.jfr.consumer.RecordingFile;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What a team that runs layers can see: events, counters, estimates, deadlines. */
class OperationsTest {
  private static final MoeConfig CONFIG = LayerFixture.config().build();

  private final FakeDevice device = new FakeDevice();

  private static Tensor out(int tokens) {
    return LayerFixture.zeros(tokens, LayerFixture.H);
  }

  @Test
  void flightRecorderHearsOfEverything(@TempDir Path dir) throws IOException {
    Path file = dir.resolve("x.jfr");
    try (Recording recording = new Recording()) {
      for (String name : List.of("Forward", "Selection", "Plugin")) {
        recording.enable("io.moe4j." + name).withThreshold(Duration.ZERO);
      }
      recording.start();
      try (MoeLayer layer = LayerFixture.layer(device, LayerFixture.modular(device), CONFIG)) {
        layer.forward(LayerFixture.hidden(3), out(3));
        try (MoeSession session = layer.newSession(4)) {
          session.forward(MoeForward.of(LayerFixture.hidden(4), out(4)), device.defaultStream());
        }
      }
      recording.stop();
      recording.dump(file);
    }
    List<RecordedEvent> all = RecordingFile.readAllEvents(file);
    List<RecordedEvent> forwards = named(all, "io.moe4j.Forward");
    assertThat(forwards).extracting(e -> e.getLong("tokens")).containsExactly(3L, 4L);
    assertThat(forwards)
        .allSatisfy(e -> {
          assertThat(e.getString("backend")).isEqualTo("fake");
          assertThat(e.getString("device")).isEqualTo("cpu:0");
          assertThat(e.getBoolean("failed")).isFalse();
          assertThat(e.getDuration().toNanos()).isPositive();
        });
    assertThat(named(all, "io.moe4j.Selection"))
        .extracting(e -> e.getString("chosen"))
        .containsExactly("fake");
    assertThat(named(all, "io.moe4j.Plugin"))
        .extracting(e -> e.getString("name"))
        .contains("fake", "cpu devices");
  }

  private static List<RecordedEvent> named(List<RecordedEvent> all, String name) {
    return all.stream().filter(e -> e.getEventType().getName().equals(name)).toList();
  }

  @Test
  void layersCount() {
    FakeExperts.Probe fails =
        new FakeExperts.Probe() {
          private int calls;

          @Override
          public void inApply(Workspace workspace) {
            if (++calls == 2) {
              throw new IllegalStateException("once");
            }
          }
        };
    FakeBackend backend =
        new FakeBackend("fake", DeviceType.CPU)
            .withLora()
            .prepares((c, w, d) -> FakeExperts.lora(device, fails));
    try (MoeLayer layer = LayerFixture.layer(device, backend, CONFIG)) {
      assertThat(layer.stats().forwards()).isZero();
      layer.forward(LayerFixture.hidden(3), out(3));
      assertThatThrownBy(() -> layer.forward(LayerFixture.hidden(3), out(3)))
          .hasMessageContaining("once");
      layer.forward(LayerFixture.hidden(5), out(5));
      layer.forward(LayerFixture.hidden(0), out(0)); // nothing is done
      LayerStats s = layer.stats();
      assertThat(s.forwards()).isEqualTo(2);
      assertThat(s.failures()).isEqualTo(1);
      assertThat(s.tokens()).isEqualTo(8);
      assertThat(s.nanos()).isPositive();
      int mlp = 3 * LayerFixture.I * LayerFixture.H;
      assertThat(s.weightBytes()).isEqualTo(4L * LayerFixture.E * (mlp + LayerFixture.H));
      assertThat(layer.scratchPool().stats())
          .isEqualTo(new ScratchStats(1, 0, s.scratchBytes(), 0, 0, 0));
    }
  }

  /** Only where the routing is what is in front of the experts, and keeps to itself. */
  @Test
  void expertsBeginBesideTheRoutingWhereTheyMay() {
    for (boolean alone : new boolean[] {false, true}) {
      device.routesAlone = alone;
      try (MoeLayer layer = LayerFixture.layer(device, LayerFixture.modular(device), CONFIG)) {
        device.events.clear();
        layer.forward(LayerFixture.hidden(3), out(3));
        assertThat(device.events.contains("beside the routing")).isEqualTo(alone);
        device.events.clear();
        Tensor ids = Tensor.ofInts(new int[3 * LayerFixture.K], 3, LayerFixture.K);
        layer.forward(
            MoeForward.of(LayerFixture.hidden(3), out(3))
                .withTopk(ids, LayerFixture.zeros(3, LayerFixture.K)));
        assertThat(device.events)
            .doesNotContain("beside the routing")
            .anyMatch(e -> e.startsWith("apply"));
      }
    }
  }

  /** The layer does not route what the experts route, who may be asked for that alone. */
  @Test
  void expertsMayRouteWithTheirFirstWork() {
    Tensor hidden = LayerFixture.hidden(3);
    Tensor expected = out(3);
    try (MoeLayer layer = LayerFixture.layer(device, LayerFixture.modular(device), CONFIG)) {
      layer.forward(hidden, expected);
      assertThat(device.events).doesNotContain("routed inside").anyMatch(e -> isRoute(e));
    }
    device.routesInside = true;
    device.anyRouting = true;
    try (MoeLayer layer = LayerFixture.layer(device, LayerFixture.modular(device), CONFIG)) {
      device.events.clear();
      Tensor output = out(3);
      Tensor ids = Tensor.ofInts(new int[3 * LayerFixture.K], 3, LayerFixture.K);
      Tensor weights = LayerFixture.zeros(3, LayerFixture.K);
      layer.forward(MoeForward.of(hidden, output).topkInto(ids, weights));
      assertThat(output.toDoubles()).isEqualTo(expected.toDoubles());
      assertThat(weights.get(2, 0)).isEqualTo(1);
      assertThat(device.events).contains("routed inside").noneMatch(e -> isRoute(e));
      device.events.clear();
      layer.forward(MoeForward.of(hidden, output).withTopk(ids, weights));
      assertThat(device.events).doesNotContain("routed inside");
    }
    MoeConfig zeros = LayerFixture.config().zeroExperts(2).build();
    MoeConfig byId = LayerFixture.config().routing(routing().byTokenId(true).build()).build();
    MoeConfig corrected =
        LayerFixture.config().routing(routing().correctionBias(true).build()).build();
    MoeConfig scaled = LayerFixture.config().routing(routing().expertScale(true).build()).build();
    for (MoeConfig config : List.of(zeros, byId, corrected, scaled)) {
      try (MoeLayer layer = LayerFixture.layer(device, LayerFixture.modular(device), config)) {
        device.events.clear();
        MoeForward f = MoeForward.of(hidden, out(3));
        layer.forward(
            config.routing().byTokenId() ? f.withTokenIds(Tensor.ofInts(new int[3], 3)) : f);
        assertThat(device.events).as("%s", config).doesNotContain("routed inside");
      }
    }
  }

  private static RoutingConfig.Builder routing() {
    return RoutingConfig.builder(RoutingConfig.Scoring.SOFTMAX);
  }

  private static boolean isRoute(String event) {
    return event.startsWith("route ");
  }

  /** Zero experts are split off, and a table of experts is read, behind the routing. */
  @Test
  void expertsWaitForWhatFollowsTheRouting() {
    device.routesAlone = true;
    device.anyRouting = true;
    MoeConfig zeros = LayerFixture.config().zeroExperts(2).build();
    MoeConfig byId =
        LayerFixture.config()
            .routing(RoutingConfig.builder(RoutingConfig.Scoring.SOFTMAX).byTokenId(true).build())
            .build();
    for (MoeConfig config : List.of(zeros, byId)) {
      try (MoeLayer layer = LayerFixture.layer(device, LayerFixture.modular(device), config)) {
        device.events.clear();
        MoeForward f = MoeForward.of(LayerFixture.hidden(3), out(3));
        layer.forward(
            config.routing().byTokenId() ? f.withTokenIds(Tensor.ofInts(new int[3], 3)) : f);
        assertThat(device.events)
            .as("%s", config)
            .doesNotContain("beside the routing")
            .anyMatch(e -> e.startsWith("apply"))
            .anyMatch(e -> e.startsWith(config == zeros ? "splitZeroExperts" : "routeByTokenId"));
      }
    }
  }

  @Test
  void aPlanIsWhatTheLayerThenTakes() {
    for (MoeConfig c :
        List.of(CONFIG, LayerFixture.loraConfig().build(), LayerFixture.sharedConfig().build())) {
      FakeBackend backend = LayerFixture.lora(device);
      try (MoeOracle oracle = LayerFixture.oracle(device, backend)) {
        LayerPlan plan = MoeLayer.plan(c, oracle, null);
        assertThat(device.live).as("the plan keeps nothing").hasValue(0);
        try (MoeLayer layer = MoeLayer.builder(c, LayerFixture.weights(c)).oracle(oracle).build()) {
          assertThat(plan.backend()).isEqualTo("fake");
          assertThat(plan.weightBytes()).hasValue(layer.stats().weightBytes());
          assertThat(plan.scratchBytes()).hasValue(layer.stats().scratchBytes());
        }
      }
    }
  }

  @Test
  void waitingForScratchHasADeadline() throws Exception {
    CountDownLatch inside = new CountDownLatch(1);
    CountDownLatch goOn = new CountDownLatch(1);
    FakeExperts.Probe blocks =
        new FakeExperts.Probe() {
          @Override
          public void inApply(Workspace workspace) {
            inside.countDown();
            try {
              goOn.await(30, TimeUnit.SECONDS);
            } catch (InterruptedException e) {
              throw new AssertionError(e);
            }
          }
        };
    FakeBackend backend =
        new FakeBackend("fake", DeviceType.CPU)
            .withLora()
            .prepares((c, w, d) -> FakeExperts.lora(device, blocks));
    try (ScratchPool pool = new ScratchPool(device, 1, Duration.ofMillis(20));
        MoeOracle oracle = LayerFixture.oracle(device, backend);
        MoeLayer layer =
            MoeLayer.builder(CONFIG, LayerFixture.weights(CONFIG))
                .oracle(oracle)
                .scratchPool(pool)
                .build()) {
      Thread holder =
          Thread.ofPlatform().start(() -> layer.forward(LayerFixture.hidden(2), out(2)));
      inside.await(30, TimeUnit.SECONDS);
      assertThatThrownBy(() -> layer.forward(LayerFixture.hidden(2), out(2)))
          .isInstanceOf(DeviceException.class)
          .hasMessageContaining("no scratch memory became free within PT0.02S")
          .hasMessageContaining("lends to 1 at a time");
      ScratchStats s = pool.stats();
      assertThat(s.waits()).isEqualTo(1);
      assertThat(s.timeouts()).isEqualTo(1);
      assertThat(s.waitNanos()).isGreaterThanOrEqualTo(20_000_000);
      goOn.countDown();
      holder.join();
      layer.forward(LayerFixture.hidden(2), out(2));
    }
    assertThatThrownBy(() -> new ScratchPool(device, 1, Duration.ofMillis(-1)))
        .hasMessage("maxWait is PT-0.001S, must not be negative");
  }
}
