package io.moe4j.checkpoint;

import io.moe4j.api.AdapterException;

/** An adapter holds what cannot be applied and the policy refuses; carries the whole account. */
public final class AdapterRefusedException extends AdapterException {
  private static final long serialVersionUID = 1L;

  private final transient AdapterReport report;

  AdapterRefusedException(String message, AdapterReport report) {
    super(message);
    this.report = report;
  }

  /** {@return what is in the adapter and why it is refused} */
  public AdapterReport report() {
    return report;
  }
}
