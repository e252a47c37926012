package io.moe4j.oracle;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Fact;
import java.util.List;
import java.util.Objects;
import java.util.Optional;

/**
 * One decision of the oracle, with everything it was based on. A value: tools print it with {@link
 * #explain()} or read the parts.
 *
 * @param config the layer
 * @param platform the machine it was decided for
 * @param requested the backend that the caller asked for by name, if any
 * @param chosen who was taken; empty where nothing fits, or what was asked for is refused or
 *     unknown
 * @param candidates every backend that was found: first those that fit, in the order of preference,
 *     then the others by name
 * @param failures what could not be loaded
 * @param exchange how tokens come to the experts, and why not otherwise; empty before a layer is
 *     built
 * @param facts what the backend decided when it prepared the layer: kernels, where weights are,
 *     bytes; empty before a layer is built, and where a backend does not say
 */
public record Selection(
    MoeConfig config,
    Platform platform,
    Optional<String> requested,
    Optional<Candidate> chosen,
    List<Candidate> candidates,
    List<PluginFailure> failures,
    String exchange,
    List<Fact> facts) {

  /**
   * Checks and copies the components.
   *
   * @param config the layer
   * @param platform the machine
   * @param requested asked for by name
   * @param chosen who was taken
   * @param candidates copied
   * @param failures copied
   * @param exchange one line
   * @param facts copied
   */
  public Selection {
    Objects.requireNonNull(config, "config");
    Objects.requireNonNull(platform, "platform");
    Objects.requireNonNull(requested, "requested");
    Objects.requireNonNull(chosen, "chosen");
    candidates = List.copyOf(candidates);
    failures = List.copyOf(failures);
    Objects.requireNonNull(exchange, "exchange");
    facts = List.copyOf(facts);
  }

  /** The same decision with what the layer was built with. */
  Selection withLayer(String line, List<Fact> said) {
    return new Selection(config, platform, requested, chosen, candidates, failures, line, said);
  }

  /** {@return whether the caller asked for a backend by name} */
  public boolean isExplicit() {
    return requested.isPresent();
  }

  /**
   * {@return the backend that was taken}
   *
   * @throws UnsupportedConfigException if none was
   */
  public FoundBackend chosenBackend() {
    return chosen.orElseThrow(() -> new UnsupportedConfigException(this)).backend();
  }

  /**
   * {@return the candidate of a name}
   *
   * @param name a backend's name
   */
  public Optional<Candidate> candidate(String name) {
    return candidates.stream().filter(c -> c.name().equals(name)).findFirst();
  }

  /** {@return those that fit, in the order of preference} */
  public List<Candidate> supported() {
    return candidates.stream().filter(Candidate::isSupported).toList();
  }

  /** {@return those that do not fit, by name} */
  public List<Candidate> refused() {
    return candidates.stream().filter(c -> !c.isSupported()).toList();
  }

  /**
   * The decision in words, several lines: the layer, the machine, who was taken and why, what it
   * decided when it prepared the layer, and a table of all backends with priority, jar, version,
   * and one line for each reason.
   *
   * @return the text, without a line break at its end
   */
  public String explain() {
    return SelectionText.explain(this);
  }

  /** {@return one sentence: the choice, the candidates, and why others were refused} */
  public String summary() {
    return SelectionText.summary(this);
  }
}
