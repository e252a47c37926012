package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Path;

/** The command as a test runs it: in this JVM, with its output caught. */
final class Cli {
  static final Path FIXTURES = Path.of("..", "testdata", "fixtures").toAbsolutePath().normalize();

  private Cli() {}

  /** What a command did. */
  record Result(int code, String out, String err) {
    Result succeeds() {
      assertThat(code).as("exit code; stderr: %s", err).isZero();
      return this;
    }

    /** {@return stderr as one line, whatever it was broken at} */
    String error() {
      return err.replaceAll("\\s+", " ").strip();
    }

    JsonNode json() {
      try {
        return new ObjectMapper()
            .enable(com.fasterxml.jackson.databind.DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .readTree(out);
      } catch (JsonProcessingException e) {
        throw new AssertionError("stdout is not one JSON document: " + out, e);
      }
    }
  }

  static Result run(String... args) {
    StringWriter out = new StringWriter();
    StringWriter err = new StringWriter();
    int code = Moe.run(new PrintWriter(out), new PrintWriter(err), args);
    return new Result(code, out.toString(), err.toString());
  }

  static String fixture(String path) {
    return FIXTURES.resolve(path).toString();
  }
}
