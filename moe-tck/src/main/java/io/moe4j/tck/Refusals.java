package io.moe4j.tck;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Support;
import java.util.List;
import java.util.Locale;
import java.util.Set;
import java.util.TreeSet;

/** Whether a refusal says what is wrong. */
final class Refusals {
  private Refusals() {}

  /** Fails unless every reason {@linkplain #isReadable is readable}. */
  static void requireReadable(MoeConfig config, Platform platform, Support support) {
    for (Support.Reason reason : support.reasons()) {
      if (!isReadable(config, platform, reason)) {
        throw unreadable(config, reason);
      }
    }
  }

  /**
   * Whether a reason has a code and a message that names a value of the config or of the platform;
   * a sentence without one ("not supported") helps nobody.
   */
  static boolean isReadable(MoeConfig config, Platform platform, Support.Reason reason) {
    String message = reason.message() == null ? "" : reason.message();
    String lower = message.toLowerCase(Locale.ROOT);
    return reason.code() != null
        && !message.isBlank()
        && values(config, platform).stream().anyMatch(lower::contains);
  }

  static AssertionError unreadable(MoeConfig config, Support.Reason reason) {
    return new AssertionError(
        "MOE-1.2: the refusal of "
            + Problem.describe(config)
            + " says ["
            + reason.code()
            + "] \""
            + reason.message()
            + "\", which names no value of the config or the platform; say what was given and"
            + " what is accepted");
  }

  private static Iterable<Object> parts(MoeConfig c) {
    return List.of(
        c.hiddenSize(),
        c.expertHiddenSize(),
        c.intermediateSize(),
        c.numExperts(),
        c.numLocalExperts(),
        c.topK(),
        c.maxTokens(),
        c.latentSize(),
        c.inputDtype(),
        c.weightDtype(),
        c.activation().kind(),
        c.activation().limit(),
        c.activation().alpha(),
        c.quantSchemes(),
        c.quantSchemes().getFirst(),
        c.quantSchemes().getFirst().bits(),
        c.quantSchemes().getFirst().scaleColumns(),
        c.quantSchemes().getFirst().activations(),
        c.routing().scoring(),
        c.routing().numGroups(),
        c.parallel().tpSize(),
        c.parallel().epSize(),
        c.lora().map(l -> l.maxRank()).orElse(0),
        c.lora().map(l -> l.maxLoras()).orElse(0),
        c.activationFormat(),
        // switches: the word is the value
        "bias",
        "router weight",
        "weight on input",
        "weight-on-input",
        "expert map",
        "invarian",
        "lora");
  }

  private static Set<String> values(MoeConfig config, Platform platform) {
    var values = new TreeSet<String>();
    parts(config).forEach(v -> values.add(v.toString().toLowerCase(Locale.ROOT)));
    for (DeviceInfo device : platform.devices()) {
      values.add(device.id().toString());
      values.add(device.name().toLowerCase(Locale.ROOT));
      device.capability().ifPresent(c -> values.add(c.toString()));
      values.add(Long.toString(device.memoryBytes()));
      device.properties().values().forEach(v -> values.add(v.toLowerCase(Locale.ROOT)));
    }
    values.remove("");
    return values;
  }
}
