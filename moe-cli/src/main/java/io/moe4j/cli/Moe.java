package io.moe4j.cli;

import java.io.PrintWriter;
import java.util.LinkedHashMap;
import java.util.Map;
import picocli.AutoComplete;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Help.Ansi;
import picocli.CommandLine.HelpCommand;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.ScopeType;
import picocli.CommandLine.Spec;

/** The {@code moe} command: what its subcommands share, and the process's entry. */
@Command(
    name = "moe",
    description = {
      "Runs Mixture-of-Experts layers of Hugging Face checkpoints, with PEFT adapters mixed in one"
          + " batch, on the best backend that fits.",
      "",
      "'moe run' without options runs the bundled sample and checks it against recorded results."
    },
    mixinStandardHelpOptions = true,
    scope = ScopeType.INHERIT,
    versionProvider = Version.class,
    synopsisSubcommandLabel = "COMMAND",
    subcommands = {
      RunCommand.class,
      BackendsCommand.class,
      InspectCommand.class,
      BenchCommand.class,
      TuneCommand.class,
      DoctorCommand.class,
      HelpCommand.class,
    })
public final class Moe implements Runnable {
  /** As narrow as picocli lays out help. */
  private static final int MIN_HELP_COLUMNS = 55;

  private final Terminal terminal;

  @Mixin private final CommonOptions common = new CommonOptions();

  @Spec private CommandSpec spec;

  @SuppressWarnings("NullAway.Init") // picocli sets spec
  Moe(Terminal terminal) {
    this.terminal = terminal;
  }

  /**
   * The process.
   *
   * @param args the command line
   */
  public static void main(String[] args) {
    System.exit(run(Terminal.ofProcess(), args));
  }

  /**
   * Runs the command without ending the process: for tests, and for programs that embed it.
   *
   * @param out where results go
   * @param err where notes and errors go
   * @param args the command line
   * @return the exit code
   */
  public static int run(PrintWriter out, PrintWriter err, String... args) {
    return run(Terminal.of(out, err), args);
  }

  static int run(Terminal terminal, String... args) {
    CommandLine line = commandLine(terminal);
    int code;
    try {
      code = line.execute(args);
    } catch (Throwable e) { // errors; picocli hands exceptions on
      code = new ErrorPrinter(line.getCommand()).report(e);
    }
    String failure = terminal.failure();
    if (terminal.isPipeClosed()) {
      return code == ExitCode.OK ? ExitCode.CLOSED_PIPE : code; // head has read all it wanted
    }
    if (failure != null) {
      terminal.err().println("moe: the result could not be written to standard output: " + failure);
      terminal.err().flush();
      return code == ExitCode.OK ? ExitCode.OUTPUT : code;
    }
    return code;
  }

  static CommandLine commandLine(Terminal terminal) {
    Moe moe = new Moe(terminal);
    CommandLine line = new CommandLine(moe);
    CommandLine completion = new CommandLine(new AutoComplete.GenerateCompletion());
    completion
        .getCommandSpec()
        .name("completion")
        .usageMessage()
        .description("Print a completion script for bash and zsh: source <(moe completion)");
    line.addSubcommand("completion", completion);
    ErrorPrinter errors = new ErrorPrinter(moe);
    line.setOut(terminal.help())
        .setErr(terminal.err())
        .setExpandAtFiles(false) // a path may begin with @
        .setCaseInsensitiveEnumValuesAllowed(true)
        .setUsageHelpAutoWidth(false)
        .setUsageHelpWidth(Math.max(MIN_HELP_COLUMNS, terminal.columns()))
        .setAbbreviatedOptionsAllowed(false)
        .setExecutionExceptionHandler(errors)
        .setParameterExceptionHandler(errors)
        .setExecutionStrategy(parsed -> {
          LogSetup.apply(moe.common.verbose, moe.common.quiet);
          return new CommandLine.RunLast().execute(parsed);
        });
    if (!terminal.interactive()) {
      line.setColorScheme(CommandLine.Help.defaultColorScheme(Ansi.OFF));
    }
    Map<String, String> codes = new LinkedHashMap<>();
    for (String c : ExitCode.HELP) {
      codes.put(c.substring(0, c.indexOf(':')), c.substring(c.indexOf(':') + 1));
    }
    line.getCommandSpec().usageMessage().exitCodeListHeading("%nExit codes:%n").exitCodeList(codes);
    return line;
  }

  @Override
  public void run() {
    spec.commandLine().usage(terminal.help());
  }

  Terminal terminal() {
    return terminal;
  }

  boolean verbose() {
    return common.verbose;
  }

  boolean quiet() {
    return common.quiet;
  }

  /** A note on stderr, unless quiet. */
  void note(String message) {
    if (!common.quiet) {
      Progress.clearLine();
      terminal.err().println(message);
    }
  }
}
