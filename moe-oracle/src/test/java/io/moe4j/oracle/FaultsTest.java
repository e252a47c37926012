package io.moe4j.oracle;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.AdapterException;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.DeviceException;
import io.moe4j.api.MoeException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.MemorySource;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.ClosedByInterruptException;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** Whatever backends and files do: a documented exception that names them. */
class FaultsTest {
  private static final MoeConfig CONFIG = LayerFixture.config().build();

  static List<Throwable> everything() {
    return List.of(
        new AssertionError("mine"),
        new StackOverflowError("mine"),
        new OutOfMemoryError("mine"),
        new InternalError("mine"),
        new NoClassDefFoundError("mine"),
        new Error("mine"),
        new ArrayIndexOutOfBoundsException("mine"),
        new IllegalStateException("mine"),
        new MoeException("mine"),
        new DeviceException("mine"));
  }

  private static <T> T sneaky(Throwable t) {
    return FaultsTest.<RuntimeException, T>raise(t);
  }

  @SuppressWarnings("unchecked")
  private static <E extends Throwable, T> T raise(Throwable t) throws E {
    throw (E) t;
  }

  @ParameterizedTest
  @MethodSource("everything")
  void ofPrepare(Throwable t) {
    FakeDevice device = new FakeDevice();
    FakeBackend backend = new FakeBackend("fake", DeviceType.CPU).prepares((c, w, d) -> sneaky(t));
    assertThatThrownBy(() -> LayerFixture.layer(device, backend, CONFIG))
        .isInstanceOf(t instanceof DeviceException ? DeviceException.class : MoeException.class)
        .hasMessageContaining("backend fake from ")
        .hasMessageContaining("mine");
  }

  /** Who interrupted a thread that fails because of that waits for it to end. */
  @Test
  void anInterruptThatAFailedPrepareLeaves() {
    assertThat(interruptedAfter(false, new IllegalStateException("mine"))).isFalse();
    assertThat(interruptedAfter(false, new IllegalArgumentException("mine"))).isFalse();
    assertThat(interruptedAfter(false, new NoClassDefFoundError("mine"))).isFalse();
    assertThat(interruptedAfter(true, new IllegalStateException("mine"))).isTrue();
    assertThat(interruptedAfter(false, new MoeException("mine", new InterruptedException())))
        .isTrue();
    assertThat(interruptedAfter(false, new ClosedByInterruptException())).isTrue();
  }

  private static boolean interruptedAfter(boolean before, Throwable thrown) {
    FakeBackend backend =
        new FakeBackend("fake", DeviceType.CPU)
            .prepares((c, w, d) -> {
              Thread.currentThread().interrupt();
              return sneaky(thrown);
            });
    if (before) {
      Thread.currentThread().interrupt();
    }
    try {
      assertThatThrownBy(() -> LayerFixture.layer(new FakeDevice(), backend, CONFIG))
          .hasStackTraceContaining(thrown.getClass().getName());
    } finally {
      before = Thread.interrupted();
    }
    return before;
  }

  @ParameterizedTest
  @MethodSource("everything")
  void ofApply(Throwable t) {
    FakeDevice device = new FakeDevice();
    AtomicInteger calls = new AtomicInteger();
    FakeExperts.Probe probe =
        new FakeExperts.Probe() {
          @Override
          public void inApply(Workspace workspace) {
            if (calls.getAndIncrement() == 0) {
              sneaky(t);
            }
          }
        };
    FakeBackend backend =
        new FakeBackend("fake", DeviceType.CPU)
            .withLora()
            .prepares((c, w, d) -> FakeExperts.lora(device, probe));
    try (MoeLayer layer = LayerFixture.layer(device, backend, CONFIG)) {
      Tensor in = LayerFixture.hidden(3);
      Tensor out = LayerFixture.zeros(3, LayerFixture.H);
      assertThatThrownBy(() -> layer.forward(in, out))
          .isInstanceOf(t instanceof DeviceException ? DeviceException.class : MoeException.class)
          .hasMessageContaining("backend fake from ")
          .hasMessageContaining("failed in a forward")
          .hasMessageContaining("mine");
      layer.forward(in, out); // the layer and its scratch go on
      assertThat(out.get(2, 0)).isEqualTo(LayerFixture.expected(2));
    }
  }

  @Test
  void aMessageThatCannotBeRead() {
    InternalError mute =
        new InternalError() {
          @Override
          public String getMessage() {
            throw new IllegalStateException("not yours");
          }
        };
    assertThat(Faults.isMemoryFault(mute)).isFalse();
    RuntimeException named = Faults.of("backend x", "failed", mute);
    assertThat(named)
        .isInstanceOf(MoeException.class)
        .hasMessageStartingWith("backend x failed: ")
        .hasMessageContaining("whose message cannot be read");
    named.printStackTrace(new PrintWriter(new StringWriter()));
  }

