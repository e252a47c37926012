package io.moe4j.cli;

import static java.util.Locale.ROOT;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.spi.Tuner;
import io.moe4j.cli.bench.DeviceTuning;
import io.moe4j.cli.json.Json;
import java.nio.file.Path;
import java.util.List;

/**
 * What {@code moe tune} found, as text and JSON.
 *
 * @param device the card
 * @param backend whose kernels
 * @param file where the choices are
 * @param sizes how many were asked for
 * @param complete false if it was stopped before all were measured
 * @param rows one a size
 * @param skipped what was left out, and why
 */
record TuneReport(
    String device,
    String backend,
    Path file,
    long sizes,
    boolean complete,
    List<DeviceTuning.Row> rows,
    List<String> skipped) {
  private static boolean changed(DeviceTuning.Row r) {
    return !r.outcome().chosen().equals(r.outcome().builtIn());
  }

  /** Geometric mean of built-in time over tuned time; 1 if nothing was measured. */
  private double gain() {
    return Math.exp(
        rows.stream()
            .mapToDouble(r -> Math.log(r.outcome().builtInMicros() / r.outcome().micros()))
            .average()
            .orElse(0));
  }

  String text() {
    StringBuilder s = new StringBuilder();
    s.append("Tuned on ").append(device).append(" for ").append(backend).append(":\n\n");
    TextTable table =
        new TextTable("layer", ">T", ">adapters", ">us", ">built-in us", ">faster", "choice");
    for (DeviceTuning.Row r : rows) {
      Tuner.Outcome o = r.outcome();
      table.row(
          r.layer(),
          r.tokens(),
          r.lora().adapters() == 0 ? "" : r.lora().adapters() + " of rank " + r.lora().rank(),
          String.format(ROOT, "%.1f", o.micros()),
          String.format(ROOT, "%.1f", o.builtInMicros()),
          changed(r)
              ? String.format(ROOT, "%.1f%%", 100 * (o.builtInMicros() / o.micros() - 1))
              : "",
          changed(r) ? o.chosen() : "as built in");
    }
    s.append(table.render("")).append('\n');
    for (DeviceTuning.Row r : rows) {
      for (String d : r.outcome().dropped()) {
        s.append("dropped at " + r.layer() + " T=" + r.tokens() + ": " + d + "\n");
      }
    }
    skipped.forEach(line -> s.append(line).append('\n'));
    s.append(rows.size() + " of " + sizes + " sizes measured");
    s.append(complete ? "" : " before it was stopped");
    s.append(", another choice than the built-in one at ");
    s.append(rows.stream().filter(TuneReport::changed).count());
    s.append(String.format(ROOT, ", gain in the geometric mean %.1f%%.%n", 100 * (gain() - 1)));
    s.append(rows.isEmpty() ? "Nothing was written." : "Kept in " + file).append('\n');
    return s.toString();
  }

  ObjectNode json() {
    ObjectNode root = Json.document("tune");
    root.put("version", Version.current());
    root.put("device", device);
    root.put("backend", backend);
    root.put("file", file.toString());
    root.put("complete", complete);
    root.put("sizes", sizes);
    root.put("gain", gain());
    ArrayNode all = root.putArray("rows");
    for (DeviceTuning.Row r : rows) {
      Tuner.Outcome o = r.outcome();
      ObjectNode n = all.addObject();
      n.put("layer", r.layer());
      n.put("tokens", r.tokens());
      n.put("adapters", r.lora().adapters());
      n.put("rank", r.lora().rank());
      n.put("us", o.micros());
      n.put("built_in_us", o.builtInMicros());
      n.put("choice", o.chosen());
      n.put("built_in", o.builtIn());
      n.put("measured", o.measured());
      ArrayNode dropped = n.putArray("dropped");
      o.dropped().forEach(dropped::add);
    }
    ArrayNode left = root.putArray("skipped");
    skipped.forEach(left::add);
    return root;
  }
}
