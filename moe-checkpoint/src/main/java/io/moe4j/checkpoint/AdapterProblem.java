package io.moe4j.checkpoint;

/** Why a pair of factors cannot be applied. */
final class AdapterProblem extends Exception {
  private static final long serialVersionUID = 1L;
  private final String reason;
  private final boolean damage;

  private AdapterProblem(String reason, boolean damage) {
    super(reason, null, false, false);
    this.reason = reason;
    this.damage = damage;
  }

  /** Wrong whatever the policy. */
  static AdapterProblem damage(String reason) {
    return new AdapterProblem(reason, true);
  }

  /** Right but not to be applied: the policy decides. */
  static AdapterProblem unappliable(String reason) {
    return new AdapterProblem(reason, false);
  }

  String reason() {
    return reason;
  }

  boolean isDamage() {
    return damage;
  }
}
