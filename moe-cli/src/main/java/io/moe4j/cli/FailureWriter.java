package io.moe4j.cli;

import java.io.FilterWriter;
import java.io.IOException;
import java.io.Writer;
import org.jspecify.annotations.Nullable;

/** Remembers why writing failed: a PrintWriter only knows that it did. */
final class FailureWriter extends FilterWriter {
  private @Nullable String failure;

  FailureWriter(Writer out) {
    super(out);
  }

  /** {@return the first failure's reason, or null} */
  @Nullable String failure() {
    return failure;
  }

  private IOException failed(IOException e) {
    if (failure == null) {
      failure = e.getMessage() == null ? e.getClass().getSimpleName() : e.getMessage();
    }
    return e;
  }

  @Override
  public void write(int c) throws IOException {
    try {
      out.write(c);
    } catch (IOException e) {
      throw failed(e);
    }
  }

  @Override
  public void write(char[] chars, int from, int count) throws IOException {
    try {
      out.write(chars, from, count);
    } catch (IOException e) {
      throw failed(e);
    }
  }

  @Override
  public void write(String text, int from, int count) throws IOException {
    try {
      out.write(text, from, count);
    } catch (IOException e) {
      throw failed(e);
    }
  }

  @Override
  public void flush() throws IOException {
    try {
      out.flush();
    } catch (IOException e) {
      throw failed(e);
    }
  }
}
