package io.moe4j.cli.bench;

import static java.util.Locale.ROOT;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.cli.json.Json;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;

/**
 * What {@link DeviceBench} measured, as Markdown and JSON.
 *
 * @param device the card
 * @param weights what the experts' weights are
 * @param rows cases in the order of measuring
 * @param restMillis how long the card rested before each; 0 = not at all
 */
public record DeviceBenchReport(
    DeviceInfo device, BenchWeights weights, List<Row> rows, int restMillis) {
  /**
   * What a card was measured to do at best.
   *
   * @param card part of the device's name
   * @param bytes a second, read and written, in a large copy
   * @param operations a second, in a large bf16 product
   */
  private record Ceiling(String card, double bytes, double operations) {}

  private static final List<Ceiling> CEILINGS = List.of(new Ceiling("H200", 4.3e12, 790e12));

  /**
   * Keeps what it works with.
   *
   * @param device the card
   * @param weights what the experts' weights are
   * @param rows copied
   * @param restMillis how long the card rested before each
   */
  public DeviceBenchReport {
    rows = List.copyOf(rows);
  }

  /**
   * One case.
   *
   * @param shape its name
   * @param tokens {@code T}
   * @param lora adapters
   * @param micros of one forward
   * @param bytes that no forward can do without
   * @param operations likewise
   * @param path the backend
   */
  public record Row(
      String shape,
      int tokens,
      DeviceBench.Lora lora,
      double micros,
      double bytes,
      double operations,
      String path) {}

  private Optional<Ceiling> ceiling() {
    return CEILINGS.stream().filter(c -> device.name().contains(c.card())).findFirst();
  }

  /** {@return microseconds, NaN for a card whose ceilings are not known} */
  double floor(Row r) {
    return ceiling()
        .map(c -> 1e6 * Math.max(r.bytes() / c.bytes(), r.operations() / c.operations()))
        .orElse(Double.NaN);
  }

  private Optional<Row> base(Row r) {
    return rows.stream()
        .filter(b ->
            b.lora().adapters() == 0
                && b.shape().equals(r.shape())
                && b.tokens() == r.tokens()
                && b.path().equals(r.path()))
        .findFirst();
  }

  /** {@return time with adapters over time without; NaN where either is not there} */
  double tax(Row r) {
    return r.lora().adapters() == 0
        ? Double.NaN
        : base(r).map(b -> r.micros() / b.micros()).orElse(Double.NaN);
  }

  /** {@return the report as Markdown} */
  public String markdown() {
    StringBuilder s = new StringBuilder("# moe bench --device cuda\n\n");
    s.append("- Device: ").append(device.name());
    device.capability().ifPresent(c -> s.append(", capability ").append(c));
    s.append("\n- Weights: ")
        .append(weights.text())
        .append("\n- Floor: ")
        .append(
            ceiling()
                .map(c ->
                    String.format(
                        ROOT,
                        "the larger of bytes / %.1f TB/s and operations / %.0f TFLOP/s",
                        c.bytes() / 1e12,
                        c.operations() / 1e12))
                .orElse("not known for this card"))
        .append(
            restMillis > 0
                ? "\n- Clock: the card rested " + restMillis + " ms before each case"
                : "\n- Clock: the card comes from the case before, at full load")
        .append(
            """


            One forward of one layer from router logits to the weighted sum, bf16, replayed from a graph; microseconds (median), their
            ratio to the floor, and with adapters the tax: time with / time without.
            """);
    Set<String> shapes = new LinkedHashSet<>();
    rows.forEach(r -> shapes.add(r.shape()));
    for (String shape : shapes) {
      s.append("\n## ").append(shape).append("\n\n");
      s.append("| T | rank | adapters | us | floor | us / floor | tax |\n");
      s.append("|---:|---:|---:|---:|---:|---:|---:|\n");
      rows.stream()
          .filter(r -> r.shape().equals(shape))
          .sorted(
              java.util.Comparator.<Row>comparingInt(Row::tokens)
                  .thenComparingInt(r -> r.lora().rank())
                  .thenComparingInt(r -> r.lora().adapters()))
          .forEach(r -> line(s, r));
    }
    return s.append('\n').append(means()).toString();
  }

  private void line(StringBuilder s, Row r) {
    boolean lora = r.lora().adapters() > 0;
    s.append("| ")
        .append(r.tokens())
        .append(" | ")
        .append(lora ? r.lora().rank() : "-")
        .append(" | ")
        .append(lora ? r.lora().adapters() : "-")
        .append(
            String.format(
                ROOT,
                " | %.1f | %.1f | %.2f | %s |%n",
                r.micros(),
                floor(r),
                r.micros() / floor(r),
                lora ? String.format(ROOT, "%.2f", tax(r)) : "-"));
  }

  /** Geometric means of time over floor. */
  private String means() {
    StringBuilder s = new StringBuilder("| us / floor, geometric mean | base | with adapters |\n");
    s.append("|---|---:|---:|\n");
    int[][] ranges = {{1, 64}, {65, 1024}, {1025, Integer.MAX_VALUE}, {1, Integer.MAX_VALUE}};
    String[] names = {"T <= 64", "T 65..1024", "T > 1024", "all"};
    for (int i = 0; i < ranges.length; i++) {
      s.append("| ").append(names[i]);
      for (boolean lora : new boolean[] {false, true}) {
        int[] range = ranges[i];
        double mean =
            Math.exp(
                rows.stream()
                    .filter(r -> (r.lora().adapters() > 0) == lora)
                    .filter(r -> r.tokens() >= range[0] && r.tokens() <= range[1])
                    .mapToDouble(r -> Math.log(r.micros() / floor(r)))
                    .average()
                    .orElse(Double.NaN));
        s.append(String.format(ROOT, " | %.3f", mean));
      }
      s.append(" |\n");
    }
    return s.toString();
  }

  /** {@return the report for programs: the device, one row a case} */
  public ObjectNode json() {
    ObjectNode root = Json.document("bench.device");
    root.put("device", device.name());
    ArrayNode all = root.putArray("rows");
    for (Row r : rows) {
      ObjectNode o = all.addObject();
      o.put("shape", r.shape());
      o.put("T", r.tokens());
      o.put("rank", r.lora().rank());
      o.put("adapters", r.lora().adapters());
      o.put("us", Math.round(r.micros() * 10) / 10.0);
      double floor = floor(r);
      if (!Double.isNaN(floor)) {
        o.put("floor_us", Math.round(floor * 10) / 10.0);
      }
      o.put("path", r.path());
    }
    return root;
  }
}
