package io.moe4j.tck;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.reference.ReferenceMoe;
import java.util.List;
import java.util.Optional;
import java.util.OptionalLong;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.TestInstance;

/**
 * The operations that {@link BlockOpsConformanceTest} is about, their device, and what they are
 * compared with.
 */
@TestInstance(TestInstance.Lifecycle.PER_CLASS)
abstract class BlockSubject {
  private final Skipped skipped = new Skipped();
  private @Nullable Device openDevice;

  BlockSubject() {}

  /** {@return who makes the operations under test} */
  protected abstract BlockOpsProvider blockOps();

  /**
   * {@return an open device for the operations; by default the preferred one that a {@link
   * io.moe4j.api.device.DeviceProvider} on the class path opens. Closed after the tests}
   */
  protected Device openDevice() {
    return Devices.open(blockOps().deviceType());
  }

  /**
   * {@return what adds deltas where the operations do not fuse them; by default one that computes
   * on the host}
   *
   * @param device the open device
   */
  protected PunicaWrapper punicaWrapper(Device device) {
    return new KitPunicaWrapper(device);
  }

  /**
   * {@return device memory in use, for MOE-6.4. The default, empty, counts what is taken through
   * {@link Device#allocate}, which suits operations that accept any {@code Device} object of their
   * type; others know it from their driver}
   */
  protected OptionalLong deviceBytesInUse() {
    return OptionalLong.empty();
  }

  /** Opens the device. */
  @BeforeAll
  public final void openKit() {
    openDevice = openDevice();
  }

  /** Closes the device. */
  @AfterAll
  public final void closeKit() {
    if (openDevice != null) {
      skipped.print("the block on " + blockOps().deviceType());
      openDevice.close();
    }
  }

  final BlockOps prepare(MoeConfig config, MoeLayerWeights weights) {
    Support support = blockOps().isSupportedConfig(config);
    if (!support.isSupported()) {
      skipped.add(support.reasons().getFirst().code().toString(), support.toString());
      Assumptions.abort("unsupported: " + support);
    }
    return blockOps().prepare(config, weights, device());
  }

  final Device device() {
    if (openDevice == null) {
      throw new IllegalStateException("the device is not open");
    }
    return openDevice;
  }

  static Tensor hidden(MoeConfig config, Data data, int tokens) {
    return data.normal(config.inputDtype(), 1, tokens, config.hiddenSize());
  }

  static double tolerance(MoeConfig config, DType output) {
    int shared = config.sharedExpert().map(SharedExpertConfig::intermediateSize).orElse(1);
    return Tolerance.block(config.inputDtype(), output, Math.max(config.hiddenSize(), shared));
  }

  static List<Optional<LoraLayer>> denseAdapters(MoeConfig config, Data data) {
    return List.of(
        Optional.of(Adapters.dense(config, data, config.weightDtype(), 5)),
        Optional.empty(),
        Optional.of(Adapters.dense(config, data, config.weightDtype(), 16)),
        Optional.of(LoraLayer.NONE));
  }

  static int[] mapping(int tokens) {
    int[] mapping = new int[tokens];
    for (int t = 0; t < tokens; t++) {
      mapping[t] = new int[] {2, -1, 0, 0, 3, 1}[t % 6];
    }
    return mapping;
  }

  static @Nullable LoraLayer adapter(List<Optional<LoraLayer>> slots, int slot) {
    return slot < 0 ? null : slots.get(slot).orElse(null);
  }

  final MoeLoraContext context(Bench bench, List<Optional<LoraLayer>> slots, int[] mapping) {
    return new KitLoraContext(
        slots.stream()
            .map(slot -> slot.map((LoraLayer layer) -> KitLoraContext.map(layer, bench::input)))
            .toList(),
        bench.input(Tensor.ofInts(mapping, mapping.length)),
        mapping.length > 0,
        punicaWrapper(device()));
  }

  static double[][] outputOf(
      MoeConfig config,
      MoeLayerWeights weights,
      Tensor hidden,
      Tensor routed,
      List<Optional<LoraLayer>> slots,
      int @Nullable [] mapping) {
    double[][] rows = new double[Math.toIntExact(hidden.size(0))][];
    for (int t = 0; t < rows.length; t++) {
      LoraLayer lora = mapping == null ? null : adapter(slots, mapping[t]);
      double[] row = routed.select(0, t).toDoubles();
      if (weights.latent() != null) {
        row = ReferenceMoe.latentOut(weights.latent(), row, lora);
      }
      if (weights.shared() != null) {
        double[] shared =
            ReferenceMoe.sharedExpert(
                config.sharedExpert().orElseThrow(),
                weights.shared(),
                hidden.select(0, t).toDoubles(),
                lora);
        for (int h = 0; h < row.length; h++) {
          row[h] += shared[h];
        }
      }
      rows[t] = row;
    }
    return rows;
  }
}
