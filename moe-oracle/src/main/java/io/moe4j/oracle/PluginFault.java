package io.moe4j.oracle;

import java.lang.reflect.InvocationTargetException;

/**
 * A plugin threw something. {@link #guard} is the only place of this module that catches errors of
 * every kind: providers are strangers, may be written in a language that ignores Java's checked
 * exceptions or throws bare {@link Error}s, and may be linked against classes that are not there;
 * whatever they do must end as a row in a table. What says that the virtual machine itself is in
 * trouble is passed on.
 */
final class PluginFault extends Exception {
  private static final long serialVersionUID = 1L;

  private PluginFault(Throwable cause) {
    super(describe(cause), cause);
  }

  /** A call into a plugin. */
  interface Call<T> {
    T run() throws Exception;
  }

  static <T> T guard(Call<T> call) throws PluginFault {
    try {
      return call.run();
    } catch (VirtualMachineError e) {
      throw e;
    } catch (InvocationTargetException e) {
      Throwable thrown = e.getTargetException();
      if (thrown instanceof VirtualMachineError fatal) {
        throw fatal;
      }
      throw new PluginFault(thrown);
    } catch (Exception | Error e) {
      throw new PluginFault(e);
    }
  }

  /** A readable clause. */
  private static String describe(Throwable t) {
    Throwable shown = t;
    if (t instanceof ExceptionInInitializerError && t.getCause() != null) {
      shown = t.getCause();
    }
    String text = String.valueOf(shown.getMessage());
    return switch (shown) {
      case UnsupportedClassVersionError e ->
          "compiled for a newer Java than this one (" + Runtime.version().feature() + "): " + text;
      case NoClassDefFoundError e when text.startsWith("Could not initialize") -> text;
      case NoClassDefFoundError e -> "class " + text.replace('/', '.') + " is missing";
      case ClassNotFoundException e -> "class " + text + " is missing";
      case NoSuchMethodError e ->
          "method " + text + " is missing: built against another version of what it calls";
      case AbstractMethodError e -> "built against another version of moe-api: " + text;
      default ->
          shown.getMessage() == null
              ? shown.getClass().getName()
              : shown.getClass().getName() + ": " + text;
    };
  }
}
