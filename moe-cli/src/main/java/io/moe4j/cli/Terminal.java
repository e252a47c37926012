package io.moe4j.cli;

import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.cli.json.Json;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.OutputStreamWriter;
import java.io.PrintWriter;
import java.io.Writer;
import java.nio.charset.StandardCharsets;
import java.util.Locale;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;

/**
 * Where a command writes. Results go to {@code out}, everything else to {@code err}, so that output
 * can be piped. What is written contains names out of files and texts of plugins: see {@link
 * SafeWriter}.
 */
final class Terminal {
  private static final int DEFAULT_COLUMNS = 100;
  private static final int MIN_COLUMNS = 20;
  private static final int MAX_COLUMNS = 160;

  private final PrintWriter out;
  private final PrintWriter err;
  private final PrintWriter documents;
  private final PrintWriter help;
  private final @Nullable FailureWriter stdout;
  private final boolean interactive;
  private final int columns;

  private Terminal(Writer stdout, Writer stderr, boolean interactive, int columns, int outColumns) {
    this.stdout = stdout instanceof FailureWriter f ? f : null;
    this.help = new PrintWriter(stdout, true);
    this.documents = new PrintWriter(new SafeWriter(stdout, 0), true);
    this.out = new PrintWriter(new SafeWriter(stdout, outColumns), true);
    this.err = new PrintWriter(new SafeWriter(stderr, interactive ? columns : 0), true);
    this.interactive = interactive;
    this.columns = columns;
  }

  /**
   * The process's own streams. The launcher says whether they are terminals, and how wide; Java
   * cannot. {@link System#out} becomes standard error: what plugins print is not the result.
   */
  static Terminal ofProcess() {
    int columns = Integer.getInteger("moe.terminal.columns", 0);
    int outColumns = Integer.getInteger("moe.terminal.out.columns", 0);
    Writer stdout =
        new FailureWriter(
            new OutputStreamWriter(
                new FileOutputStream(FileDescriptor.out), StandardCharsets.UTF_8));
    System.setOut(System.err);
    return new Terminal(
        stdout,
        new OutputStreamWriter(System.err, StandardCharsets.UTF_8),
        columns > 0,
        columns > MIN_COLUMNS ? Math.min(columns, MAX_COLUMNS) : DEFAULT_COLUMNS,
        outColumns > MIN_COLUMNS ? outColumns : 0);
  }

  /** Streams of a test or an embedding program. */
  static Terminal of(Writer out, Writer err) {
    return new Terminal(out, err, false, DEFAULT_COLUMNS, 0);
  }

  /** Streams as on a terminal of a width. */
  static Terminal of(Writer out, Writer err, int columns) {
    return new Terminal(out, err, true, columns, columns);
  }

  /** {@return results in words} */
  PrintWriter out() {
    return out;
  }

  /** {@return progress, notes, errors} */
  PrintWriter err() {
    return err;
  }

  /** {@return for picocli's help alone, whose colours are escape sequences} */
  PrintWriter help() {
    return help;
  }

  /** {@return whether {@code err} is a terminal, so that progress may be drawn on it} */
  boolean interactive() {
    return interactive;
  }

  /** {@return width to break paragraphs at} */
  int columns() {
    return columns;
  }

  /** Prints the result for programs. Its lines are never broken. */
  void json(ObjectNode document) {
    documents.println(Json.text(document));
  }

  /** Prints the result: the document if there is one, else the text. */
  void print(@Nullable ObjectNode document, Supplier<String> text) {
    if (document != null) {
      json(document);
    } else {
      out.println(text.get().stripTrailing());
    }
  }

  /** {@return whether the reader of standard output went away, which is no fault of anybody's} */
  boolean isPipeClosed() {
    String failure = failure();
    return failure != null && failure.toLowerCase(Locale.ROOT).contains("broken pipe");
  }

  /** {@return why results could not be written; null if all were} */
  @Nullable String failure() {
    out.flush();
    documents.flush();
    help.flush();
    err.flush();
    if (stdout != null) {
      return stdout.failure();
    }
    return out.checkError() || documents.checkError() ? "it was closed" : null;
  }
}
