package io.moe4j.oracle;

import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.Tensor;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * What one forward reads and writes. All tensors are contiguous and in the memory of the layer's
 * device, owned by the caller; nothing that is written may overlap anything else. Host memory is of
 * an arena that every thread may use, not a confined one. Immutable: each {@code with} gives a new
 * request.
 *
 * @since 0.1.0
 */
public final class MoeForward {
  private final Tensor hidden;
  private final Tensor output;
  private final @Nullable MoeLoraContext lora;
  private final @Nullable Tensor routerLogits;
  private final @Nullable Tensor topkIds;
  private final @Nullable Tensor topkWeights;
  private final @Nullable Tensor topkIdsOut;
  private final @Nullable Tensor topkWeightsOut;
  private final @Nullable Tensor logitsOut;
  private final @Nullable Tensor tokenIds;
  private final int rankTokens;

  private MoeForward(
      Tensor hidden,
      Tensor output,
      @Nullable MoeLoraContext lora,
      @Nullable Tensor routerLogits,
      @Nullable Tensor topkIds,
      @Nullable Tensor topkWeights,
      @Nullable Tensor topkIdsOut,
      @Nullable Tensor topkWeightsOut,
      @Nullable Tensor logitsOut,
      @Nullable Tensor tokenIds,
      int rankTokens) {
    this.hidden = Objects.requireNonNull(hidden, "hidden");
    this.output = Objects.requireNonNull(output, "output");
    this.lora = lora;
    this.routerLogits = routerLogits;
    this.topkIds = topkIds;
    this.topkWeights = topkWeights;
    this.topkIdsOut = topkIdsOut;
    this.topkWeightsOut = topkWeightsOut;
    this.logitsOut = logitsOut;
    this.tokenIds = tokenIds;
    this.rankTokens = rankTokens;
    requirePair("topkIds", topkIds, "topkWeights", topkWeights);
    requirePair("topkIdsOut", topkIdsOut, "topkWeightsOut", topkWeightsOut);
    if (topkIds != null && (routerLogits != null || topkIdsOut != null || logitsOut != null)) {
      throw new IllegalArgumentException(
          "topkIds is given, so nothing is routed: routerLogits, topkIdsOut and logitsOut must be"
              + " null");
    }
    if (routerLogits != null && logitsOut != null) {
      throw new IllegalArgumentException(
          "routerLogits is given, so the router does not run: logitsOut must be null");
    }
  }

  private static void requirePair(String a, @Nullable Tensor ta, String b, @Nullable Tensor tb) {
    if ((ta == null) != (tb == null)) {
      throw new IllegalArgumentException(
          a + " is " + ta + " and " + b + " is " + tb + "; give both or neither");
    }
  }

  /** {@return {@code [T, H]}, the config's {@code inputDtype}; any {@code T}, 0 included} */
  public Tensor hidden() {
    return hidden;
  }

  /** {@return {@code [T, H]}, F32, BF16 or F16, overwritten} */
  public Tensor output() {
    return output;
  }

  /** {@return the batch's adapters, or null; its mapping is int32 {@code [T]}} */
  public @Nullable MoeLoraContext lora() {
    return lora;
  }

  /**
   * {@return {@code [T, E]} that replace the layer's own router, or null; F32, or BF16 for experts
   * that route by themselves}
   */
  public @Nullable Tensor routerLogits() {
    return routerLogits;
  }

  /**
   * {@return int32 {@code [T, K]}, global expert ids, -1 = no expert: routing that the caller has
   * done; null = the layer routes. For BATCHED experts the ids of a token differ from each other}
   */
  public @Nullable Tensor topkIds() {
    return topkIds;
  }

  /** {@return F32 {@code [T, K]}, together with {@code topkIds}} */
  public @Nullable Tensor topkWeights() {
    return topkWeights;
  }

  /** {@return int32 {@code [T, K]} that receives the layer's choice, or null} */
  public @Nullable Tensor topkIdsOut() {
    return topkIdsOut;
  }

  /** {@return F32 {@code [T, K]}, together with {@code topkIdsOut}} */
  public @Nullable Tensor topkWeightsOut() {
    return topkWeightsOut;
  }

  /** {@return F32 {@code [T, E]} that receives the layer's router logits, or null} */
  public @Nullable Tensor logitsOut() {
    return logitsOut;
  }

  /**
   * {@return int32 {@code [T]}, the tokens' ids in the vocabulary, for a layer that routes by them
   * and gets no {@code topkIds}; null elsewhere}
   *
   * @since 0.2.0
   */
  public @Nullable Tensor tokenIds() {
    return tokenIds;
  }

