package io.moe4j.cli;

import io.moe4j.api.AdapterException;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.DeviceException;
import io.moe4j.api.SettingException;
import io.moe4j.api.comm.CommException;
import io.moe4j.oracle.UnsupportedConfigException;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.UncheckedIOException;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileSystemException;
import java.nio.file.NoSuchFileException;
import java.util.HashSet;
import java.util.stream.Collectors;
import picocli.CommandLine;
import picocli.CommandLine.IExecutionExceptionHandler;
import picocli.CommandLine.IParameterExceptionHandler;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.ParseResult;
import picocli.CommandLine.UnmatchedArgumentException;

/** Turns exceptions into one readable paragraph and an exit code. */
final class ErrorPrinter implements IExecutionExceptionHandler, IParameterExceptionHandler {
  private final Moe moe;

  ErrorPrinter(Moe moe) {
    this.moe = moe;
  }

  @Override
  public int handleParseException(ParameterException e, String[] args) {
    CommandLine command = e.getCommandLine();
    PrintWriter err = moe.terminal().err();
    err.println(Text.wrap("moe: " + e.getMessage(), moe.terminal().columns()));
    if (!UnmatchedArgumentException.printSuggestions(e, err)) {
      err.println("Try '" + command.getCommandSpec().qualifiedName() + " --help'.");
    }
    return ExitCode.USAGE;
  }

  @Override
  public int handleExecutionException(Exception e, CommandLine command, ParseResult parsed) {
    return report(e);
  }

  /** Prints what is to be said of a failure. */
  int report(Throwable e) {
    int code = exitCode(e);
    String message = message(e, code);
    Progress.clearLine();
    moe.terminal().err().println(Text.wrap("moe: " + message, moe.terminal().columns()));
    if (moe.verbose()) {
      e.printStackTrace(moe.terminal().err());
    } else if (code == ExitCode.INTERNAL) {
      moe.terminal().err().println("Run it again with --verbose for the stack trace.");
    }
    moe.terminal().err().flush();
    return code;
  }

  private static int exitCode(Throwable e) {
    return switch (e) {
      case CliException c -> c.exitCode();
      case SettingException _ -> ExitCode.USAGE;
      case CheckpointException _, IOException _, UncheckedIOException _ -> ExitCode.BAD_INPUT;
      case AdapterException _ -> ExitCode.ADAPTER_REFUSED;
      case UnsupportedConfigException _ -> ExitCode.UNSUPPORTED;
      case DeviceException _, CommException _, OutOfMemoryError _ -> ExitCode.DEVICE;
      case InternalError i when isMemoryFault(i) -> ExitCode.BAD_INPUT;
      default -> ExitCode.INTERNAL;
    };
  }

  /** What HotSpot throws where a mapped page is no longer there. */
  private static boolean isMemoryFault(InternalError e) {
    return String.valueOf(e.getMessage()).contains("memory access");
  }

  private static String message(Throwable e, int code) {
    String said = e.getMessage();
    return switch (e) {
      case NoSuchFileException f -> f.getFile() + " does not exist.";
      case AccessDeniedException f -> f.getFile() + " may not be read (permission denied).";
      case FileSystemException f ->
          f.getFile()
              + ": "
              + (f.getReason() == null ? f.getClass().getSimpleName() : f.getReason());
      // Its text begins with the sentence that the table repeats.
      case UnsupportedConfigException _ ->
          String.valueOf(said)
              .lines()
              .filter(new HashSet<>()::add)
              .collect(Collectors.joining("\n"));
      case InternalError i when isMemoryFault(i) ->
          "a file was changed in place while it was read (" + said + ").";
      case AdapterException _, CheckpointException _ ->
          AdapterOptions.inOptions(String.valueOf(said));
      case OutOfMemoryError _ ->
          "not enough memory ("
              + said
              + "). The Java heap may grow to "
              + Text.bytes(Runtime.getRuntime().maxMemory())
              + "; set MOE_JAVA_OPTS=-Xmx8g or so to allow more.";
      default ->
          code == ExitCode.INTERNAL
              ? "this is a fault in moe4j or in a plugin: " + Text.line(e.toString())
              : said == null
                  ? e.getClass().getSimpleName()
                  : e instanceof CliException || e instanceof AdapterException
                      ? said
                      : Text.line(said);
    };
  }
}
