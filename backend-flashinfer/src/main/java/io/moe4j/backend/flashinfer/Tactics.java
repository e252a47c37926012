package io.moe4j.backend.flashinfer;

/**
 * Which of the module's kernels compute the two products: indices into its one list, the first
 * product's kernels before the second's. They mean something for one build of the module only.
 *
 * @param first of the first product; {@link #DEFAULT} = the module's choice
 * @param second of the second product
 */
record Tactics(long first, long second) {
  /** The module chooses, badly: 1.02 to 1.6 times the best for bf16 and FP8, to 3 for MXFP4. */
  static final long DEFAULT = -1;

  static final Tactics MODULES_OWN = new Tactics(DEFAULT, DEFAULT);

  @Override
  public String toString() {
    return name(first) + "/" + name(second);
  }

  private static String name(long tactic) {
    return tactic == DEFAULT ? "default" : Long.toString(tactic);
  }
}
