package io.moe4j.api.spi;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.Tensor;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * Everything of a MoE block but its routed experts, prepared for one layer on one device: router,
 * topk, latent projections, shared expert, and the dispatch and combine that BATCHED experts need.
 * Threads as for {@link Experts}: one workspace a call. All tensors contiguous and on the device.
 *
 * @since 0.1.0
 */
public interface BlockOps extends AutoCloseable {
  /**
   * The scratch that any one call needs.
   *
   * @param maxTokens the largest {@code T}
   * @return bytes, 0 for none
   */
  long workspaceBytes(int maxTokens);

  /**
   * What {@code prepare} decided, as {@link Experts#facts()} says it of the experts.
   *
   * @return a line or two, names distinct and none that experts use; empty by default
   * @since 0.2.0
   */
  default List<Fact> facts() {
    return List.of();
  }

  /**
   * Router logits, in f32 whatever the dtype of hidden states and weights; of the normalised input
   * where the routing has an input norm.
   *
   * @param hidden {@code [T, H]}
   * @param logits F32 {@code [T, N]}, overwritten; {@code N} counts the zero experts too
   * @param workspace scratch
   * @param stream where to run
   * @throws IllegalStateException if the weights came without a router
   */
  void routerLogits(Tensor hidden, Tensor logits, Workspace workspace, DeviceStream stream);

  /**
   * The routing of {@link io.moe4j.api.config.RoutingConfig}: descending by what was chosen on,
   * ties by ascending expert id.
   *
   * @param logits F32 {@code [T, E]}
   * @param topkIds int32 {@code [T, K]}, overwritten with global ids
   * @param topkWeights F32 {@code [T, K]}, overwritten
   * @param workspace scratch
   * @param stream where to run
   */
  void route(
      Tensor logits, Tensor topkIds, Tensor topkWeights, Workspace workspace, DeviceStream stream);

  /**
   * {@return whether {@link #route} neither begins before all work in front of it on the stream has
   * finished nor uses its workspace} Experts may then begin beside it with what needs no ids:
   * {@link ModularExperts#applyRouted}. Kernels that are launched before the one in front of them
   * is done keep that by waiting first of all.
   *
   * @since 0.2.0
   */
  default boolean routesAlone() {
    return false;
  }

  /**
   * The routing of a layer that chooses by token id ({@link
   * io.moe4j.api.config.RoutingConfig#byTokenId()}): ids from the router's table, weights from the
   * scores at those ids.
   *
   * @param logits F32 {@code [T, E]}
   * @param tokenIds int32 {@code [T]}, {@code 0..V-1}
   * @param topkIds int32 {@code [T, K]}, overwritten with global ids
   * @param topkWeights F32 {@code [T, K]}, overwritten
   * @param workspace scratch
   * @param stream where to run
   */
  default void routeByTokenId(
      Tensor logits,
      Tensor tokenIds,
      Tensor topkIds,
      Tensor topkWeights,
      Workspace workspace,
      DeviceStream stream) {
    throw new UnsupportedOperationException("routing by token id is not done here");
  }

  /**
   * What the experts read, for a block that normalises their input: {@code x / sqrt(mean(x^2) +
   * epsilon) * norm}.
   *
   * @param hidden {@code [T, H]}
   * @param normed F32 {@code [T, H]}, overwritten
   * @param workspace scratch
   * @param stream where to run
   */
  default void inputNorm(Tensor hidden, Tensor normed, Workspace workspace, DeviceStream stream) {
    throw new UnsupportedOperationException("a norm of the experts' input is not computed here");
  }

  /**
   * What the router reads, where it normalises its input: that of {@link #routerLogits}, which does
   * so by itself. Asked for only where adapters change the router.
   *
   * @param hidden {@code [T, H]}
   * @param normed F32 {@code [T, H]}, overwritten
   * @param workspace scratch
   * @param stream where to run
   * @since 0.2.0
   */
  default void routerNorm(Tensor hidden, Tensor normed, Workspace workspace, DeviceStream stream) {
    throw new UnsupportedOperationException("a norm of the router's input is not computed here");
  }

