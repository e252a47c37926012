package io.moe4j.cli;

import me.tongfei.progressbar.ConsoleProgressBarConsumer;
import me.tongfei.progressbar.ProgressBar;
import me.tongfei.progressbar.ProgressBarBuilder;
import me.tongfei.progressbar.ProgressBarStyle;
import org.jspecify.annotations.Nullable;

/** A progress bar on a terminal's stderr; nothing at all elsewhere, or when asked to be quiet. */
final class Progress implements AutoCloseable {
  private static final String ERASE = "\r\u001b[K";

  /** Whether a bar may be on the line that stderr is at. */
  private static volatile boolean drawn;

  private final @Nullable ProgressBar bar;

  private Progress(@Nullable ProgressBar bar) {
    this.bar = bar;
  }

  static Progress start(Moe moe, String task, long steps) {
    Terminal terminal = moe.terminal();
    if (!terminal.interactive() || moe.quiet() || steps == 0) {
      return new Progress(null);
    }
    drawn = true;
    return new Progress(
        new ProgressBarBuilder()
            .setTaskName(task)
            .setInitialMax(steps)
            .setStyle(ProgressBarStyle.COLORFUL_UNICODE_BLOCK)
            .setUpdateIntervalMillis(100)
            .hideEta()
            .clearDisplayOnFinish()
            // A fixed width spares the library's look at the terminal, which loads native code.
            .setConsumer(new ConsoleProgressBarConsumer(System.err, terminal.columns() - 1))
            .build());
  }

  /** To be called before anything else is written to stderr: takes the bar off its line. */
  static void clearLine() {
    if (drawn) {
      System.err.print(ERASE);
      System.err.flush();
    }
  }

  /** Says what is being done now. */
  void doing(String what) {
    if (bar != null) {
      bar.setExtraMessage(Text.line(what));
    }
  }

  /** So many steps are done, of so many. */
  void at(String what, long done, long total) {
    if (bar != null) {
      bar.maxHint(total);
      bar.stepTo(done);
      bar.setExtraMessage(Text.line(what));
    }
  }

  /** One step is done. */
  void step() {
    if (bar != null) {
      bar.step();
    }
  }

  @Override
  public void close() {
    if (bar != null) {
      bar.close();
      clearLine();
      drawn = false;
    }
  }
}
