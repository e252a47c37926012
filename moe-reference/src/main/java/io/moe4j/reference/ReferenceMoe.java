package io.moe4j.reference;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RmsNorm;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.LatentWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.api.weights.Weight;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * The parts of a MoE block in float64, one token at a time. Stateless; all tensors are in host
 * memory.
 */
public final class ReferenceMoe {
  private ReferenceMoe() {}

  /**
   * {@return the router's logits for one token, {@code [E]}}
   *
   * @param routing the rule; its input norm counts here
   * @param router the weights
   * @param x {@code [H]}
   */
  public static double[] routerLogits(RoutingConfig routing, RouterWeights router, double[] x) {
    double[] in =
        routing.inputNorm().isPresent() && router.norm() != null
            ? normed(routing.inputNorm().get(), router.norm(), x)
            : x;
    double[] logits = ReferenceMath.multiply(router.weight(), in);
    ReferenceMath.addBias(logits, router.bias());
    return logits;
  }

  /**
   * {@return a normalised input, {@code [H]}}
   *
   * @param config the rule
   * @param norm {@code [H]}
   * @param x {@code [H]}
   */
  public static double[] normed(RmsNorm config, Tensor norm, double[] x) {
    double squares = 0;
    for (double v : x) {
      squares += v * v;
    }
    double factor = 1 / Math.sqrt(squares / x.length + config.epsilon());
    double[] y = norm.toDoubles();
    for (int i = 0; i < y.length; i++) {
      y[i] *= x[i] * factor;
    }
    return y;
  }

  /**
   * One routed expert on one input, before any router weight.
   *
   * @param activation between w13 and w2
   * @param weights the expert's
   * @param x {@code [H]} (the latent width where there is one)
   * @param lora the token's adapter at this layer, or null
   * @param expert local index, for factors that have one entry an expert
   * @return {@code [H]}
   */
  public static double[] expert(
      Activation activation,
      ExpertWeights.Expert weights,
      double[] x,
      @Nullable LoraLayer lora,
      int expert) {
    return expert(activation, weights, x, lora, expert, false);
  }

  /**
   * One routed expert on one input, before any router weight.
   *
   * @param activation between w13 and w2
   * @param weights the expert's
   * @param x {@code [H]} (the latent width where there is one)
   * @param lora the token's adapter at this layer, or null; it reads activations unquantised
   * @param expert local index, for factors that have one entry an expert
   * @param quantized whether quantised maps see their input as their scheme says ({@link
   *     QuantizeActivation})
   * @return {@code [H]}
   * @since 0.2.0
   */
  public static double[] expert(
      Activation activation,
      ExpertWeights.Expert weights,
      double[] x,
      @Nullable LoraLayer lora,
      int expert,
      boolean quantized) {
    return mlp(
        activation,
        weights,
        x,
        lora,
        LoraTarget.GATE,
        LoraTarget.UP,
        LoraTarget.DOWN,
        expert,
        quantized);
  }

  /**
   * {@return {@code gate . x} without bias, quantised or not, {@code [I]}}
   *
   * @param weights of a gated expert
   * @param x {@code [H]}
   */
  public static double[] gateProduct(ExpertWeights.Expert weights, double[] x) {
    return ReferenceMath.multiply(Objects.requireNonNull(weights.gate(), "gate"), x);
  }

  /**
   * {@return {@code up . x} without bias, quantised or not, {@code [I]}}
   *
   * @param weights the expert's
   * @param x {@code [H]}
   */
  public static double[] upProduct(ExpertWeights.Expert weights, double[] x) {
    return ReferenceMath.multiply(weights.up(), x);
  }

  /**
   * {@return {@code down . x} without bias, quantised or not, {@code [H]}}
   *
   * @param weights the expert's
   * @param x {@code [I]}
   */
  public static double[] downProduct(ExpertWeights.Expert weights, double[] x) {
    return ReferenceMath.multiply(weights.down(), x);
  }

  private static double[] mlp(
      Activation activation,
      ExpertWeights.Expert weights,
      double[] x,
      @Nullable LoraLayer lora,
      LoraTarget gateTarget,
      LoraTarget upTarget,
      LoraTarget downTarget,
      int expert,
      boolean quantized) {
    double[] up = upProduct(weights, seen(weights.up(), x, quantized));
    ReferenceMath.addBias(up, weights.upBias());
    ReferenceMath.addLora(up, lora, upTarget, expert, x);

    double[] gate = new double[up.length];
    if (weights.gate() != null) {
      gate = gateProduct(weights, seen(weights.gate(), x, quantized));
      ReferenceMath.addBias(gate, weights.gateBias());
      ReferenceMath.addLora(gate, lora, gateTarget, expert, x);
    }

    double[] hidden = new double[up.length];
    for (int i = 0; i < hidden.length; i++) {
      hidden[i] = ReferenceMath.activate(activation, gate[i], up[i]);
    }

    double[] y = downProduct(weights, seen(weights.down(), hidden, quantized));
    ReferenceMath.addBias(y, weights.downBias());
    ReferenceMath.addLora(y, lora, downTarget, expert, hidden);
    return y;
  }

