package io.moe4j.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Support;
import io.moe4j.cli.json.Json;
import io.moe4j.oracle.Candidate;
import io.moe4j.oracle.FoundBackend;
import io.moe4j.oracle.PluginFailure;
import io.moe4j.oracle.PluginOrigin;
import io.moe4j.oracle.Selection;
import java.util.List;
import java.util.Locale;

/**
 * The oracle's records as JSON. Plugins' texts are whole, however short a table has them; what
 * nobody wrote for a reader ends somewhere.
 */
final class SelectionJson {
  private static final int MAX_TEXT = 10_000;

  private SelectionJson() {}

  /** {@return a plugin's text, cut where it is longer than anybody would write} */
  private static String text(String given) {
    return Text.cut(given, MAX_TEXT);
  }

  static ObjectNode of(Selection s) {
    ObjectNode root = Json.object();
    s.requested().ifPresent(r -> root.put("requested", r));
    s.chosen().ifPresentOrElse(c -> root.put("chosen", c.name()), () -> root.putNull("chosen"));
    ArrayNode candidates = root.putArray("candidates");
    for (Candidate c : s.candidates()) {
      ObjectNode n = backend(c.backend());
      if (c.priority().isPresent()) {
        n.put("priority", c.priority().getAsInt());
      }
      n.put("supported", c.isSupported());
      reasons(n.putArray("reasons"), c.support().reasons());
      candidates.add(n);
    }
    root.set("failures", failures(s.failures()));
    root.set("platform", platform(s.platform()));
    return root;
  }

  static ObjectNode backend(FoundBackend b) {
    ObjectNode n = Json.object();
    n.put("name", b.name());
    n.put("description", text(b.description()));
    n.put("device", b.deviceType().name());
    n.put("activation_format", b.activationFormat().name().toLowerCase(Locale.ROOT));
    n.put("supports_lora", b.supportsLora());
    origin(n, b.origin());
    return n;
  }

  static ArrayNode failures(List<PluginFailure> failures) {
    ArrayNode array = Json.array();
    for (PluginFailure f : failures) {
      ObjectNode n = array.addObject();
      n.put("name", text(f.name()));
      n.put("reason", text(f.reason().message()));
      origin(n, f.origin());
    }
    return array;
  }

  static ObjectNode platform(Platform p) {
    ObjectNode root = Json.object();
    ArrayNode devices = root.putArray("devices");
    for (DeviceInfo d : p.devices()) {
      ObjectNode n = devices.addObject();
      n.put("id", d.id().toString());
      n.put("name", text(d.name()));
      d.capability().ifPresent(c -> n.put("capability", c.toString()));
      if (d.memoryBytes() > 0) {
        n.put("memory_bytes", d.memoryBytes());
      }
      ObjectNode properties = n.putObject("properties");
      d.properties().forEach((key, value) -> properties.put(text(key), text(value)));
    }
    ObjectNode absent = root.putObject("absent");
    p.absent().forEach((type, why) -> absent.put(type.name(), text(why)));
    return root;
  }

  private static void reasons(ArrayNode array, List<Support.Reason> reasons) {
    for (Support.Reason r : reasons) {
      ObjectNode n = array.addObject();
      n.put("code", r.code().name().toLowerCase(Locale.ROOT));
      n.put("message", text(r.message()));
    }
  }

  private static void origin(ObjectNode n, PluginOrigin o) {
    n.put("jar", o.location());
    o.version().ifPresent(v -> n.put("version", text(v)));
    o.plugin().ifPresent(p -> n.put("plugin", text(p)));
  }
}
