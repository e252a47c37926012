package io.moe4j.tck;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.spi.MonolithicExperts;
import io.moe4j.api.spi.MonolithicInputs;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.HashMap;
import java.util.Map;
import java.util.zip.CRC32C;
import org.jspecify.annotations.Nullable;

/**
 * One batch on the device: every tensor copied between guard bands, one or more calls of {@code
 * apply}, and afterwards a look at everything that had to stay as it was.
 */
final class Harness implements AutoCloseable {
  private final Device device;
  private final DeviceStream stream;
  private final Problem problem;
  private final Problem.@Nullable Batched batched;
  private final Experts experts;
  private final Map<Memory, Guarded> inputs = new HashMap<>();
  private final Tensor hidden;
  private final Tensor routerLogits;
  private final @Nullable Tensor correctionBias;
  private final @Nullable ExpertRouting routing;
  private final @Nullable Tensor expertNumTokens;
  private final @Nullable MoeLoraContext lora;
  private final Guarded outputMemory;
  private final Guarded workspaceMemory;
  private final Tensor output;
  private final long weightsChecksum;

  /**
   * @param device where to
   * @param wrapper for contexts
   * @param problem the batch
   * @param experts prepared from the problem's config and weights
   */
  Harness(Device device, PunicaWrapper wrapper, Problem problem, Experts experts) {
    this.device = device;
    this.stream = device.defaultStream();
    this.problem = problem;
    this.experts = experts;
    this.weightsChecksum = checksum(problem);
    boolean standard =
        problem.config.activationFormat() == io.moe4j.api.config.ActivationFormat.STANDARD;
    this.batched = standard ? null : problem.new Batched();
    this.hidden = input(batched == null ? problem.hidden : batched.hidden);
    this.routerLogits = input(problem.logits);
    this.correctionBias = problem.correctionBias == null ? null : input(problem.correctionBias);
    Tensor map = problem.expertMap();
    this.routing =
        standard
            ? new ExpertRouting(
                input(problem.ids), input(problem.topkWeights), map == null ? null : input(map))
            : null;
    this.expertNumTokens = batched == null ? null : input(batched.expertNumTokens);
    this.lora = lora(wrapper);
    this.outputMemory =
        Guarded.empty(
            device, stream, problem.outputDtype.byteSize(hidden.elementCount()), problem.shift);
    this.output = outputMemory.tensor(problem.outputDtype, hidden.shape());
    this.workspaceMemory = Guarded.empty(device, stream, experts.workspaceBytes(rows()), 0);
    stream.synchronize();
  }

  /** What {@code workspaceBytes} is asked for: tokens, or rows of an expert. */
  private int rows() {
    return batched == null ? problem.tokens : Math.toIntExact(batched.hidden.size(1));
  }

  /** Tensors over one memory stay so: fused adapters share a factor. */
  private Tensor input(Tensor host) {
    return inputs
        .computeIfAbsent(
            host.memory(),
            memory -> {
              MemorySegment segment = ((HostMemory) memory).segment();
              return Guarded.of(
                  device, stream, segment.toArray(ValueLayout.JAVA_BYTE), problem.shift);
            })
        .like(host);
  }

  private @Nullable MoeLoraContext lora(PunicaWrapper wrapper) {
    if (problem.slots.isEmpty()) {
      return null;
    }
    Tensor mapping =
        batched == null ? Tensor.ofInts(problem.mapping, problem.tokens) : batched.mapping;
    var slots =
        problem.slots.stream()
            .map(slot -> slot.map((LoraLayer layer) -> KitLoraContext.map(layer, this::input)))
            .toList();
    boolean hasLora = java.util.Arrays.stream(problem.mapping).anyMatch(s -> s >= 0);
    return new KitLoraContext(slots, input(mapping), hasLora, wrapper);
  }

  /** Calls {@code apply} and waits. */
  void apply() {
    var workspace = workspaceMemory.workspace();
    switch (experts) {
      case ModularExperts modular -> {
        ExpertsInputs call =
            routing != null
                ? ExpertsInputs.standard(hidden, routing, output)
                : ExpertsInputs.batched(
                    hidden, java.util.Objects.requireNonNull(expertNumTokens), output);
        modular.apply(call, lora, workspace, stream);
      }
      case MonolithicExperts monolithic ->
          monolithic.apply(
              new MonolithicInputs(hidden, routerLogits, correctionBias, output),
              lora,
              workspace,
              stream);
    }
    stream.synchronize();
  }

  /**
   * {@return the result, in the order of {@link
   * Problem#truth(io.moe4j.api.config.ActivationFormat)}}
   */
  double[][] result() {
    Tensor host = Data.empty(problem.outputDtype, output.shape());
    device.copy(output, host, stream);
    stream.synchronize();
    if (batched != null) {
      return batched.rows(host);
    }
    double[][] rows = new double[problem.tokens][];
    for (int t = 0; t < rows.length; t++) {
      rows[t] = host.select(0, t).toDoubles();
    }
    return rows;
  }

  /** {@return the output's bytes} */
  byte[] outputBytes() {
    return outputMemory.content();
  }

  /** Fails if anything but output and workspace was written (MOE-3.1, MOE-3.2). */
  void requireNothingElseWritten() {
    outputMemory.requireBandsIntact("the output " + output);
    workspaceMemory.requireBandsIntact(
        "the workspace of " + experts.workspaceBytes(rows()) + " bytes");
    inputs.forEach((memory, guarded) ->
        guarded.requireUnchanged("a tensor of " + memory.byteSize() + " bytes"));
    if (checksum(problem) != weightsChecksum) {
      throw new AssertionError("MOE-3.2: the weights given to prepare were written");
    }
  }

  private static long checksum(Problem problem) {
    CRC32C crc = new CRC32C();
    for (Tensor t : Layout.tensors(problem.weights)) {
      if (t != null && t.memory() instanceof HostMemory(MemorySegment segment, var _)) {
        crc.update(segment.asByteBuffer());
      }
    }
    return crc.getValue();
  }

  @Override
  public void close() {
    inputs.values().forEach(Guarded::close);
    outputMemory.close();
    workspaceMemory.close();
  }
}
