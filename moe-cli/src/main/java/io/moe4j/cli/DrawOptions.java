package io.moe4j.cli;

import io.moe4j.cli.bench.Draws;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Option;

/** How {@code moe bench --device cuda} draws routings, to lay its times beside those of others. */
final class DrawOptions {
  private static final int MOST_BATCHES = 64;

  @Option(
      names = "--batches",
      paramLabel = "N",
      description =
          "On a GPU: batches of a pass, at most 64, each with tokens and routings of its own."
              + " Default: 8 up to 16 tokens, 4 up to 256, 2 up to 1024, 1 above.")
  private @Nullable Integer batches;

  @Option(
      names = "--touched",
      paramLabel = "X",
      split = ",",
      description =
          "On a GPU: experts that a batch touches, on average, one number for each of --tokens: of"
              + " many draws the closest is taken. Default: the mean over all routings.")
  private List<Double> touched = new ArrayList<>();

  @Option(
      names = "--draw",
      paramLabel = "N",
      description =
          "On a GPU: seed of the routings; other numbers show how much times depend on them."
              + " Default: ${DEFAULT-VALUE}.",
      defaultValue = "0")
  private long set;

  @SuppressWarnings("NullAway.Init") // picocli sets them
  DrawOptions() {}

  /** {@return whether any was given} */
  boolean given() {
    return batches != null || !touched.isEmpty() || set != 0;
  }

  /**
   * {@return what was given}
   *
   * @param tokens as the option has them, in its order
   * @throws CliException if it does not fit
   */
  Draws draws(List<Integer> tokens) {
    if (batches != null && (batches < 1 || batches > MOST_BATCHES)) {
      throw CliException.usage("--batches is " + batches + ", must be 1.." + MOST_BATCHES);
    }
    if (!touched.isEmpty() && touched.size() != tokens.size()) {
      throw CliException.usage(
          "--touched has "
              + touched.size()
              + " numbers, must have one for each of --tokens "
              + tokens);
    }
    Map<Integer, Double> each = new HashMap<>();
    for (int i = 0; i < touched.size(); i++) {
      if (!(touched.get(i) >= 1)) {
        throw CliException.usage("--touched is " + touched + ", must be 1 or more each");
      }
      each.put(tokens.get(i), touched.get(i));
    }
    return new Draws(batches == null ? 0 : batches, each, set);
  }
}
