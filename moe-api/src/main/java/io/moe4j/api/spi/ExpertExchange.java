package io.moe4j.api.spi;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;

/**
 * Moves tokens to the ranks whose experts they chose, and results back, for one layer on one rank.
 * The layer's order is: router on this rank's tokens, {@link #dispatch}, experts, {@link #combine},
 * then latent projection and shared expert on this rank's tokens. Adapter slots travel with the
 * rows, so every rank's registry has one adapter in one slot. Where all ranks have the same tokens
 * ({@link io.moe4j.api.config.ParallelConfig#replicatedTokens}) no row need move, and {@link
 * #combine} gives every rank the sums of all of them.
 *
 * <p>Threads as for {@link Experts}: one workspace a call. On several ranks every rank makes the
 * same calls in the same order, with {@code T = 0} where it has no tokens.
 *
 * @since 0.2.0
 */
public interface ExpertExchange extends AutoCloseable {
  /** {@return stable lower-case id, like {@code local} or {@code gather}} */
  String name();

  /** {@return the format of the rows it hands to the experts} */
  ActivationFormat activationFormat();

  /**
   * {@return whether {@link #combine} gives the sum over all ranks' experts; if not, it gives the
   * part of this rank's experts, and the caller sums over ranks}
   */
  boolean outputIsReduced();

  /**
   * {@return the dtype in which the experts write what {@link #combine} gets: F32, BF16 or F16; F32
   * unless an exchange sends less than that}
   */
  default DType outputDtype() {
    return DType.F32;
  }

  /**
   * The rows that the experts may get.
   *
   * @param maxTokens the largest {@code T} of any rank
   * @return the largest {@code R} of {@link ExchangedRows}
   */
  int maxRows(int maxTokens);

  /**
   * Scratch from {@link #dispatch} to {@link #combine}, its own: the experts' lies elsewhere.
   *
   * @param maxTokens the largest {@code T} of any rank
   * @return bytes, 0 for none
   */
  long workspaceBytes(int maxTokens);

  /**
   * Brings rows to their experts.
   *
   * @param inputs this rank's tokens
   * @param workspace at least {@link #workspaceBytes}; left alone until {@link #combine}
   * @param stream where to run
   * @return what this rank's experts compute
   */
  ExchangedRows dispatch(ExchangeInputs inputs, Workspace workspace, DeviceStream stream);

  /**
   * Brings results back.
   *
   * @param output what the experts wrote for {@code rows}: STANDARD: {@code [R, H]}, summed over k
   *     and weighted; BATCHED: {@code [E_local, R, H]}, unweighted
   * @param rows what {@link #dispatch} gave
   * @param inputs what {@link #dispatch} was given
   * @param routed {@code [T, H]}, overwritten: this rank's tokens; F32, or the dtype of {@code
   *     output}. May be {@code output} itself where {@link #dispatch} moved nothing
   * @param workspace the same as before
   * @param stream where to run
   */
  void combine(
      Tensor output,
      ExchangedRows rows,
      ExchangeInputs inputs,
      Tensor routed,
      Workspace workspace,
      DeviceStream stream);

  @Override
  void close();
}
