package io.moe4j.integration;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeOracle;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.SplittableRandom;
import org.jspecify.annotations.Nullable;

/**
 * The main class of a fresh JVM: builds a small layer on whatever the oracle finds, prints the
 * table of the choice, runs it, and runs the reference beside it.
 */
final class PluginProbe {
  private static final int HIDDEN = 24;
  private static final int INTERMEDIATE = 16;
  private static final int EXPERTS = 4;
  private static final int TOKENS = 9;

  private PluginProbe() {}

  /**
   * @param args a plugins directory, or nothing
   */
  public static void main(String[] args) {
    MoeConfig config =
        MoeConfig.builder(HIDDEN, INTERMEDIATE, EXPERTS, 2)
            .weightDtype(DType.F32)
            .maxTokens(16)
            .build();
    var random = new SplittableRandom(1);
    List<ExpertWeights.Expert> experts = new ArrayList<>();
    for (int e = 0; e < EXPERTS; e++) {
      experts.add(
          ExpertWeights.Expert.plain(
              tensor(random, INTERMEDIATE, HIDDEN),
              tensor(random, INTERMEDIATE, HIDDEN),
              tensor(random, HIDDEN, INTERMEDIATE)));
    }
    var weights =
        new MoeLayerWeights(
            new ExpertWeights(experts),
            new RouterWeights(tensor(random, EXPERTS, HIDDEN), null, null),
            null,
            null);
    Tensor hidden = tensor(random, TOKENS, HIDDEN);
    try (MoeOracle oracle =
        args.length == 0 ? MoeOracle.discover() : MoeOracle.discover(Path.of(args[0]))) {
      float[] expected = run(oracle, config, weights, "cpu-reference", hidden);
      float[] actual = run(oracle, config, weights, null, hidden);
      double worst = 0;
      for (int i = 0; i < actual.length; i++) {
        worst = Math.max(worst, Math.abs(actual[i] - expected[i]));
      }
      System.out.println("largest difference " + (worst < 1e-4 ? "below" : "above") + " 1e-4");
    }
  }

  private static float[] run(
      MoeOracle oracle,
      MoeConfig config,
      MoeLayerWeights weights,
      @Nullable String backend,
      Tensor hidden) {
    float[] output = new float[TOKENS * HIDDEN];
    try (MoeLayer layer =
        MoeLayer.builder(config, weights).oracle(oracle).backend(backend).build()) {
      layer.forward(hidden, Tensor.ofFloats(output, TOKENS, HIDDEN));
      if (backend == null) {
        System.out.println(layer.selection().explain());
        Class<?> type = layer.selection().chosenBackend().backend().getClass();
        System.out.println("ran on " + type.getName() + " in " + type.getModule());
      }
    }
    return output;
  }

  private static Tensor tensor(SplittableRandom random, int rows, int columns) {
    float[] values = new float[rows * columns];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) (random.nextGaussian() / Math.sqrt(columns));
    }
    return Tensor.ofFloats(values, rows, columns);
  }
}
