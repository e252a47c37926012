package io.moe4j.oracle;

import java.io.InterruptedIOException;
import java.lang.reflect.InvocationTargetException;
import java.net.SocketTimeoutException;
import java.nio.channels.ClosedByInterruptException;
import java.util.Map;
import java.util.Optional;
import java.util.function.UnaryOperator;

/**
 * A plugin threw something. {@link #guard} is the only place of this module that catches errors of
 * every kind: providers are strangers, may be written in a language that ignores Java's checked
 * exceptions or throws bare {@link Error}s, and may be linked against classes that are not there;
 * whatever they do must end as a row in a table. That holds for a {@link VirtualMachineError} too:
 * a plugin that calls itself without end, or asks for more memory than there is, has failed, and
 * the virtual machine goes on.
 */
final class PluginFault extends Exception {
  private static final long serialVersionUID = 1L;
  private static final int MAX_CAUSES = 100;

  /**
   * Its packages are there wherever this class is, so one of its classes is missing for a reason.
   */
  private static final String API = "io.moe4j.api.";

  /** Jars of ours that plugins stand on, by the packages that they alone have. */
  private static final Map<String, String> JARS =
      Map.of(
          "io.moe4j.cuda.",
          "moe-cuda",
          "io.moe4j.checkpoint.",
          "moe-checkpoint",
          "jcuda.",
          "jcuda (moe-cuda depends on it)");

  private PluginFault(Throwable cause) {
    super(describe(cause, Printable::whole), printable(cause));
  }

  /** A call into a plugin. */
  interface Call<T> {
    T run() throws Exception;
  }

  /**
   * @param who whom a user would wait for, if this took long
   */
  static <T> T guard(String who, Call<T> call) throws PluginFault {
    boolean interrupted = Thread.currentThread().isInterrupted();
    try (SlowPlugins _ = SlowPlugins.watch(who)) {
      return call.run();
    } catch (InvocationTargetException e) {
      forgetInterrupt(interrupted);
      throw new PluginFault(e.getTargetException());
    } catch (Throwable e) {
      forgetInterrupt(interrupted);
      throw new PluginFault(e);
    }
  }

  /** An interrupt that a failed plugin leaves would end the next reading of a file. */
  private static void forgetInterrupt(boolean before) {
    if (!before) {
      Thread.interrupted();
    }
  }

  /**
   * The same for a call that fails with an exception of its own: an interrupt that came from
   * outside, so that the plugin failed because of it, is the caller's and stays.
   *
   * @param before whether the thread was interrupted before the call
   * @param thrown by the call
   */
  static void forgetInterrupt(boolean before, Throwable thrown) {
    if (!wasInterrupted(thrown)) {
      forgetInterrupt(before);
    }
  }

  private static boolean wasInterrupted(Throwable thrown) {
    try {
      Throwable t = thrown;
      for (int depth = 0; t != null && depth < MAX_CAUSES; depth++) {
        if (t instanceof InterruptedException
            || t instanceof ClosedByInterruptException
            || (t instanceof InterruptedIOException && !(t instanceof SocketTimeoutException))) {
          return true;
        }
        t = t.getCause();
      }
    } catch (Throwable e) {
      return false; // a stranger's getCause
    }
    return false;
  }

  private static String missing(String name) {
    return "class "
        + name
        + " is missing"
        + (name.startsWith(API) ? ": built against another version of moe-api" : "")
        + JARS.entrySet().stream()
            .filter(j -> name.startsWith(j.getKey()))
            .findFirst()
            .map(j -> ": add " + j.getValue())
            .orElse("");
  }

  /** {@return what was thrown, or something in its place if printing it would throw again} */
  static Throwable printable(Throwable thrown) {
    return unreadable(thrown).<Throwable>map(IllegalStateException::new).orElse(thrown);
  }

  private static Optional<String> unreadable(Throwable thrown) {
    try {
      Throwable t = thrown;
      for (int depth = 0; t != null && depth < MAX_CAUSES; depth++) {
        String said = t.toString() + t.getMessage();
        t = said.isEmpty() ? null : t.getCause();
      }
      return Optional.empty();
    } catch (Throwable e) {
      return Optional.of(
          thrown.getClass().getName()
              + ", whose message cannot be read: "
              + e.getClass().getName());
    }
  }

  /** A readable clause. */
  static String describe(Throwable thrown) {
    return describe(thrown, Printable::text);
  }

  /**
   * @param said what becomes of a plugin's own words
   */
  private static String describe(Throwable thrown, UnaryOperator<String> said) {
    Optional<String> unreadable = unreadable(thrown);
    if (unreadable.isPresent()) {
      return unreadable.get();
    }
    Throwable cause = thrown.getCause();
    Throwable shown =
        thrown instanceof ExceptionInInitializerError && cause != null ? cause : thrown;
    String text = String.valueOf(shown.getMessage());
    return switch (shown) {
      case UnsupportedClassVersionError e ->
          "compiled for a newer Java than this one (" + Runtime.version().feature() + "): " + text;
      case NoClassDefFoundError e when text.startsWith("Could not initialize") ->
          e.getCause() == null ? text : text + ": " + said.apply(e.getCause().getMessage() + "");
      case NoClassDefFoundError e -> missing(text.replace('/', '.'));
      case ClassNotFoundException e -> missing(text);
      case NoSuchMethodError e ->
          "method " + text + " is missing: built against another version of what it calls";
      case AbstractMethodError e -> "built against another version of moe-api: " + text;
      case IncompatibleClassChangeError e when e.getMessage() != null ->
          said.apply(text) + ": built against another version of what it calls";
      default ->
          shown.getMessage() == null
              ? shown.getClass().getName()
              : shown.getClass().getName() + ": " + said.apply(text);
    };
  }
}
