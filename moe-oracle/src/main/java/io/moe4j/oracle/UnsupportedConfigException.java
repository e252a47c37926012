package io.moe4j.oracle;

import io.moe4j.api.MoeException;

/**
 * No backend can be used: none fits, or the one asked for by name is refused or unknown. The
 * message is the whole table; {@link #selection()} has it as data. It lives beside {@link
 * MoeOracle}, the only one who throws it.
 */
public class UnsupportedConfigException extends MoeException {
  private static final long serialVersionUID = 1L;

  /** Not serialised: a selection holds providers. */
  private final transient Selection selection;

  /**
   * A refusal of every backend.
   *
   * @param selection one without a chosen backend
   */
  public UnsupportedConfigException(Selection selection) {
    super(SelectionText.headline(selection) + "\n" + selection.explain());
    this.selection = selection;
  }

  /** {@return every backend, and every reason why not} */
  public Selection selection() {
    return selection;
  }
}
