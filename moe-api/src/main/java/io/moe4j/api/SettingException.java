package io.moe4j.api;

/**
 * A system property that is set to something else than what is accepted. The message names the
 * property, what was given and what is accepted.
 *
 * @since 0.2.0
 */
public final class SettingException extends MoeException {
  private static final long serialVersionUID = 1L;

  /**
   * Says what is wrong.
   *
   * @param property its name
   * @param given its value
   * @param accepted what it may be, like {@code on, off}
   */
  public SettingException(String property, String given, String accepted) {
    super("-D" + property + " is \"" + given + "\", accepted: " + accepted);
  }
}