  private static double[] seen(Weight weight, double[] x, boolean quantized) {
    return quantized ? QuantizeActivation.apply(weight, x) : x;
  }

  /**
   * The routed experts for one token: the weighted sum over its pairs. Pairs without a local expert
   * add nothing.
   *
   * @param config the layer
   * @param weights its experts
   * @param routing ids, weights, map
   * @param token row of {@code routing}
   * @param x {@code [H]} (the latent width where there is one)
   * @param lora the token's adapter at this layer, or null
   * @return {@code [H]}
   */
  public static double[] experts(
      MoeConfig config,
      ExpertWeights weights,
      ExpertRouting routing,
      int token,
      double[] x,
      @Nullable LoraLayer lora) {
    double[] sum = new double[x.length];
    for (int k = 0; k < routing.topkIds().size(1); k++) {
      int expert = routing.localExpert(token, k, weights.numExperts());
      if (expert < 0) {
        continue;
      }
      double weight = routing.topkWeights().get(token, k);
      boolean onInput = config.routerWeightOnInput();
      double[] y =
          expert(
              config.activation(),
              weights.expert(expert),
              onInput ? scaled(weight, x) : x,
              lora,
              expert,
              config.quantizedActivations());
      for (int h = 0; h < sum.length; h++) {
        sum[h] += onInput ? y[h] : weight * y[h];
      }
    }
    return sum;
  }

  private static double[] scaled(double factor, double[] x) {
    double[] y = new double[x.length];
    for (int i = 0; i < x.length; i++) {
      y[i] = factor * x[i];
    }
    return y;
  }

  /**
   * A token's adapter.
   *
   * @param lora the batch's adapters
   * @param index the token's place in the mapping, one or two numbers
   * @return what its adapter does to this layer; null for the base model
   */
  public static @Nullable LoraLayer adapter(@Nullable MoeLoraContext lora, long... index) {
    if (lora == null || !lora.hasLora()) {
      return null;
    }
    int slot = (int) lora.tokenLoraMapping().get(index);
    return slot < 0 || slot >= lora.maxLoras() ? null : lora.slot(slot);
  }

  /**
   * {@return the shared expert's part of the block's output for one token, {@code [H]}}
   *
   * @param config its config
   * @param weights its weights
   * @param x {@code [H]}, the block's input
   * @param lora the token's adapter at this layer, or null
   */
  public static double[] sharedExpert(
      SharedExpertConfig config,
      SharedExpertWeights weights,
      double[] x,
      @Nullable LoraLayer lora) {
    return sharedExpert(config, weights, x, lora, false);
  }

  /**
   * {@return the shared expert's part of the block's output for one token, {@code [H]}}
   *
   * @param config its config
   * @param weights its weights
   * @param x {@code [H]}, the block's input
   * @param lora the token's adapter at this layer, or null; it reads activations unquantised
   * @param quantized whether quantised maps see their input as their scheme says ({@link
   *     QuantizeActivation})
   * @since 0.2.0
   */
  public static double[] sharedExpert(
      SharedExpertConfig config,
      SharedExpertWeights weights,
      double[] x,
      @Nullable LoraLayer lora,
      boolean quantized) {
    double[] y =
        mlp(
            config.activation(),
            weights.mlp(),
            x,
            lora,
            LoraTarget.SHARED_GATE,
            LoraTarget.SHARED_UP,
            LoraTarget.SHARED_DOWN,
            0,
            quantized);
    if (weights.sigmoidGate() == null) {
      return y;
    }
    double[] gate = ReferenceMath.multiply(weights.sigmoidGate(), x);
    ReferenceMath.addLora(gate, lora, LoraTarget.SHARED_EXPERT_GATE, 0, x);
    return scaled(ReferenceMath.sigmoid(gate[0]), y);
  }

  /**
   * {@return what latent experts read, {@code [D]}}
   *
   * @param weights the projections
   * @param x {@code [H]}
   * @param lora the token's adapter at this layer, or null
   */
  public static double[] latentIn(LatentWeights weights, double[] x, @Nullable LoraLayer lora) {
    double[] latent = ReferenceMath.multiply(weights.in(), x);
    ReferenceMath.addLora(latent, lora, LoraTarget.LATENT_IN, 0, x);
    return latent;
  }

  /**
   * {@return what latent experts add to the block's output, {@code [H]}}
   *
   * @param weights the projections
   * @param routed {@code [D]}, the experts' weighted sum
   * @param lora the token's adapter at this layer, or null
   */
  public static double[] latentOut(
      LatentWeights weights, double[] routed, @Nullable LoraLayer lora) {
    double[] y = ReferenceMath.multiply(weights.out(), routed);
    ReferenceMath.addLora(y, lora, LoraTarget.LATENT_OUT, 0, routed);
    return y;
  }
}
