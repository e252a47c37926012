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
import org.jspecify.annotations.Nullable;

/**
 * What {@link DeviceBench} measured, as Markdown and JSON.
 *
 * @param device the card
 * @param weights what the experts' weights are
 * @param rows cases in the order of measuring
 * @param restMillis how long the card rested before each; 0 = not at all
 * @param beside what was measured with another backend or other weights, or null
 */
public record DeviceBenchReport(
    DeviceInfo device,
    BenchWeights weights,
    List<Row> rows,
    int restMillis,
    @Nullable Beside beside) {
  /** What a point may take longer than the one beside it without being named. */
  private static final double SLOWER = 1.05;

  /**
   * The same cases by others.
   *
   * @param name backend and weights
   * @param rows their cases
   */
  public record Beside(String name, List<Row> rows) {
    /**
     * Copies the rows.
     *
     * @param name backend and weights
     * @param rows copied
     */
    public Beside {
      rows = List.copyOf(rows);
    }
  }

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
   * @param beside what was measured with others, or null
   */
  public DeviceBenchReport {
    rows = List.copyOf(rows);
  }

  /**
   * {@return the same beside others}
   *
   * @param name their backend and weights
   * @param theirs their cases
   */
  public DeviceBenchReport beside(String name, List<Row> theirs) {
    return new DeviceBenchReport(device, weights, rows, restMillis, new Beside(name, theirs));
  }

  /**
   * One case.
   *
   * @param shape its name
   * @param tokens {@code T}
   * @param lora adapters
   * @param micros of one forward; NaN where it was not timed
   * @param bytes that no forward can do without
   * @param operations likewise
   * @param touched distinct experts of a batch, the mean
   * @param path the backend
   */
  public record Row(
      String shape,
      int tokens,
      DeviceBench.Lora lora,
      double micros,
      double bytes,
      double operations,
      double touched,
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

  /** {@return our time over theirs; NaN where they have no such case} */
  double overBeside(Row r) {
    return theirs(r).map(b -> r.micros() / b.micros()).orElse(Double.NaN);
  }

  private Optional<Row> theirs(Row r) {
    return beside == null
        ? Optional.empty()
        : beside.rows().stream()
            .filter(b ->
                b.shape().equals(r.shape())
                    && b.tokens() == r.tokens()
                    && b.lora().equals(r.lora()))
            .findFirst();
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


            One forward of one layer from router logits to the weighted sum, bf16, replayed from a graph; microseconds of the card (median), their
            ratio to the floor, and with adapters the tax: time with / time without.
            """);
    Set<String> shapes = new LinkedHashSet<>();
    rows.forEach(r -> shapes.add(r.shape()));
    for (String shape : shapes) {
      s.append("\n## ").append(shape).append("\n\n");
      s.append("| T | rank | adapters | us | floor | us / floor | tax |");
      s.append(beside == null ? "" : " " + beside.name() + " us | ours / theirs |").append('\n');
      s.append("|---:|---:|---:|---:|---:|---:|---:|");
      s.append(beside == null ? "" : "---:|---:|").append('\n');
      rows.stream()
          .filter(r -> r.shape().equals(shape))
          .sorted(
              java.util.Comparator.<Row>comparingInt(Row::tokens)
                  .thenComparingInt(r -> r.lora().rank())
                  .thenComparingInt(r -> r.lora().adapters()))
          .forEach(r -> line(s, r));
    }
    return s.append('\n').append(means()).append(comparison()).toString();
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
                " | %s | %s | %s | %s |",
                number("%.1f", r.micros()),
                number("%.1f", floor(r)),
                number("%.2f", r.micros() / floor(r)),
                number("%.2f", tax(r))));
    if (beside != null) {
      s.append(
          theirs(r)
              .map(b -> String.format(ROOT, " %.1f | %.2f |", b.micros(), overBeside(r)))
              .orElse(" - | - |"));
    }
    s.append('\n');
  }

  private static String number(String format, double value) {
    return Double.isNaN(value) ? "-" : String.format(ROOT, format, value);
  }

  /** Ours over theirs as a whole, and each point that is clearly slower. */
  private String comparison() {
    if (beside == null) {
      return "";
    }
    List<Row> known = rows.stream().filter(r -> theirs(r).isPresent()).toList();
    List<String> slower =
        known.stream()
            .filter(r -> overBeside(r) > SLOWER)
            .map(r ->
                String.format(
                    ROOT,
                    "%s T=%d%s %.2f",
                    r.shape(),
                    r.tokens(),
                    r.lora().adapters() == 0
                        ? ""
                        : " rank " + r.lora().rank() + " x " + r.lora().adapters(),
                    overBeside(r)))
            .toList();
    if (known.isEmpty()) {
      return String.format(ROOT, "%nOver %s: no point was measured of both%n", beside.name());
    }
    double mean =
        Math.exp(known.stream().mapToDouble(r -> Math.log(overBeside(r))).average().orElse(0));
    return String.format(
        ROOT,
        "%nOver %s: %.3f in the geometric mean of %d points; over 5%% slower: %s%n",
        beside.name(),
        mean,
        known.size(),
        slower.isEmpty() ? "none" : String.join(", ", slower));
  }

  /** Geometric means of time over floor. */
  private String means() {
    if (rows.stream().allMatch(r -> Double.isNaN(r.micros()))) {
      return "";
    }
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
    if (beside != null) {
      root.put("beside", beside.name());
    }
    ArrayNode all = root.putArray("rows");
    for (Row r : rows) {
      ObjectNode o = all.addObject();
      o.put("shape", r.shape());
      o.put("T", r.tokens());
      o.put("rank", r.lora().rank());
      o.put("adapters", r.lora().adapters());
      if (!Double.isNaN(r.micros())) {
        o.put("us", Math.round(r.micros() * 10) / 10.0);
      }
      double floor = floor(r);
      if (!Double.isNaN(floor)) {
        o.put("floor_us", Math.round(floor * 10) / 10.0);
      }
      o.put("touched", Math.round(r.touched() * 10) / 10.0);
      o.put("path", r.path());
      theirs(r).ifPresent(b -> o.put("beside_us", Math.round(b.micros() * 10) / 10.0));
    }
    return root;
  }
}
