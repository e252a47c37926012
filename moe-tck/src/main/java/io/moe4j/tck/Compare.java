package io.moe4j.tck;

import java.util.Locale;

/** Row by row against the truth: what is not finite first, then the normalised error. */
final class Compare {
  private Compare() {}

  /**
   * Fails unless all rows agree.
   *
   * @param rule number that the message begins with
   * @param what the case
   * @param expected rows of the truth
   * @param actual rows as computed
   * @param tolerance on a row's relative L2 error
   */
  static void rows(
      String rule, String what, double[][] expected, double[][] actual, double tolerance) {
    double sum = 0;
    int finite = 0;
    for (double[] row : expected) {
      double norm = norm(row);
      if (Double.isFinite(norm)) {
        sum += norm * norm;
        finite++;
      }
    }
    double typical = finite == 0 ? 0 : Math.sqrt(sum / finite);
    for (int r = 0; r < expected.length; r++) {
      row(rule, what, r, expected[r], actual[r], typical, tolerance);
    }
  }

  private static void row(
      String rule,
      String what,
      int r,
      double[] expected,
      double[] actual,
      double typical,
      double tolerance) {
    double norm = norm(expected);
    double scale = norm == 0 ? 0 : Math.max(norm, typical);
    double elementScale = scale / Math.sqrt(expected.length);
    double squares = 0;
    int worst = 0;
    for (int i = 0; i < expected.length; i++) {
      if (!Double.isFinite(expected[i])) {
        if (Double.isFinite(actual[i])) {
          throw failure(rule, what, r, i, expected[i], actual[i], "a fault in the input vanished");
        }
        continue;
      }
      if (!Double.isFinite(actual[i])) {
        throw failure(rule, what, r, i, expected[i], actual[i], "not finite");
      }
      double error = Math.abs(actual[i] - expected[i]);
      squares += error * error;
      if (error > Math.abs(actual[worst] - expected[worst])) {
        worst = i;
      }
      double allowed =
          Tolerance.ELEMENT * tolerance * Math.max(elementScale, Math.abs(expected[i]));
      if (norm == 0 ? error != 0 : Double.isFinite(norm) && error > allowed) {
        throw failure(
            rule,
            what,
            r,
            i,
            expected[i],
            actual[i],
            norm == 0
                ? "the row must be zero"
                : String.format(Locale.ROOT, "the error is %.3g, allowed %.3g", error, allowed));
      }
    }
    if (Double.isFinite(norm) && Math.sqrt(squares) > tolerance * scale) {
      throw failure(
          rule,
          what,
          r,
          worst,
          expected[worst],
          actual[worst],
          String.format(
              Locale.ROOT,
              "the row's relative L2 error is %.3g, allowed %.3g (this is its worst element)",
              Math.sqrt(squares) / scale,
              tolerance));
    }
  }

  private static AssertionError failure(
      String rule, String what, int row, int i, double expected, double actual, String why) {
    return new AssertionError(
        String.format(
            Locale.ROOT,
            "%s: %s: row %d, element %d is %s, must be %s: %s",
            rule,
            what,
            row,
            i,
            actual,
            expected,
            why));
  }

  private static double norm(double[] row) {
    double sum = 0;
    for (double v : row) {
      sum += v * v;
    }
    return Math.sqrt(sum);
  }
}
