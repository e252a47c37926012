package io.moe4j.api.config;

import io.moe4j.api.tensor.DType;
import java.util.Objects;

/** What the values of a {@link MoeConfig} have to be, each and together. */
final class MoeConfigChecks {
  private MoeConfigChecks() {}

  /**
   * Checks everything but which experts are where, which {@link RankExperts} does.
   *
   * @throws IllegalArgumentException naming the value, what was given, what is accepted
   */
  static void require(MoeConfig c) {
    Objects.requireNonNull(c.activation(), "activation");
    Objects.requireNonNull(c.routing(), "routing");
    Objects.requireNonNull(c.sharedExpert(), "sharedExpert");
    Objects.requireNonNull(c.lora(), "lora");
    Objects.requireNonNull(c.activationFormat(), "activationFormat");
    sizes(c);
    parts(c);
    ranks(c);
    requireFloat("inputDtype", c.inputDtype());
    requireFloat("weightDtype", c.weightDtype());
    routing(c);
    schemes(c);
  }

  private static void sizes(MoeConfig c) {
    requireAtLeastOne("hiddenSize", c.hiddenSize());
    requireAtLeastOne("intermediateSize", c.intermediateSize());
    requireAtLeastOne("numExperts", c.numExperts());
    requireAtLeastOne("maxTokens", c.maxTokens());
    int zeroExperts = c.zeroExperts();
    if (zeroExperts < 0 || zeroExperts > Integer.MAX_VALUE - c.numExperts()) {
      throw new IllegalArgumentException(
          "zeroExperts is "
              + zeroExperts
              + ", must not be negative, and numExperts + zeroExperts must fit into an int");
    }
    if (c.topK() < 1 || c.topK() > c.numChoices()) {
      throw new IllegalArgumentException(
          "topK is "
              + c.topK()
              + ", must be 1.."
              + (zeroExperts > 0 ? "numExperts + zeroExperts = " : "numExperts = ")
              + c.numChoices());
    }
    if (c.latentSize() < 0) {
      throw new IllegalArgumentException(
          "latentSize is " + c.latentSize() + ", must not be negative");
    }
  }

  /** Parts of a block that no model has together. */
  private static void parts(MoeConfig c) {
    boolean latent = c.latentSize() > 0;
    if (c.inputNorm().isPresent() && latent) {
      throw new IllegalArgumentException(
          "inputNorm and latentSize " + c.latentSize() + " do not go together");
    }
    if (c.zeroExperts() > 0
        && (latent || c.inputNorm().isPresent() || c.routing().numGroups() > 1)) {
      throw new IllegalArgumentException(
          "zeroExperts "
              + c.zeroExperts()
              + " do not go together with latentSize, inputNorm or expert groups");
    }
  }

  private static void ranks(MoeConfig c) {
    if (c.parallel().worldSize() > 1
        && c.sharedExpert()
            .map(s -> s.combine() == SharedExpertConfig.Combine.AVERAGE)
            .orElse(false)) {
      throw new IllegalArgumentException(
          "sharedExpert is combined by AVERAGE, which ranks cannot add up; accepted with more than"
              + " one rank: ADD");
    }
    if (c.parallel().tpSize() > 1 && c.quantizedActivations()) {
      throw new IllegalArgumentException(
          "quantizedActivations needs all of intermediateSize for a token's scale, parallel is "
              + c.parallel());
    }
  }

  private static void routing(MoeConfig c) {
    RoutingConfig r = c.routing();
    if (c.numExperts() % r.numGroups() != 0) {
      throw new IllegalArgumentException(
          "numExperts "
              + c.numExperts()
              + " is not divisible by routing.numGroups "
              + r.numGroups());
    }
    int perGroup = c.numExperts() / r.numGroups();
    if (r.numGroups() > 1
        && r.groupScore() == RoutingConfig.GroupScore.SUM_OF_TOP2
        && perGroup < 2) {
      throw new IllegalArgumentException(
          "groups of " + perGroup + " expert have no two best scores to sum");
    }
    if ((long) r.topkGroups() * (c.numChoices() / r.numGroups()) < c.topK()) {
      throw new IllegalArgumentException(
          "topK "
              + c.topK()
              + " exceeds the experts that "
              + r.topkGroups()
              + " of "
              + r.numGroups()
              + " groups leave");
    }
    if (r.scoring() == RoutingConfig.Scoring.SPARSE_MIXER && c.topK() != 2) {
      throw new IllegalArgumentException("SPARSE_MIXER routing has top_k 2, not " + c.topK());
    }
  }

  private static void schemes(MoeConfig c) {
    boolean w13 = !c.w13Schemes().isEmpty();
    boolean w2 = !c.w2Schemes().isEmpty();
    if (!w13 || !w2) {
      throw new IllegalArgumentException(
          "quantSchemes"
              + (w13 ? " of w2" : w2 ? " of w13" : "")
              + " is empty, must name at least one scheme (QuantScheme.NONE for plain floats)");
    }
  }

  private static void requireAtLeastOne(String name, int value) {
    if (value < 1) {
      throw new IllegalArgumentException(name + " is " + value + ", must be at least 1");
    }
  }

  private static void requireFloat(String name, DType dtype) {
    if (dtype != DType.F32 && dtype != DType.BF16 && dtype != DType.F16) {
      throw new IllegalArgumentException(name + " is " + dtype + ", must be F32, BF16 or F16");
    }
  }
}
