package io.moe4j.cli;

import ch.qos.logback.classic.Level;
import ch.qos.logback.classic.Logger;
import ch.qos.logback.classic.LoggerContext;
import ch.qos.logback.classic.encoder.PatternLayoutEncoder;
import ch.qos.logback.classic.spi.Configurator;
import ch.qos.logback.classic.spi.ConfiguratorRank;
import ch.qos.logback.classic.spi.ILoggingEvent;
import ch.qos.logback.core.ConsoleAppender;
import ch.qos.logback.core.spi.ContextAwareBase;
import org.slf4j.LoggerFactory;

/**
 * Logging of the command: to stderr, warnings only (what was chosen is part of the results). In
 * Java and not in XML because that starts faster; {@code -Dlogback.configurationFile=...} still
 * wins.
 */
@ConfiguratorRank(ConfiguratorRank.CUSTOM_HIGH_PRIORITY)
public final class LogSetup extends ContextAwareBase implements Configurator {
  private static final String OWN_FILE = "logback.configurationFile";

  /** For logback, through {@code META-INF/services}. */
  public LogSetup() {}

  @Override
  public ExecutionStatus configure(LoggerContext context) {
    if (System.getProperty(OWN_FILE) != null) {
      return ExecutionStatus.INVOKE_NEXT_IF_ANY;
    }
    PatternLayoutEncoder encoder = new PatternLayoutEncoder();
    encoder.setContext(context);
    // Plugins bring texts of their own.
    encoder.setPattern(
        "%-5level %logger{0}: %replace(%msg){'[\\p{Cc}\\p{Cf}&&[^\\n]]', '?'}%n%ex{0}");
    encoder.start();
    ConsoleAppender<ILoggingEvent> appender =
        new ConsoleAppender<>() {
          @Override
          protected void append(ILoggingEvent event) {
            Progress.clearLine();
            super.append(event);
          }
        };
    appender.setContext(context);
    appender.setTarget("System.err");
    appender.setEncoder(encoder);
    appender.start();
    Logger root = context.getLogger(org.slf4j.Logger.ROOT_LOGGER_NAME);
    root.addAppender(appender);
    root.setLevel(Level.WARN);
    return ExecutionStatus.DO_NOT_INVOKE_NEXT_IF_ANY;
  }

  /** Applies {@code --verbose} and {@code --quiet}. */
  static void apply(boolean verbose, boolean quiet) {
    if (System.getProperty(OWN_FILE) != null
        || !(LoggerFactory.getILoggerFactory() instanceof LoggerContext context)) {
      return;
    }
    Logger root = context.getLogger(org.slf4j.Logger.ROOT_LOGGER_NAME);
    root.setLevel(verbose ? Level.INFO : quiet ? Level.ERROR : Level.WARN);
    context.getLogger("io.moe4j").setLevel(verbose ? Level.DEBUG : null);
  }
}
