package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;

/**
 * Compares a layer on any device with its recorded tensors.
 *
 * @param fixture the model
 * @param index of the layer
 * @param who computes, for messages
 * @param hidden dtype that the recorded hidden states are rounded to
 * @param tolerance largest relative L2 error of outputs, logits and weights
 * @param undecided a choice between experts whose recorded scores differ by no more than this may
 *     go either way, as a fraction of the scores' spread
 * @param truth the reference on the host, to be given the same rounded hidden states, where
 *     rounding alone costs more than the tolerance; null = the recorded outputs
 */
record LayerCheck(
    Fixture fixture,
    int index,
    String who,
    DType hidden,
    double tolerance,
    double undecided,
    @Nullable MoeLayer truth) {
  /** In f32: nothing is rounded, nothing is undecided. */
  static LayerCheck exact(Fixture fixture, int index, String who) {
    return new LayerCheck(fixture, index, who, DType.F32, 1e-5, 0, null);
  }

  void all(MoeLayer layer) {
    all(layer, fixture.registry);
  }

  void all(MoeLayer layer, AdapterRegistry registry) {
    all(layer, registry, "");
  }

  /**
   * Every adapter and mixed batches.
   *
   * @param kind of recorded outputs: empty, or {@code .actquant} for those with activations
   *     quantised as the checkpoint means them
   */
  void all(MoeLayer layer, AdapterRegistry registry, String kind) {
    int tokens = tokens();
    for (String name : fixture.order) {
      String adapter = name.equals("base") ? null : name;
      output(layer, registry, "output." + name + kind, Collections.nCopies(tokens, adapter));
    }
    if (fixture.has(key("output.mixed" + kind))) {
      output(layer, registry, "output.mixed" + kind, assignment("mixed"));
    }
    if (fixture.name.startsWith("fixtures/")) {
      output(layer, registry, "output.mixed_peft", assignment("mixed_peft"));
    } else {
      roundRobin(layer, registry, kind);
    }
  }

  /** Nothing mixed was recorded, but every row of a mixed batch was. */
  private void roundRobin(MoeLayer layer, AdapterRegistry registry, String kind) {
    int tokens = tokens();
    int width = layer.config().hiddenSize();
    List<@Nullable String> names = new ArrayList<>();
    double[] expected = new double[tokens * width];
    for (int t = 0; t < tokens; t++) {
      String name = fixture.order.get(t % fixture.order.size());
      names.add(name.equals("base") ? null : name);
      double[] row = golden("output." + name + kind).select(0, t).toDoubles();
      System.arraycopy(row, 0, expected, t * width, width);
    }
    close(
        "round robin",
        wide(run(layer, registry, names, true)),
        truth == null ? expected : wide(run(truth, fixture.registry, names, false)));
  }

  private void output(
      MoeLayer layer, AdapterRegistry registry, String what, List<@Nullable String> names) {
    close(
        what,
        wide(run(layer, registry, names, true)),
        truth == null
            ? golden(what).toDoubles()
            : wide(run(truth, fixture.registry, names, false)));
  }

  /** Runs the block; with {@code route}, checks logits and choice where they were recorded. */
  float[] run(
      MoeLayer layer, AdapterRegistry registry, List<@Nullable String> names, boolean route) {
    int tokens = tokens();
    MoeConfig config = layer.config();
    try (Room room = new Room(layer.device());
        AdapterBatch batch = registry.batch(names)) {
      Tensor output = room.empty(DType.F32, tokens, config.hiddenSize());
      Tensor ids = room.empty(DType.I32, tokens, config.topK());
      Tensor weights = room.empty(DType.F32, tokens, config.topK());
      Tensor logits = room.empty(DType.F32, tokens, config.numChoices());
      MoeForward request =
          MoeForward.of(room.put(rounded(golden("input"))), output)
              .topkInto(ids, weights)
              .logitsInto(logits);
      if (config.routing().byTokenId()) {
        request = request.withTokenIds(room.put(golden("token_ids")));
      }
      layer.forward(batch.numAdapters() == 0 ? request : request.withLora(batch.context(index)));
      if (route) {
        routing(
            tokens,
            config.topK(),
            room.get(ids).toInts(),
            room.get(weights).toFloats(),
            room.get(logits).toFloats());
      }
      return room.get(output).toFloats();
    }
  }

  private Tensor rounded(Tensor from) {
    if (from.dtype() == hidden) {
      return from;
    }
    Tensor to = Room.host(hidden, from.shape());
    Tensor a = from.reshape(from.elementCount());
    Tensor b = to.reshape(to.elementCount());
    for (long i = 0; i < a.size(0); i++) {
      b.set(a.get(i), i);
    }
    return to;
  }

  private void routing(int tokens, int topK, int[] ids, float[] weights, float[] logits) {
    boolean all = fixture.name.startsWith("fixtures/");
    if (all || fixture.has(key("router_logits"))) {
      close("router_logits", wide(logits), golden("router_logits").toDoubles());
    }
    if (all || fixture.has(key("topk_ids"))) {
      choice(tokens, topK, ids, weights);
    }
  }

  /** The adapter of each row of a recorded mixed batch. */
  List<@Nullable String> assignment(String mixed) {
    List<String> order = fixture.order(mixed);
    List<@Nullable String> names = new ArrayList<>();
    for (int number : fixture.io.tensor(mixed + ".assignment").toInts()) {
      names.add(number == 0 ? null : order.get(number));
    }
    assertThat(names).hasSize(tokens()).contains((String) null);
    return names;
  }

  private int tokens() {
    return (int) golden("input").size(0);
  }

  private String key(String what) {
    return "layers." + index + "." + what;
  }

  Tensor golden(String what) {
    return fixture.io.tensor(key(what));
  }

  void close(String what, double[] actual, double[] golden) {
    assertThat(actual).hasSize(golden.length);
    double error = relativeError(actual, golden);
    assertThat(error)
        .as("%s layer %d %s on %s", fixture.name, index, what, who)
        .isLessThanOrEqualTo(tolerance);
  }

  private static double[] wide(float[] values) {
    double[] wide = new double[values.length];
    Arrays.setAll(wide, i -> values[i]);
    return wide;
  }

  /** The order of ids is undefined in places, so each token's choice is compared as a set. */
  private void choice(int tokens, int topK, int[] ids, float[] weights) {
    int[] goldenIds = golden("topk_ids").toInts();
    boolean weighted = fixture.name.startsWith("fixtures/") || fixture.has(key("topk_weights"));
    double[] goldenWeights =
        weighted ? golden("topk_weights").toDoubles() : new double[weights.length];
    double[] byExpert = new double[weights.length];
    double[] goldenByExpert = new double[weights.length];
    for (int t = 0; t < tokens; t++) {
      Map<Integer, Double> chosen = new TreeMap<>();
      Map<Integer, Double> expected = new TreeMap<>();
      for (int p = t * topK; p < (t + 1) * topK; p++) {
        chosen.put(ids[p], (double) weights[p]);
        expected.put(goldenIds[p], goldenWeights[p]);
      }
      if (!chosen.keySet().equals(expected.keySet()) && mayDiffer(t, topK)) {
        continue;
      }
      assertThat(chosen.keySet()).as("experts of token %d", t).isEqualTo(expected.keySet());
      int at = t * topK;
      for (int e : chosen.keySet()) {
        byExpert[at] = chosen.getOrDefault(e, Double.NaN);
        goldenByExpert[at++] = expected.getOrDefault(e, Double.NaN);
      }
    }
    if (weighted) {
      close("topk_weights", byExpert, goldenByExpert);
    }
  }

  /** Whether the last chosen and the first left out are closer than rounding can tell apart. */
  private boolean mayDiffer(int token, int topK) {
    if (undecided == 0) {
      return false;
    }
    double[] scores = golden("router_logits").select(0, token).toDoubles();
    Arrays.sort(scores);
    int n = scores.length;
    return scores[n - topK] - scores[n - topK - 1] <= undecided * (scores[n - 1] - scores[0]);
  }

  /** L2 norm of the difference over that of the expected. */
  private static double relativeError(double[] actual, double[] expected) {
    double difference = 0;
    double norm = 0;
    for (int i = 0; i < expected.length; i++) {
      difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
      norm += expected[i] * expected[i];
    }
    return Math.sqrt(difference / norm);
  }

  /** A request's tensors: on the host, or in buffers of a device. */
  private static final class Room implements AutoCloseable {
    private final Device device;
    private final List<Device.Buffer> buffers = new ArrayList<>();

    Room(Device device) {
      this.device = device;
    }

    static Tensor host(DType dtype, long... shape) {
      long count = Arrays.stream(shape).reduce(1, Math::multiplyExact);
      byte[] bytes = new byte[Math.toIntExact(dtype.byteSize(count))];
      return Tensor.of(dtype, MemorySegment.ofArray(bytes), shape);
    }

    private boolean onHost() {
      return device.info().id().type().equals(DeviceType.CPU);
    }

    Tensor empty(DType dtype, long... shape) {
      if (onHost()) {
        return host(dtype, shape);
      }
      Tensor like = host(dtype, shape);
      Device.Buffer buffer = device.allocate(dtype.byteSize(like.elementCount()));
      buffers.add(buffer);
      return Tensor.of(dtype, buffer.memory(), shape);
    }

    Tensor put(Tensor from) {
      if (onHost()) {
        return from;
      }
      Tensor to = empty(from.dtype(), from.shape());
      device.copy(from, to, device.defaultStream());
      return to;
    }

    Tensor get(Tensor from) {
      if (from.isHost()) {
        return from;
      }
      Tensor to = host(from.dtype(), from.shape());
      device.copy(from, to, device.defaultStream());
      device.defaultStream().synchronize();
      return to;
    }

    @Override
    public void close() {
      device.defaultStream().synchronize();
      buffers.forEach(Device.Buffer::close);
    }
  }
}
