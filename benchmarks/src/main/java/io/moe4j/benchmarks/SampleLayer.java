package io.moe4j.benchmarks;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.backend.cpu.CpuDeviceProvider;
import io.moe4j.backend.cpu.CpuExpertsBackend;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.jspecify.annotations.Nullable;

/**
 * A layer with random weights, several copies of it where one would fit into a cache, and routings
 * drawn beforehand: each call takes the next copy and the next routing, so that nothing is warm.
 */
final class SampleLayer implements AutoCloseable {
  private static final long COLD_BYTES = 700L << 20;
  private static final int MAX_COPIES = 6;
  private static final int ROUTINGS = 16;
  private static final int PATTERN = 4096;

  private final LayerShape shape;
  private final DType dtype;
  private final Arena arena = Arena.ofShared();
  private final Random random = new Random(7);
  private final ModularExperts[] copies;
  private final ExpertsInputs[] inputs = new ExpertsInputs[ROUTINGS];
  private final double[] expertsTouched = new double[ROUTINGS];
  private final @Nullable MoeLoraContext lora;
  private final Device.Buffer workspaceBuffer;
  private final Workspace workspace;
  private final int tokens;
  private int calls;

  /**
   * @param adapters adapters of the batch, round robin; 0 = no LoRA
   * @param rank of each
   */
  SampleLayer(LayerShape shape, DType dtype, int tokens, int adapters, int rank) {
    this.shape = shape;
    this.dtype = dtype;
    this.tokens = tokens;
    MoeConfig.Builder b =
        MoeConfig.builder(shape.hidden, shape.intermediate, shape.experts, shape.topK)
            .weightDtype(dtype)
            .maxTokens(tokens);
    MoeConfig config = (adapters > 0 ? b.lora(new LoraConfig(adapters, rank)) : b).build();
    long bytes = dtype.byteSize(shape.expertElements()) * shape.experts;
    Device device = new CpuDeviceProvider().open(0);
    copies = new ModularExperts[(int) Math.min(MAX_COPIES, Math.ceilDiv(COLD_BYTES, bytes))];
    for (int i = 0; i < copies.length; i++) {
      copies[i] =
          (ModularExperts)
              new CpuExpertsBackend().prepare(config, new ExpertWeights(experts()), device);
    }
    Tensor hidden = tensor(DType.F32, tokens, shape.hidden);
    Tensor output = tensor(DType.F32, tokens, shape.hidden);
    for (int i = 0; i < ROUTINGS; i++) {
      inputs[i] = ExpertsInputs.standard(hidden, routing(i), output);
    }
    lora = adapters > 0 ? context(adapters, rank) : null;
    workspaceBuffer = device.allocate(copies[0].workspaceBytes(tokens));
    workspace = new Workspace(workspaceBuffer.memory());
  }

  /** One forward of the routed experts. */
  void forward() {
    int call = calls++;
    copies[call % copies.length].apply(inputs[call % ROUTINGS], lora, workspace, DeviceStream.HOST);
  }

  /** {@return bytes that a call must read at least: touched weights and the hidden states} */
  double bytes() {
    double experts = Arrays.stream(expertsTouched).average().orElseThrow();
    return experts * dtype.byteSize(shape.expertElements()) + 8.0 * tokens * shape.hidden;
  }

  /** {@return multiplications and additions of a call} */
  double flops() {
    return 2.0 * tokens * shape.topK * shape.expertElements();
  }

  private List<ExpertWeights.Expert> experts() {
    List<ExpertWeights.Expert> list = new ArrayList<>();
    for (int e = 0; e < shape.experts; e++) {
      list.add(
          ExpertWeights.Expert.plain(
              tensor(dtype, shape.intermediate, shape.hidden),
              tensor(dtype, shape.intermediate, shape.hidden),
              tensor(dtype, shape.hidden, shape.intermediate)));
    }
    return list;
  }

  /** Normal numbers of a standard deviation of 0.02, a short pattern repeated. */
  private Tensor tensor(DType type, long... sizes) {
    long count = Arrays.stream(sizes).reduce(1, (a, b) -> a * b);
    MemorySegment s = arena.allocate(type.byteSize(count), 64);
    Tensor pattern = Tensor.of(type, arena.allocate(type.byteSize(PATTERN), 64), PATTERN);
    for (int i = 0; i < PATTERN; i++) {
      pattern.set(random.nextGaussian() * 0.02, i);
    }
    MemorySegment from = pattern.segment();
    for (long at = 0; at < s.byteSize(); at += from.byteSize()) {
      MemorySegment.copy(from, 0, s, at, Math.min(from.byteSize(), s.byteSize() - at));
    }
    return Tensor.of(type, s, sizes);
  }

  private ExpertRouting routing(int which) {
    MemorySegment ids = arena.allocate(4L * tokens * shape.topK, 64);
    boolean[] touched = new boolean[shape.experts];
    for (int t = 0; t < tokens; t++) {
      int[] chosen = random.ints(0, shape.experts).distinct().limit(shape.topK).toArray();
      for (int k = 0; k < shape.topK; k++) {
        ids.setAtIndex(ValueLayout.JAVA_INT, (long) t * shape.topK + k, chosen[k]);
        expertsTouched[which] += touched[chosen[k]] ? 0 : 1;
        touched[chosen[k]] = true;
      }
    }
    return new ExpertRouting(
        Tensor.of(DType.I32, ids, tokens, shape.topK), tensor(DType.F32, tokens, shape.topK), null);
  }

  private MoeLoraContext context(int adapters, int rank) {
    List<LoraLayer> slots = new ArrayList<>();
    for (int i = 0; i < adapters; i++) {
      Tensor a = tensor(dtype, shape.experts, rank, shape.hidden);
      slots.add(
          new LoraLayer(
              Map.of(
                  LoraTarget.GATE,
                  new LoraFactors(a, packedB(rank, shape.intermediate)),
                  LoraTarget.UP,
                  new LoraFactors(a, packedB(rank, shape.intermediate)),
                  LoraTarget.DOWN,
                  new LoraFactors(
                      tensor(dtype, shape.experts, rank, shape.intermediate),
                      packedB(rank, shape.hidden)))));
    }
    MemorySegment mapping = arena.allocate(4L * tokens, 64);
    for (int t = 0; t < tokens; t++) {
      mapping.setAtIndex(ValueLayout.JAVA_INT, t, t % adapters);
    }
    return new Slots(slots, Tensor.of(DType.I32, mapping, tokens));
  }

  /** {@code [E, out, r]} with dense columns, the fastest layout for the CPU kernels. */
  private Tensor packedB(int rank, int out) {
    return tensor(dtype, shape.experts, rank, out).transpose(1, 2);
  }

  private record Slots(List<LoraLayer> layers, Tensor tokenLoraMapping) implements MoeLoraContext {
    @Override
    public int maxLoras() {
      return layers.size();
    }

    @Override
    public boolean hasLora() {
      return true;
    }

    @Override
    public @Nullable LoraLayer slot(int slot) {
      return layers.get(slot);
    }

    @Override
    public PunicaWrapper punicaWrapper() {
      throw new IllegalStateException("the CPU backend fuses LoRA");
    }

    @Override
    public MoeLoraContext withTokenLoraMapping(Tensor mapping) {
      return new Slots(layers, mapping);
    }
  }

  @Override
  public void close() {
    for (ModularExperts e : copies) {
      e.close();
    }
    workspaceBuffer.close();
    arena.close();
  }
}