  /**
   * {@return the largest T of any rank in this forward, 0 = as many as the session or the layer
   * holds}
   *
   * @since 0.2.0
   */
  public int rankTokens() {
    return rankTokens;
  }

  /**
   * The base model, routed by the layer.
   *
   * @param hidden {@code [T, H]}
   * @param output {@code [T, H]}
   * @return the request
   */
  public static MoeForward of(Tensor hidden, Tensor output) {
    return new MoeForward(hidden, output, null, null, null, null, null, null, null, null, 0);
  }

  /**
   * With adapters.
   *
   * @param context slots, and the slot of each token
   * @return a new request
   */
  public MoeForward withLora(MoeLoraContext context) {
    return new MoeForward(
        hidden,
        output,
        context,
        routerLogits,
        topkIds,
        topkWeights,
        topkIdsOut,
        topkWeightsOut,
        logitsOut,
        tokenIds,
        rankTokens);
  }

  /**
   * With logits instead of the layer's own router.
   *
   * @param logits F32 {@code [T, E]}
   * @return a new request
   */
  public MoeForward withRouterLogits(Tensor logits) {
    return new MoeForward(
        hidden,
        output,
        lora,
        logits,
        topkIds,
        topkWeights,
        topkIdsOut,
        topkWeightsOut,
        logitsOut,
        tokenIds,
        rankTokens);
  }

  /**
   * With a routing of the caller's own.
   *
   * @param ids int32 {@code [T, K]}
   * @param weights F32 {@code [T, K]}
   * @return a new request
   */
  public MoeForward withTopk(Tensor ids, Tensor weights) {
    return new MoeForward(
        hidden,
        output,
        lora,
        routerLogits,
        ids,
        weights,
        topkIdsOut,
        topkWeightsOut,
        logitsOut,
        tokenIds,
        rankTokens);
  }

  /**
   * With the layer's choice written out.
   *
   * @param ids int32 {@code [T, K]}, overwritten
   * @param weights F32 {@code [T, K]}, overwritten
   * @return a new request
   */
  public MoeForward topkInto(Tensor ids, Tensor weights) {
    return new MoeForward(
        hidden,
        output,
        lora,
        routerLogits,
        topkIds,
        topkWeights,
        ids,
        weights,
        logitsOut,
        tokenIds,
        rankTokens);
  }

  /**
   * With the router's logits written out.
   *
   * @param logits F32 {@code [T, E]}, overwritten
   * @return a new request
   */
  public MoeForward logitsInto(Tensor logits) {
    return new MoeForward(
        hidden,
        output,
        lora,
        routerLogits,
        topkIds,
        topkWeights,
        topkIdsOut,
        topkWeightsOut,
        logits,
        tokenIds,
        rankTokens);
  }

  /**
   * With the tokens' ids, which a layer that routes by them needs.
   *
   * @param ids int32 {@code [T]}
   * @return a new request
   * @since 0.2.0
   */
  public MoeForward withTokenIds(Tensor ids) {
    return new MoeForward(
        hidden,
        output,
        lora,
        routerLogits,
        topkIds,
        topkWeights,
        topkIdsOut,
        topkWeightsOut,
        logitsOut,
        Objects.requireNonNull(ids, "ids"),
        rankTokens);
  }

  /**
   * For ranks that share a layer on devices, where no rank can ask the others how many tokens they
   * have: room is made for so many of each. Without it, for as many as the session holds. Every
   * rank says the same number, or none.
   *
   * @param most the largest {@code T} of any rank, at least this one's
   * @return a new request
   * @since 0.2.0
   */
  public MoeForward withRankTokens(int most) {
    if (most < hidden.size(0)) {
      throw new IllegalArgumentException(
          "rankTokens is " + most + ", less than the " + hidden.size(0) + " tokens of hidden");
    }
    return new MoeForward(
        hidden,
        output,
        lora,
        routerLogits,
        topkIds,
        topkWeights,
        topkIdsOut,
        topkWeightsOut,
        logitsOut,
        tokenIds,
        most);
  }

  /** The same for some of the tokens. */
  MoeForward tokens(long start, long count) {
    return new MoeForward(
        hidden.narrow(0, start, count),
        output.narrow(0, start, count),
        lora == null
            ? null
            : lora.withTokenLoraMapping(lora.tokenLoraMapping().narrow(0, start, count)),
        part(routerLogits, start, count),
        part(topkIds, start, count),
        part(topkWeights, start, count),
        part(topkIdsOut, start, count),
        part(topkWeightsOut, start, count),
        part(logitsOut, start, count),
        part(tokenIds, start, count),
        rankTokens);
  }

  private static @Nullable Tensor part(@Nullable Tensor t, long start, long count) {
    return t == null ? null : t.narrow(0, start, count);
  }
}
