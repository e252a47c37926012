package io.moe4j.reference;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/** {@link ReferenceMoe} behind the contract, for both activation formats. Holds views only. */
public final class ReferenceExperts implements ModularExperts, LoraExperts {
  private final MoeConfig config;
  private final ExpertWeights weights;

  /**
   * The reference experts of one layer.
   *
   * @param config the layer
   * @param weights fits {@code config}, in host memory; stays valid until closed
   * @throws IllegalArgumentException if activations are to be quantised and a weight lacks the
   *     scale that its scheme needs for it
   */
  public ReferenceExperts(MoeConfig config, ExpertWeights weights) {
    if (config.quantizedActivations()) {
      weights.experts().forEach(e -> e.projections().forEach(QuantizeActivation::requireScale));
    }
    this.config = config;
    this.weights = weights;
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return 0;
  }

  @Override
  public void apply(
      ExpertsInputs inputs,
      @Nullable MoeLoraContext lora,
      Workspace workspace,
      DeviceStream stream) {
    if (inputs.routing() != null) {
      standard(inputs, lora);
    } else {
      batched(inputs, Objects.requireNonNull(inputs.expertNumTokens()), lora);
    }
  }

  private void standard(ExpertsInputs inputs, @Nullable MoeLoraContext lora) {
    for (int t = 0; t < inputs.hidden().size(0); t++) {
      double[] x = TensorRows.read(inputs.hidden(), t);
      double[] y =
          ReferenceMoe.experts(
              config, weights, inputs.requireRouting(), t, x, ReferenceMoe.adapter(lora, t));
      TensorRows.write(y, inputs.output(), t);
    }
  }

  /** Rows come weighted where the weight belongs on the input; the dispatcher sums them. */
  private void batched(ExpertsInputs inputs, Tensor counts, @Nullable MoeLoraContext lora) {
    for (int e = 0; e < weights.numExperts(); e++) {
      for (int j = 0; j < counts.get(e); j++) {
        double[] x = TensorRows.read(inputs.hidden(), e, j);
        double[] y =
            ReferenceMoe.expert(
                config.activation(),
                weights.expert(e),
                x,
                ReferenceMoe.adapter(lora, e, j),
                e,
                config.quantizedActivations());
        TensorRows.write(y, inputs.output(), e, j);
      }
    }
  }

  @Override
  public void close() {}
}