  /**
   * Takes the zero experts out of a routing: what they give a token is a part of the token itself.
   *
   * @param topkIds int32 {@code [T, K]}, global ids, {@code E} and above being zero experts
   * @param topkWeights F32 {@code [T, K]}
   * @param expertIds int32 {@code [T, K]}, overwritten with the ids, -1 for zero experts
   * @param zeroWeights F32 {@code [T]}, overwritten with the sum of the zero experts' weights
   * @param stream where to run
   */
  default void splitZeroExperts(
      Tensor topkIds,
      Tensor topkWeights,
      Tensor expertIds,
      Tensor zeroWeights,
      DeviceStream stream) {
    throw new UnsupportedOperationException("zero experts are not computed here");
  }

  /**
   * Adds what zero experts give: {@code routed += zeroWeights * hidden}.
   *
   * @param hidden {@code [T, H]}, the block's input
   * @param zeroWeights F32 {@code [T]}
   * @param routed F32 {@code [T, H]}, added to
   * @param stream where to run
   */
  default void addZeroExperts(
      Tensor hidden, Tensor zeroWeights, Tensor routed, DeviceStream stream) {
    throw new UnsupportedOperationException("zero experts are not computed here");
  }

  /**
   * What the experts read, for a block with latent projections: {@code in . x}, LoRA on it
   * included.
   *
   * @param hidden {@code [T, H]}
   * @param lora adapters of this batch
   * @param latent F32 {@code [T, D]}, overwritten
   * @param workspace scratch
   * @param stream where to run
   */
  void latentIn(
      Tensor hidden,
      @Nullable MoeLoraContext lora,
      Tensor latent,
      Workspace workspace,
      DeviceStream stream);

  /**
   * The block's output: the latent projection of {@code routed} where there is one, plus the shared
   * expert (gated where the config says so, averaged instead of added where it says so), LoRA on
   * both included, plus the output bias, rounded once to the output's dtype.
   *
   * @param hidden {@code [T, H]}, the block's input
   * @param routed F32 {@code [T, H]} (or {@code [T, D]}), the experts' weighted sum; may be {@code
   *     output} itself where shape and dtype are the same
   * @param lora adapters of this batch
   * @param output {@code [T, H]} F32, BF16 or F16, overwritten
   * @param workspace scratch
   * @param stream where to run
   */
  void output(
      Tensor hidden,
      Tensor routed,
      @Nullable MoeLoraContext lora,
      Tensor output,
      Workspace workspace,
      DeviceStream stream);

  /**
   * Copies tokens to the experts that chose them, for BATCHED experts: row {@code j} of expert
   * {@code e} is the {@code j}-th pair of {@code e} in ascending pair order. Pairs without a local
   * expert go nowhere.
   *
   * @param hidden {@code [T, H]}
   * @param routing ids, weights, map
   * @param tokenLoraMapping int32 {@code [T]} or null
   * @param batched {@code [E_local, maxTokens, H]}, dtype of {@code hidden}; rows past a count
   *     undefined. With router weight on input: multiplied by the pair's weight
   * @param expertNumTokens int32 {@code [E_local]}, overwritten
   * @param batchedLoraMapping int32 {@code [E_local, maxTokens]}, overwritten up to the counts
   *     where a mapping is given
   * @param workspace scratch
   * @param stream where to run
   * @throws IllegalArgumentException if an expert has more pairs than {@code maxTokens} (host
   *     devices; others size for the worst case)
   */
  void dispatch(
      Tensor hidden,
      ExpertRouting routing,
      @Nullable Tensor tokenLoraMapping,
      Tensor batched,
      Tensor expertNumTokens,
      @Nullable Tensor batchedLoraMapping,
      Workspace workspace,
      DeviceStream stream);

  /**
   * Undoes {@link #dispatch}: weighted sum over k, in f32. With router weight on input the weights
   * are not applied again.
   *
   * @param batched {@code [E_local, maxTokens, H]}, what the experts wrote
   * @param routing the same ids, weights, map
   * @param routed F32 {@code [T, H]}, overwritten
   * @param workspace scratch
   * @param stream where to run
   */
  void combine(
      Tensor batched,
      ExpertRouting routing,
      Tensor routed,
      Workspace workspace,
      DeviceStream stream);

  @Override
  void close();
}
