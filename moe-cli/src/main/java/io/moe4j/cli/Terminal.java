package io.moe4j.cli;

import java.io.PrintWriter;
import java.nio.charset.StandardCharsets;

/**
 * Where a command writes. Results go to {@code out}, everything else to {@code err}, so that output
 * can be piped.
 *
 * @param out results
 * @param err progress, notes, errors
 * @param interactive whether {@code err} is a terminal, so that progress may be drawn on it
 * @param columns width to break paragraphs at
 */
record Terminal(PrintWriter out, PrintWriter err, boolean interactive, int columns) {
  private static final int DEFAULT_COLUMNS = 100;

  /** The process's own streams; the launcher says whether stderr is a terminal, Java cannot. */
  static Terminal ofProcess() {
    int columns = Integer.getInteger("moe.terminal.columns", 0);
    return new Terminal(
        new PrintWriter(System.out, true, StandardCharsets.UTF_8),
        new PrintWriter(System.err, true, StandardCharsets.UTF_8),
        columns > 0,
        columns > 20 ? Math.min(columns, 160) : DEFAULT_COLUMNS);
  }

  /** Streams of a test or an embedding program. */
  static Terminal of(PrintWriter out, PrintWriter err) {
    return new Terminal(out, err, false, DEFAULT_COLUMNS);
  }
}
