package io.moe4j.api.lora;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.Tensor;

/**
 * Adds LoRA deltas of a mixed batch to what a backend computed, for the formulas of this package.
 * Named after Punica (Chen et al., <a
 * href="https://arxiv.org/abs/2310.18547">arXiv:2310.18547</a>), whose grouped gather kernels
 * started the idea.
 *
 * <p>Common rules. Arithmetic is f32 or better; {@code y} is rounded once. With {@code addInputs}
 * the delta is added to {@code y}; without, {@code y} is overwritten with the delta where one
 * applies. Rows to which nothing applies are not written at all, bit for bit. Any rank is accepted.
 * An implementation may be shared by threads; it enqueues on {@code stream} and returns (on the
 * host stream: returns when done). All tensors are on the stream's device. A call of {@link
 * #addLoraW2} that is given the same context and routing objects as the call of {@link #addLoraW13}
 * before it on that stream may rely on what that one found in them: their contents must not change
 * in between.
 *
 * @since 0.1.0
 */
public interface PunicaWrapper extends AutoCloseable {
  /**
   * Gate and up deltas, between the w13 product and the activation; no router weight.
   *
   * @param context slots and mapping
   * @param y {@code [T, K, 2I]} ({@code [T, K, I]} without gate), F32, BF16 or F16
   * @param x {@code [T, H]}, what w13 read; F32, BF16 or F16. With router weight on input and top_k
   *     over 1: {@code [T * K, H]}, one row a pair
   * @param routing ids (weights are not used)
   * @param gated whether {@code y} has gate columns
   * @param layout where gate and up columns stand in {@code y}
   * @param addInputs add to {@code y} or overwrite
   * @since 0.2.0
   */
  record W13(
      MoeLoraContext context,
      Tensor y,
      Tensor x,
      ExpertRouting routing,
      boolean gated,
      GateUpLayout layout,
      boolean addInputs) {
    /**
     * Deltas that are added to {@code y}.
     *
     * @param context slots and mapping
     * @param y {@code [T, K, 2I]} ({@code [T, K, I]} without gate)
     * @param x {@code [T, H]} or {@code [T * K, H]}
     * @param routing ids
     * @param gated whether {@code y} has gate columns
     * @param layout where gate and up columns stand in {@code y}
     * @return the call
     */
    public static W13 of(
        MoeLoraContext context,
        Tensor y,
        Tensor x,
        ExpertRouting routing,
        boolean gated,
        GateUpLayout layout) {
      return new W13(context, y, x, routing, gated, layout, true);
    }

    /**
     * The same call with another {@code addInputs}.
     *
     * @param addInputs add to {@code y} or overwrite
     * @return a new call
     */
    public W13 withAddInputs(boolean addInputs) {
      return new W13(context, y, x, routing, gated, layout, addInputs);
    }
  }

  /**
   * Down deltas, between the w2 product and the combine.
   *
   * @param context slots and mapping
   * @param y {@code [T, K, H]}
   * @param x {@code [T * K, I]}, what w2 read
   * @param routing ids and weights
   * @param mulRoutedWeight whether the delta is multiplied by the pair's topk weight (when {@code
   *     y} already is)
   * @param addInputs add to {@code y} or overwrite
   * @since 0.2.0
   */
  record W2(
      MoeLoraContext context,
      Tensor y,
      Tensor x,
      ExpertRouting routing,
      boolean mulRoutedWeight,
      boolean addInputs) {
    /**
     * Deltas that are added to an unweighted {@code y}.
     *
     * @param context slots and mapping
     * @param y {@code [T, K, H]}
     * @param x {@code [T * K, I]}
     * @param routing ids and weights
     * @return the call
     */
    public static W2 of(MoeLoraContext context, Tensor y, Tensor x, ExpertRouting routing) {
      return new W2(context, y, x, routing, false, true);
    }

    /**
     * The same call with another {@code mulRoutedWeight}.
     *
     * @param mulRoutedWeight whether deltas are multiplied by topk weights
     * @return a new call
     */
    public W2 withMulRoutedWeight(boolean mulRoutedWeight) {
      return new W2(context, y, x, routing, mulRoutedWeight, addInputs);
    }

    /**
     * The same call with another {@code addInputs}.
     *
     * @param addInputs add to {@code y} or overwrite
     * @return a new call
     */
    public W2 withAddInputs(boolean addInputs) {
      return new W2(context, y, x, routing, mulRoutedWeight, addInputs);
    }
  }

  /**
   * The delta of a dense map of the block: shared expert, its gate, latent projections, router.
   *
   * @param context slots and mapping
   * @param target not a routed one
   * @param y {@code [T, out]}
   * @param x {@code [T, in]}
   * @param addInputs add to {@code y} or overwrite
   * @since 0.2.0
   */
  record Linear(MoeLoraContext context, LoraTarget target, Tensor y, Tensor x, boolean addInputs) {
    /**
     * A delta that is added to {@code y}.
     *
     * @param context slots and mapping
     * @param target not a routed one
     * @param y {@code [T, out]}
     * @param x {@code [T, in]}
     * @return the call
     */
    public static Linear of(MoeLoraContext context, LoraTarget target, Tensor y, Tensor x) {
      return new Linear(context, target, y, x, true);
    }

    /**
     * The same call with another {@code addInputs}.
     *
     * @param addInputs add to {@code y} or overwrite
     * @return a new call
     */
    public Linear withAddInputs(boolean addInputs) {
      return new Linear(context, target, y, x, addInputs);
    }
  }

  /**
   * Adds gate and up deltas.
   *
   * @param call what to add where
   * @param stream where to run
   */
  void addLoraW13(W13 call, DeviceStream stream);

  /**
   * Adds down deltas.
   *
   * @param call what to add where
   * @param stream where to run
   */
  void addLoraW2(W2 call, DeviceStream stream);

  /**
   * Adds the delta of a dense map.
   *
   * @param call what to add where
   * @param stream where to run
   */
  void addLoraLinear(Linear call, DeviceStream stream);

  /**
   * Brings what the wrapper keeps on the device up to date with a context, for what is enqueued on
   * a stream afterwards. A forward does so by itself; a graph that was captured earlier does not,
   * so call this before a replay whose slots have changed. Cannot be captured. Does nothing by
   * default.
   *
   * @param context the next forward's
   * @param stream of the replay
   */
  default void prepare(MoeLoraContext context, DeviceStream stream) {}

  /** Gives back what the wrapper holds, once its work has finished. Does nothing by default. */
  @Override
  default void close() {}
}
