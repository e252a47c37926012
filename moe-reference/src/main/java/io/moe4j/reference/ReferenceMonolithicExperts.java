package io.moe4j.reference;

import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.MonolithicExperts;
import io.moe4j.api.spi.MonolithicInputs;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * {@link ReferenceRouting} and {@link ReferenceMoe} as experts that route by themselves, LoRA
 * included. Holds views only.
 *
 * @since 0.2.0
 */
public final class ReferenceMonolithicExperts implements MonolithicExperts, LoraExperts {
  private final MoeConfig config;
  private final ExpertWeights weights;
  private final @Nullable Tensor expertMap;

  /**
   * The reference experts of one layer.
   *
   * @param config the layer
   * @param weights fits {@code config}, in host memory; stays valid until closed
   * @throws IllegalArgumentException if activations are to be quantised and a weight lacks the
   *     scale that its scheme needs for it
   */
  public ReferenceMonolithicExperts(MoeConfig config, ExpertWeights weights) {
    if (config.quantizedActivations()) {
      weights.experts().forEach(e -> e.projections().forEach(QuantizeActivation::requireScale));
    }
    this.config = config;
    this.weights = weights;
    Optional<ExpertMap> map = config.expertMap();
    this.expertMap = map.map(m -> Tensor.ofInts(m.toArray(), m.numGlobalExperts())).orElse(null);
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return 0;
  }

  @Override
  public void apply(
      MonolithicInputs inputs,
      @Nullable MoeLoraContext lora,
      Workspace workspace,
      DeviceStream stream) {
    int tokens = Math.toIntExact(inputs.hidden().size(0));
    ExpertRouting routing = route(inputs, tokens);
    for (int t = 0; t < tokens; t++) {
      double[] x = TensorRows.read(inputs.hidden(), t);
      double[] y =
          ReferenceMoe.experts(config, weights, routing, t, x, ReferenceMoe.adapter(lora, t));
      TensorRows.write(y, inputs.output(), t);
    }
  }

  private ExpertRouting route(MonolithicInputs inputs, int tokens) {
    int topK = config.topK();
    int[] ids = new int[tokens * topK];
    float[] topkWeights = new float[tokens * topK];
    Tensor bias = inputs.correctionBias();
    int[] chosen = new int[topK];
    double[] w = new double[topK];
    for (int t = 0; t < tokens; t++) {
      ReferenceRouting.route(
          config.routing(),
          TensorRows.read(inputs.routerLogits(), t),
          bias == null ? null : bias.toDoubles(),
          chosen,
          w);
      for (int k = 0; k < topK; k++) {
        ids[t * topK + k] = chosen[k];
        topkWeights[t * topK + k] = (float) w[k];
      }
    }
    return new ExpertRouting(
        Tensor.ofInts(ids, tokens, topK), Tensor.ofFloats(topkWeights, tokens, topK), expertMap);
  }

  @Override
  public void close() {}
}
