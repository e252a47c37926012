package io.moe4j.backend.flashinfer;

import java.util.Optional;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * A version of FlashInfer as its packages give it, like {@code 0.6.16.post4+cu130}.
 *
 * @param text as given
 * @param major first number
 * @param minor second number
 * @param patch third number
 * @param development a snapshot between two releases, whose argument lists nobody can know
 */
record FlashInferVersion(String text, int major, int minor, int patch, boolean development) {
  private static final Pattern FORM =
      Pattern.compile(
          "(\\d{1,6})\\.(\\d{1,6})\\.(\\d{1,6})(?:rc\\d+|\\.post\\d+)?(\\.dev\\w*)?(?:\\+[\\w.]+)?");

  /** {@return the version, if it has the form of one} */
  static Optional<FlashInferVersion> parse(String text) {
    Matcher m = FORM.matcher(text.strip());
    return m.matches()
        ? Optional.of(
            new FlashInferVersion(
                text.strip(),
                Integer.parseInt(m.group(1)),
                Integer.parseInt(m.group(2)),
                Integer.parseInt(m.group(3)),
                m.group(4) != null))
        : Optional.empty();
  }

  /** {@return whether it lies between two patches of 0.6, both included} */
  boolean isBetween(int firstPatch, int lastPatch) {
    return major == 0 && minor == 6 && patch >= firstPatch && patch <= lastPatch;
  }

  @Override
  public String toString() {
    return text;
  }
}
