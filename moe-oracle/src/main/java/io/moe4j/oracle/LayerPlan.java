package io.moe4j.oracle;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.LatentWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.OptionalLong;
import org.jspecify.annotations.Nullable;

/**
 * What a layer will take, known before it is built.
 *
 * @param backend who would compute it
 * @param device where
 * @param weightBytes bytes of all weights. Read in place by {@code backend-cpu}; uploaded by
 *     backends of a GPU. Empty where weights are quantised: {@link MoeLayer#stats()} has them
 * @param scratchBytes bytes that one forward of {@code config.maxTokens} tokens holds while it
 *     runs, everything between input and output: each layer with a pool of its own takes this for
 *     each forward at a time, layers with a common {@link ScratchPool} take the largest once. Empty
 *     where only a build can tell: quantised weights, and devices other than the host
 * @since 0.1.0
 */
public record LayerPlan(
    String backend, DeviceId device, OptionalLong weightBytes, OptionalLong scratchBytes) {

  static LayerPlan of(MoeConfig config, MoeOracle oracle, @Nullable String backend) {
    Selection s = oracle.select(config, oracle.catalog().detectPlatform(), backend);
    FoundBackend chosen = s.chosenBackend();
    DeviceId id = s.platform().device(chosen.deviceType()).map(DeviceInfo::id).orElseThrow();
    if (config.isQuantized()) {
      return new LayerPlan(chosen.name(), id, OptionalLong.empty(), OptionalLong.empty());
    }
    try (Arena arena = Arena.ofShared()) {
      MoeLayerWeights ghost = ghost(config, arena);
      OptionalLong scratch = OptionalLong.empty();
      if (chosen.deviceType().equals(DeviceType.CPU)) {
        scratch = OptionalLong.of(scratch(config, ghost, oracle, chosen, id));
      }
      return new LayerPlan(
          chosen.name(), id, OptionalLong.of(WeightTensors.byteSize(ghost)), scratch);
    }
  }

  private static long scratch(
      MoeConfig config, MoeLayerWeights ghost, MoeOracle oracle, FoundBackend chosen, DeviceId id) {
    List<AutoCloseable> owned = new ArrayList<>();
    try {
      Device device = oracle.catalog().openDevice(chosen, id);
      owned.add(device);
      return LayerParts.prepare(
              config,
              ghost,
              oracle.catalog(),
              chosen,
              device,
              Exchanges.choose(config, null, oracle.catalog().exchanges(), null).provider(),
              null,
              owned)
          .layout(config.maxTokens())
          .bytes();
    } finally {
      LayerParts.closeAll(owned);
    }
  }

  /** Weights of every size and no contents: all rows of a matrix are the same few bytes. */
  private static MoeLayerWeights ghost(MoeConfig config, Arena arena) {
    long h = config.hiddenSize();
    long width = config.expertHiddenSize();
    long longest =
        Math.max(
            Math.max(h, width),
            Math.max(
                config.intermediateSize(),
                config.sharedExpert().map(x -> x.intermediateSize()).orElse(0)));
    HostMemory row = new HostMemory(arena.allocate(8 * Math.max(longest, config.numExperts()), 64));
    DType dtype = config.weightDtype();
    ExpertWeights.Expert expert =
        expert(row, dtype, config.activation().isGated(), config.intermediateSize(), width);
    if (config.expertBias()) {
      Tensor up = vector(row, config.intermediateSize());
      expert = expert.withBias(config.activation().isGated() ? up : null, up, vector(row, width));
    }
    return new MoeLayerWeights(
        new ExpertWeights(Collections.nCopies(config.numLocalExperts(), expert)),
        new RouterWeights(
            matrix(row, dtype, config.numExperts(), h),
            null,
            config.routing().correctionBias() ? vector(row, config.numExperts()) : null),
        config
            .sharedExpert()
            .map(x ->
                new SharedExpertWeights(
                    expert(row, dtype, x.activation().isGated(), x.intermediateSize(), h),
                    x.sigmoidGate() ? matrix(row, dtype, 1, h) : null))
            .orElse(null),
        config.latentSize() > 0
            ? new LatentWeights(
                matrix(row, dtype, config.latentSize(), h),
                matrix(row, dtype, h, config.latentSize()))
            : null);
  }

  private static ExpertWeights.Expert expert(
      HostMemory row, DType dtype, boolean gated, long i, long h) {
    return ExpertWeights.Expert.plain(
        gated ? matrix(row, dtype, i, h) : null,
        matrix(row, dtype, i, h),
        matrix(row, dtype, h, i));
  }

  private static Tensor matrix(HostMemory row, DType dtype, long rows, long columns) {
    return Tensor.strided(dtype, row, 0, new long[] {rows, columns}, new long[] {0, 1});
  }

  private static Tensor vector(HostMemory row, long size) {
    return Tensor.of(DType.F32, row, size);
  }
}
