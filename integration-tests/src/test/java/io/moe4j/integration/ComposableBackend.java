package io.moe4j.integration;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.reference.ReferenceMath;
import io.moe4j.reference.ReferenceMoe;
import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/**
 * The plainest modular experts there could be: they know nothing of LoRA but the two default
 * methods of {@link LoraExperts}, so whatever adapters do comes from the context's punica wrapper.
 *
 * @param layout how the w13 product is laid out
 * @param weightFirst whether router weights go on before the deltas of w2 (which are weighted too,
 *     then) or after
 */
record ComposableBackend(GateUpLayout layout, boolean weightFirst) implements ExpertsBackend {
  @Override
  public String name() {
    return layout == GateUpLayout.HALVES ? "composable-halves" : "composable-interleaved";
  }

  @Override
  public String description() {
    return "plain products, LoRA by the punica wrapper";
  }

  @Override
  public DeviceType deviceType() {
    return DeviceType.CPU;
  }

  @Override
  public ActivationFormat activationFormat() {
    return ActivationFormat.STANDARD;
  }

  @Override
  public boolean supportsLora() {
    return true;
  }

  @Override
  public int priority(MoeConfig config, Platform platform) {
    return 1;
  }

  @Override
  public Support isSupportedConfig(MoeConfig config, Platform platform) {
    return Support.yes();
  }

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    return new Plain(config, weights, layout, weightFirst);
  }

  private record Plain(
      MoeConfig config, ExpertWeights weights, GateUpLayout layout, boolean weightFirst)
      implements ModularExperts, LoraExperts {
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
      var routing = inputs.requireRouting();
      int tokens = (int) inputs.hidden().size(0);
      int topK = config.topK();
      int h = config.expertHiddenSize();
      int i = config.intermediateSize();
      boolean gated = config.activation().isGated();
      int width = gated ? 2 * i : i;
      int[] ids = routing.topkIds().toInts();
      for (int p = 0; p < ids.length; p++) {
        ids[p] = config.expertMap().isEmpty() ? ids[p] : config.expertMap().get().local(ids[p]);
      }
      float[] topkWeights = routing.topkWeights().toFloats();
      Tensor x13 = config.routerWeightOnInput() ? weighted(inputs, topkWeights) : inputs.hidden();
      if (config.routerWeightOnInput()) {
        Arrays.fill(topkWeights, 1);
      }

      float[] w13 = new float[tokens * topK * width];
      for (int p = 0; p < tokens * topK; p++) {
        if (ids[p] < 0) {
          continue;
        }
        int row = config.routerWeightOnInput() ? p : p / topK;
        double[] x = x13.select(0, row).toDoubles();
        ExpertWeights.Expert e = weights.expert(ids[p]);
        double[] up = biased(ReferenceMoe.upProduct(e, x), e.upBias());
        double[] gate =
            e.gate() == null ? up : biased(ReferenceMoe.gateProduct(e, x), e.gateBias());
        for (int c = 0; c < i; c++) {
          if (gated) {
            w13[p * width + layout.index(false, c, i)] = (float) gate[c];
            w13[p * width + layout.index(true, c, i)] = (float) up[c];
          } else {
            w13[p * width + c] = (float) up[c];
          }
        }
      }
      Tensor y13 = Tensor.ofFloats(w13, tokens, topK, width);
      if (lora != null) {
        applyW13Lora(PunicaWrapper.W13.of(lora, y13, x13, routing, gated, layout), stream);
      }

      float[] act = new float[tokens * topK * i];
      float[] w2 = new float[tokens * topK * h];
      for (int p = 0; p < tokens * topK; p++) {
        if (ids[p] < 0) {
          continue;
        }
        double[] a = new double[i];
        for (int c = 0; c < i; c++) {
          double gate = gated ? w13[p * width + layout.index(false, c, i)] : 0;
          double up = w13[p * width + (gated ? layout.index(true, c, i) : c)];
          act[p * i + c] = (float) ReferenceMath.activate(config.activation(), gate, up);
          a[c] = act[p * i + c];
        }
        ExpertWeights.Expert e = weights.expert(ids[p]);
        double[] y = biased(ReferenceMoe.downProduct(e, a), e.downBias());
        for (int c = 0; c < h; c++) {
          w2[p * h + c] = (float) (weightFirst ? topkWeights[p] * y[c] : y[c]);
        }
      }
      Tensor y2 = Tensor.ofFloats(w2, tokens, topK, h);
      Tensor x2 = Tensor.ofFloats(act, (long) tokens * topK, i);
      boolean weighted = weightFirst && !config.routerWeightOnInput();
      if (lora != null) {
        applyW2Lora(
            PunicaWrapper.W2.of(lora, y2, x2, routing).withMulRoutedWeight(weighted), stream);
      }

      for (int t = 0; t < tokens; t++) {
        for (int c = 0; c < h; c++) {
          double sum = 0;
          for (int p = t * topK; p < (t + 1) * topK; p++) {
            sum += weightFirst ? w2[p * h + c] : topkWeights[p] * w2[p * h + c];
          }
          inputs.output().set(sum, t, c);
        }
      }
    }

    /** One row a pair. */
    private Tensor weighted(ExpertsInputs inputs, float[] topkWeights) {
      int h = config.expertHiddenSize();
      float[] rows = new float[topkWeights.length * h];
      for (int p = 0; p < topkWeights.length; p++) {
        for (int c = 0; c < h; c++) {
          rows[p * h + c] = topkWeights[p] * (float) inputs.hidden().get(p / config.topK(), c);
        }
      }
      return Tensor.ofFloats(rows, topkWeights.length, h);
    }

    private static double[] biased(double[] y, @Nullable Tensor bias) {
      ReferenceMath.addBias(y, bias);
      return y;
    }

    @Override
    public void close() {}
  }
}