  @Test
  void kindsThatCallersLookForStayWhatTheyAre() {
    assertThat(Faults.of("x", "y", new AdapterException("a"))).isInstanceOf(AdapterException.class);
    assertThat(Faults.of("x", "y", new CheckpointException("a")))
        .isInstanceOf(CheckpointException.class);
  }

  /** A file that is cut when its layer has asked so many times. */
  private static final class Cut implements MemorySource {
    private int left;

    Cut(int intactFor) {
      left = intactFor;
    }

    @Override
    public void requireIntact() {
      if (left-- <= 0) {
        throw new CheckpointException("x.safetensors had 8 bytes and has 4 now");
      }
    }
  }

  private static MoeLayerWeights from(MemorySource source) {
    MoeLayerWeights w = LayerFixture.weights(CONFIG);
    List<ExpertWeights.Expert> experts =
        w.experts().experts().stream()
            .map(x ->
                ExpertWeights.Expert.of(
                    x.gate(),
                    x.up()
                        .withTensors(t ->
                            Tensor.of(
                                t.dtype(),
                                new HostMemory(((HostMemory) t.memory()).segment(), source),
                                t.shape())),
                    x.down()))
            .toList();
    return new MoeLayerWeights(new ExpertWeights(experts), w.router(), null, null);
  }

  private static MoeLayer.Builder builder(MemorySource source) {
    FakeDevice device = new FakeDevice();
    return MoeLayer.builder(CONFIG, from(source))
        .oracle(LayerFixture.oracle(device, LayerFixture.modular(device)));
  }

  @Test
  void filesAreAskedBeforeAndAfterEverything() {
    Tensor in = LayerFixture.hidden(3);
    Tensor out = LayerFixture.zeros(3, LayerFixture.H);
    for (int intactFor = 0; intactFor < 4; intactFor++) {
      MoeLayer.Builder builder = builder(new Cut(intactFor));
      if (intactFor < 2) { // before and after preparing
        assertThatThrownBy(builder::build).isInstanceOf(CheckpointException.class);
        continue;
      }
      try (MoeLayer layer = builder.build()) { // before and after computing
        assertThatThrownBy(() -> layer.forward(in, out))
            .isInstanceOf(CheckpointException.class)
            .hasMessage("x.safetensors had 8 bytes and has 4 now");
      }
    }
    try (MoeLayer layer = builder(new Cut(4)).build()) {
      layer.forward(in, out);
      assertThatThrownBy(() -> layer.forward(in, out)).isInstanceOf(CheckpointException.class);
    }
  }

  @Test
  void copiedWeightsAskNobody() {
    // Around each expert's copy, and around preparing; at no forward.
    try (MoeLayer layer = builder(new Cut(2 * LayerFixture.E + 2)).copyWeights().build()) {
      Tensor out = LayerFixture.zeros(3, LayerFixture.H);
      layer.forward(LayerFixture.hidden(3), out);
      assertThat(out.get(2, 0)).isEqualTo(LayerFixture.expected(2));
    }
  }

  @Test
  void copiesKnowTheirLayer() {
    try (Arena arena = Arena.ofConfined()) {
      MoeLayerWeights w = from(new Cut(100)).withLayerIndex(3);
      assertThat(WeightTensors.copyMapped(w, arena).layerIndex()).hasValue(3);
      assertThat(WeightTensors.copyMapped(from(new Cut(100)), arena).layerIndex()).isEmpty();
    }
  }

  @Test
  void readOnlyViewsOverlapToo() {
    FakeDevice device = new FakeDevice();
    try (MoeLayer layer = LayerFixture.layer(device, LayerFixture.modular(device), CONFIG)) {
      float[] array = new float[4 * LayerFixture.H];
      MemorySegment all = MemorySegment.ofArray(array);
      long row = 4L * LayerFixture.H;
      Tensor in = Tensor.of(DType.F32, all.asReadOnly().asSlice(0, 2 * row), 2, LayerFixture.H);
      Tensor same = Tensor.of(DType.F32, all.asSlice(0, 2 * row), 2, LayerFixture.H);
      Tensor half = Tensor.of(DType.F32, all.asSlice(row, 2 * row), 2, LayerFixture.H);
      Tensor apart = Tensor.of(DType.F32, all.asSlice(2 * row, 2 * row), 2, LayerFixture.H);
      for (Tensor out : List.of(same, half)) {
        assertThatThrownBy(() -> layer.forward(in, out))
            .isInstanceOf(IllegalArgumentException.class)
            .hasMessage("output overlaps hidden, they must be apart");
      }
      layer.forward(in, apart);
      Tensor native1 =
          Tensor.of(DType.F32, Arena.ofAuto().allocate(2 * row, 64), 2, LayerFixture.H);
      Tensor readOnly = Tensor.of(DType.F32, native1.segment().asReadOnly(), 2, LayerFixture.H);
      assertThatThrownBy(() -> layer.forward(readOnly, native1))
          .hasMessage("output overlaps hidden, they must be apart");
      layer.forward(readOnly, apart);
    }
  }
}
