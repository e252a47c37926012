package io.moe4j.checkpoint;

import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * The families that are known by name: layouts.json beside this class. Keys, shapes and rules are
 * those of Hugging Face transformers 5.17, or of the published code where it lacks a family;
 * defaults of absent config keys are those of its config classes.
 */
final class KnownLayouts {
  private static final String RESOURCE = "layouts.json";

  private final Map<String, ObjectNode> json = new LinkedHashMap<>();
  private final Map<String, CheckpointLayout> byType;

  private KnownLayouts() {
    try (InputStream in = KnownLayouts.class.getResourceAsStream(RESOURCE)) {
      if (in == null) {
        throw new IllegalStateException(RESOURCE + " is missing from the jar");
      }
      ObjectNode file = StrictJson.readObject(RESOURCE, in.readAllBytes());
      byType = Collections.unmodifiableMap(LayoutJson.read(RESOURCE, file, json));
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** Read once; immutable. */
  private static final class Holder {
    static final KnownLayouts INSTANCE = new KnownLayouts();
  }

  /** {@return all of them, by model_type} */
  static Map<String, CheckpointLayout> all() {
    return Holder.INSTANCE.byType;
  }

  /** {@return their JSON, for layouts that extend one; a new map} */
  static Map<String, ObjectNode> json() {
    return new LinkedHashMap<>(Holder.INSTANCE.json);
  }
}
