package io.moe4j.oracle;

import jdk.jfr.Category;
import jdk.jfr.Description;
import jdk.jfr.Event;
import jdk.jfr.Label;
import jdk.jfr.Name;
import jdk.jfr.StackTrace;
import jdk.jfr.Timespan;

/**
 * What Java Flight Recorder is told. Nothing is written, and next to nothing done, while no
 * recording runs.
 */
final class Events {
  private Events() {}

  /** Loads what a forward needs: Flight Recorder looks at a class of events when it is loaded. */
  static void load() {
    new Forward().end();
  }

  /** One forward of a layer. On a device other than the host: until it is enqueued. */
  @Name("io.moe4j.Forward")
  @Label("Forward")
  @Category("moe4j")
  @Description("One forward of one MoE layer")
  @StackTrace(false)
  static final class Forward extends Event {
    @Label("Backend")
    String backend = "";

    @Label("Device")
    String device = "";

    @Label("Tokens")
    long tokens;

    @Label("With adapters")
    boolean lora;

    @Label("Waited for scratch")
    @Timespan
    long scratchWait;

    @Label("Failed")
    boolean failed;
  }

  /** One choice of a backend. */
  @Name("io.moe4j.Selection")
  @Label("Selection")
  @Category("moe4j")
  @Description("Which backend was chosen for a layer, and why not the others")
  @StackTrace(false)
  static final class Choice extends Event {
    @Label("Chosen")
    String chosen = "";

    @Label("Asked for")
    String requested = "";

    @Label("In words")
    String summary = "";
  }

  /** One backend or device provider that was found, or could not be used. */
  @Name("io.moe4j.Plugin")
  @Label("Plugin")
  @Category("moe4j")
  @Description("A backend or device provider that was found, or why it cannot be used")
  @StackTrace(false)
  static final class Plugin extends Event {
    @Label("Name")
    String name = "";

    @Label("From")
    String origin = "";

    @Label("Usable")
    boolean usable;

    @Label("Reason")
    String reason = "";
  }

  static void plugin(String name, PluginOrigin origin, boolean usable, String reason) {
    Plugin e = new Plugin();
    if (e.isEnabled()) {
      e.name = name;
      e.origin = origin.toString();
      e.usable = usable;
      e.reason = reason;
      e.commit();
    }
  }
}
