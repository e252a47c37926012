package io.moe4j.cli.bench;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.device.Device;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.SlotsKey;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.TunableBackend;
import io.moe4j.api.spi.Tuner;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.function.BooleanSupplier;
import org.jspecify.annotations.Nullable;

/**
 * Tunes layers on a device: for each set of adapters and each number of tokens, forwards of random
 * hidden states to random experts are given to the backend's tuner. Not thread-safe.
 */
public final class DeviceTuning {
  /** What is left free of a device's memory: contexts, kernels, workspaces. */
  private static final double MEMORY = 0.9;

  /**
   * A layer to tune.
   *
   * @param name as tables show it
   * @param config without LoRA, hidden states in 16 bits
   * @param weights of the experts; null = random ones of the config's sizes, as it stores them
   */
  public record Layer(String name, MoeConfig config, @Nullable ExpertWeights weights) {}

  /**
   * What was found for one size.
   *
   * @param layer its name
   * @param tokens {@code T}
   * @param lora adapters
   * @param outcome of the search
   */
  public record Row(String layer, int tokens, DeviceBench.Lora lora, Tuner.Outcome outcome) {}

  /** Told what happens. */
  public interface Listener {
    /**
     * A measurement begins.
     *
     * @param what layer, tokens, adapters and variant
     */
    void doing(String what);

    /**
     * Something is left out.
     *
     * @param sizes how many sizes
     * @param why a readable clause
     */
    void skipped(int sizes, String why);

    /**
     * A size is done, and in the file.
     *
     * @param row what was found
     */
    void found(Row row);
  }

  private final TunableBackend backend;
  private final Device device;
  private final Path file;

  /**
   * Keeps what it works with.
   *
   * @param backend whose kernels
   * @param device an open device of it; stays the caller's
   * @param file where choices go
   */
  public DeviceTuning(TunableBackend backend, Device device, Path file) {
    this.backend = backend;
    this.device = device;
    this.file = file;
  }

  /**
   * Tunes a layer.
   *
   * @param layer what to tune
   * @param tokens numbers of tokens
   * @param grid sets of adapters
   * @param goOn asked between measurements
   * @param listener told what happens
   * @return whether everything was measured or skipped; false if {@code goOn} ended it
   */
  public boolean run(
      Layer layer,
      List<Integer> tokens,
      List<DeviceBench.Lora> grid,
      BooleanSupplier goOn,
      Listener listener) {
    MoeConfig config = layer.config();
    BenchShape shape =
        new BenchShape(
            layer.name(),
            config.numLocalExperts(),
            config.topK(),
            config.expertHiddenSize(),
            config.intermediateSize());
    String tooLarge = tooLarge(layer, shape, DeviceBench.Lora.NONE);
    if (tooLarge != null) {
      listener.skipped(tokens.size() * grid.size(), tooLarge);
      return true;
    }
    DType dtype = config.weightDtype();
    try (DeviceModel model = new DeviceModel(shape, device, dtype, config.activation().isGated())) {
      ExpertWeights weights = layer.weights() != null ? layer.weights() : random(model, config);
      for (DeviceBench.Lora lora : grid) {
        tooLarge = tooLarge(layer, shape, lora);
        if (tooLarge != null) {
          listener.skipped(tokens.size(), tooLarge);
        } else if (!run(layer, shape, model, weights, tokens, lora, goOn, listener)) {
          return false;
        }
      }
    }
    return true;
  }

  private static ExpertWeights random(DeviceModel model, MoeConfig config) {
    QuantScheme scheme = config.uniformScheme().orElse(QuantScheme.NONE);
    return scheme.isNone()
        ? model.experts()
        : model.weights(BenchWeights.of(scheme).orElseThrow()).experts();
  }

  private boolean run(
      Layer layer,
      BenchShape shape,
      DeviceModel model,
      ExpertWeights weights,
      List<Integer> tokens,
      DeviceBench.Lora lora,
      BooleanSupplier goOn,
      Listener listener) {
    MoeConfig.Builder b =
        layer.config().toBuilder().maxTokens(tokens.stream().mapToInt(t -> t).max().orElse(1));
    if (lora.adapters() > 0) {
      b.lora(new LoraConfig(lora.adapters(), lora.rank()));
    }
    MoeConfig config = b.build();
    DType dtype = config.weightDtype();
    try (DeviceModel factors = model.more();
        Tuner tuner = backend.tuner(config, weights, device, file)) {
      List<LoraLayer> slots = new ArrayList<>();
      SlotsKey key = new SlotsKey("tune");
      for (int a = 0; a < lora.adapters(); a++) {
        slots.add(factors.adapter(lora.rank()));
      }
      for (int t : tokens) {
        String what =
            layer.name()
                + " T="
                + t
                + (slots.isEmpty() ? "" : " rank " + lora.rank() + " x " + slots.size());
        try (DeviceModel memory = factors.more()) {
          Optional<Tuner.Outcome> found =
              goOn.getAsBoolean()
                  ? tuner.tune(
                      pass(memory, shape, t, slots, key, dtype),
                      goOn,
                      variant -> listener.doing(what + ", " + variant))
                  : Optional.empty();
          if (found.isEmpty()) {
            return false;
          }
          listener.found(new Row(layer.name(), t, lora, found.get()));
        }
      }
    }
    return true;
  }

  private static List<Tuner.Call> pass(
      DeviceModel memory,
      BenchShape shape,
      int tokens,
      List<LoraLayer> slots,
      SlotsKey key,
      DType dtype) {
    List<Tuner.Call> pass = new ArrayList<>();
    float[] weights = new float[tokens * shape.topK()];
    Arrays.fill(weights, 1f / shape.topK());
    for (DeviceBatch batch : DeviceBatch.rotating(shape, tokens)) {
      ExpertRouting routing =
          new ExpertRouting(
              memory.put(batch.ids(tokens)),
              memory.put(Tensor.ofFloats(weights, tokens, shape.topK())),
              null);
      pass.add(
          new Tuner.Call(
              ExpertsInputs.standard(
                  memory.unitHidden(tokens),
                  routing,
                  memory.empty(dtype, tokens, shape.hiddenSize())),
              slots.isEmpty()
                  ? null
                  : new DeviceAdapters(
                      key,
                      slots,
                      memory.put(batch.mapping(tokens, slots.size())),
                      () -> {
                        throw new IllegalStateException(
                            "moe tune measures backends that fuse LoRA");
                      })));
    }
    return pass;
  }

  /** {@return why a layer with adapters cannot be measured here, or null} */
  private @Nullable String tooLarge(Layer layer, BenchShape shape, DeviceBench.Lora lora) {
    DType dtype = layer.config().weightDtype();
    double weights = shape.weightBytes(dtype);
    // Random weights are there twice while the backend has its own copy.
    double needed = layer.weights() == null ? 2 * weights : weights;
    double perRank = (double) shape.hiddenSize() + shape.intermediateSize();
    needed +=
        3.0 * lora.adapters() * shape.numExperts() * lora.rank() * perRank * dtype.byteSize(1);
    double there = device.info().memoryBytes() * MEMORY;
    if (there <= 0 || needed <= there) {
      return null;
    }
    return layer.name()
        + (lora.adapters() == 0
            ? ""
            : " with " + lora.adapters() + " adapters of rank " + lora.rank())
        + " is left out: it takes "
        + Math.round(needed / (1 << 30))
        + " GiB, and the device has "
        + (device.info().memoryBytes() >> 30);
  }
}
