package io.moe4j.cli.bench;

import static java.util.Locale.ROOT;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.cli.json.Json;
import io.moe4j.oracle.Selection;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Optional;
import java.util.SequencedSet;
import java.util.stream.Collectors;

/**
 * A finished run, and its forms as Markdown and JSON; {@link BenchChart} and {@link BenchPage} draw
 * it.
 *
 * @param when ISO date and time
 * @param machine processor, memory, JDK: label and value
 * @param limits the roofline
 * @param rows measured cases, in the order of measuring
 * @param layers what was built for each line of the tables, in the order of measuring
 * @param peers times that others took, as the reader gave them
 */
public record BenchReport(
    String when,
    List<Fact> machine,
    Roofline.Limits limits,
    List<BenchRow> rows,
    List<Layer> layers,
    List<Peer> peers) {
  /** A limit that moves by more than this is none. */
  private static final double UNSTABLE = 2;

  /**
   * Something about the machine.
   *
   * @param key for programs
   * @param label as tables show it
   * @param value for both
   */
  public record Fact(String key, String label, String value) {}

  /**
   * A layer that was measured.
   *
   * @param shape name of its shape
   * @param dtype what experts are stored as
   * @param selection who computed it, why, and what was decided when it was prepared
   */
  public record Layer(String shape, String dtype, Selection selection) {
    /** {@return like {@code kernels: C kernels, AMX; weights: 1024 bytes, packed}} */
    String facts() {
      return selection.facts().stream()
          .map(io.moe4j.api.spi.Fact::toString)
          .collect(Collectors.joining("; "));
    }
  }

  /** {@return shape and dtype of each line of the tables, in the order of measuring} */
  SequencedSet<String> series() {
    SequencedSet<String> all = new LinkedHashSet<>();
    rows.forEach(r -> all.add(r.series()));
    return all;
  }

  /** {@return the token counts, ascending} */
  List<Integer> tokens() {
    return rows.stream().map(BenchRow::tokens).distinct().sorted().toList();
  }

  /** {@return the rows of one series, without or with adapters, by tokens} */
  List<BenchRow> rows(String series, boolean lora) {
    return rows.stream()
        .filter(r -> r.series().equals(series) && r.hasLora() == lora)
        .sorted((a, b) -> Integer.compare(a.tokens(), b.tokens()))
        .toList();
  }

  /** {@return the peers' names, in the order of the file} */
  List<String> peerNames() {
    return peers.stream().map(Peer::name).distinct().toList();
  }

  /** {@return the base layer's row that a peer's time belongs to; empty if it was not measured} */
  Optional<BenchRow> rowOf(Peer peer) {
    return rows(peer.shape() + ", " + peer.dtype(), false).stream()
        .filter(r -> r.tokens() == peer.tokens())
        .findFirst();
  }

  boolean hasLora() {
    return rows.stream().anyMatch(BenchRow::hasLora);
  }

  /** {@return like "rank 16, 8 adapters"} */
  String loraText() {
    return rows.stream()
        .filter(BenchRow::hasLora)
        .findFirst()
        .map(r ->
            "rank "
                + r.rank()
                + ", "
                + r.adapters()
                + (r.adapters() == 1 ? " adapter" : " adapters"))
        .orElse("no adapters");
  }

  String limitsText() {
    Roofline.Bf16 bf16 = limits.bf16();
    String more =
        bf16 == null
            ? ""
            : String.format(
                ROOT,
                "; %.0f GFLOP/s bf16 (%.0f to %.0f) by %s",
                bf16.gflops().median(),
                bf16.gflops().min(),
                bf16.gflops().max(),
                bf16.units());
    return more.isEmpty() ? f32LimitsText() : f32LimitsText() + more;
  }

  private String f32LimitsText() {
    return String.format(
        ROOT,
        "%.1f GB/s read (%.1f to %.1f), %.0f GFLOP/s f32 (%.0f to %.0f), %d threads, %s, %d samples",
        limits.readGbps().median(),
        limits.readGbps().min(),
        limits.readGbps().max(),
        limits.gflops().median(),
        limits.gflops().min(),
        limits.gflops().max(),
        limits.threads(),
        limits.how(),
        limits.gflops().count());
  }

  /** {@return what to think of limits that were never the same; empty where they held still} */
  public Optional<String> warning() {
    List<String> moved = new ArrayList<>();
    if (limits.readGbps().max() > UNSTABLE * limits.readGbps().min()) {
      moved.add("read bandwidth");
    }
    if (limits.gflops().max() > UNSTABLE * limits.gflops().min()) {
      moved.add("multiply-add peak");
    }
    return moved.isEmpty()
        ? Optional.empty()
        : Optional.of(
            String.join(" and ", moved)
                + " changed by more than a factor of two while this ran (something else used the"
                + " machine): fractions of the roofline mean little here");
  }

  /** {@return the report as Markdown} */
  public String markdown() {
    StringBuilder s = new StringBuilder("# moe bench\n\n");
    for (Fact f : machine) {
      s.append("- ").append(f.label()).append(": ").append(f.value()).append('\n');
    }
    for (Layer l : layers) {
      if (!l.selection().facts().isEmpty()) {
        s.append("- ").append(l.shape()).append(' ').append(l.dtype()).append(": ");
        s.append(l.facts()).append('\n');
      }
    }
    s.append("- Limits, sampled between the cases: ").append(limitsText()).append('\n');
    warning().ifPresent(w -> s.append("- **Warning**: ").append(w).append('\n'));
    s.append("- Measured: ").append(when).append("\n\n");
    s.append(
        """
        One forward of one MoE layer (routing included). Cell: median time (fraction of the roofline). The floor of a case is
        the larger of bytes / read bandwidth (weights of the experts that were chosen, router, input, output) and
        flops / multiply-add peak (of bf16 where hidden states are bf16 and the machine has units for it, else of f32); 1.00 is as fast as this machine can be, and more than that means that a cache helped.

        """);
    table(
        s,
        "Base layer",
        false,
        r -> String.format(ROOT, "%s (%.2f)", millis(r.medianNanos()), r.fractionOfFloor()));
    if (hasLora()) {
      table(
          s,
          "LoRA tax (" + loraText() + "): time with / time without",
          true,
          r -> String.format(ROOT, "%.2f", r.tax()));
    }
    peerTable(s);
    return s.toString();
  }

  /** {@return for each layer which backend was chosen and why, what it decided, and all others} */
  public String explanations() {
    return layers.stream()
        .map(l -> "## " + l.shape() + " " + l.dtype() + "\n\n" + l.selection().explain() + "\n")
        .collect(Collectors.joining("\n"));
  }

  private void peerTable(StringBuilder s) {
    if (peers.isEmpty()) {
      return;
    }
    s.append(
        "## Time of a peer / of the base layer\n\n| peer | shape, weights | T | peer | ours | ratio |\n");
    s.append("|---|---|---:|---:|---:|---:|\n");
    for (Peer p : peers) {
      rowOf(p)
          .ifPresent(r ->
              s.append(
                  String.format(
                      ROOT,
                      "| %s | %s | %d | %s | %s | %.2f |\n",
                      p.name().replace("|", "\\|"),
                      r.series(),
                      p.tokens(),
                      millis(p.nanos()),
                      millis(r.medianNanos()),
                      p.nanos() / r.medianNanos())));
    }
    s.append('\n');
    String others = peersLeftOut();
    if (!others.isEmpty()) {
      s.append(others).append("\n\n");
    }
  }

  /**
   * {@return a sentence on peers' times that no case of ours stands beside; empty if all have one}
   */
  String peersLeftOut() {
    String names =
        peers.stream()
            .filter(p -> rowOf(p).isEmpty())
            .map(p -> p.name() + " (" + p.shape() + ", " + p.dtype() + ", T=" + p.tokens() + ")")
            .collect(Collectors.joining("; "));
    return names.isEmpty() ? "" : "Not measured in this run, so not compared: " + names + ".";
  }

  private interface Cell {
    String of(BenchRow row);
  }

  private void table(StringBuilder s, String title, boolean lora, Cell cell) {
    s.append("## ").append(title).append("\n\n| shape, weights |");
    tokens().forEach(t -> s.append(" T=").append(t).append(" |"));
    s.append("\n|---|").append("---:|".repeat(tokens().size())).append('\n');
    for (String series : series()) {
      s.append("| ").append(series).append(" |");
      for (int t : tokens()) {
        String text =
            rows(series, lora).stream()
                .filter(r -> r.tokens() == t)
                .findFirst()
                .map(cell::of)
                .orElse("-");
        s.append(' ').append(text).append(" |");
      }
      s.append('\n');
    }
    s.append('\n');
  }

  /** {@return milliseconds with three digits that matter} */
  static String millis(double nanos) {
    double ms = nanos / 1e6;
    return String.format(
        ROOT, ms < 1 ? "%.3f ms" : ms < 10 ? "%.2f ms" : ms < 100 ? "%.1f ms" : "%.0f ms", ms);
  }

  /** {@return the chart} */
  public String svg() {
    return BenchChart.svg(this);
  }

  /** {@return the report as a page: facts, chart, rows} */
  public String html() {
    return BenchPage.html(this);
  }

  /** {@return the report for programs: machine, limits, one row a case} */
  public ObjectNode json() {
    ObjectNode root = Json.document("bench");
    root.put("measured", when);
    warning().ifPresent(w -> root.put("warning", w));
    ObjectNode m = root.putObject("machine");
    machine.forEach(f -> m.put(f.key(), f.value()));
    ObjectNode l = root.putObject("limits");
    l.put("threads", limits.threads());
    l.put("how", limits.how());
    spread(l.putObject("read_gbps"), limits.readGbps());
    spread(l.putObject("f32_gflops"), limits.gflops());
    Roofline.Bf16 bf16 = limits.bf16();
    if (bf16 != null) {
      l.put("bf16_units", bf16.units());
      spread(l.putObject("bf16_gflops"), bf16.gflops());
    }
    if (!peers.isEmpty()) {
      ArrayNode others = root.putArray("peers");
      for (Peer p : peers) {
        ObjectNode o = others.addObject();
        o.put("name", p.name());
        o.put("shape", p.shape());
        o.put("dtype", p.dtype());
        o.put("tokens", p.tokens());
        o.put("ms", p.nanos() / 1e6);
        rowOf(p).ifPresent(r -> o.put("ratio", p.nanos() / r.medianNanos()));
      }
    }
    ArrayNode built = root.putArray("layers");
    for (Layer layer : layers) {
      ObjectNode o = built.addObject();
      o.put("shape", layer.shape());
      o.put("dtype", layer.dtype());
      ArrayNode facts = o.putArray("facts");
      layer.selection().facts().forEach(f -> facts.add(Json.fact(f)));
    }
    ArrayNode all = root.putArray("rows");
    for (BenchRow r : rows) {
      ObjectNode o = all.addObject();
      o.put("shape", r.shape());
      o.put("dtype", r.dtype());
      o.put("tokens", r.tokens());
      o.put("backend", r.backend());
      o.put("adapters", r.adapters());
      o.put("rank", r.rank());
      o.put("median_ns", Math.round(r.medianNanos()));
      o.put("min_ns", Math.round(r.minNanos()));
      o.put("repetitions", r.repetitions());
      o.put("bytes", Math.round(r.bytes()));
      o.put("flops", Math.round(r.flops()));
      o.put("floor_ns", Math.round(r.floorNanos()));
      o.put("bytes_floor_ns", Math.round(r.bytesNanos()));
      o.put("flops_floor_ns", Math.round(r.flopsNanos()));
      o.put("floor", r.memoryBound() ? "bytes" : "flops");
      o.put("fraction_of_floor", r.fractionOfFloor());
      o.put("tokens_per_second", r.tokensPerSecond());
      if (r.hasLora()) {
        o.put("lora_tax", r.tax());
      }
    }
    return root;
  }

  private static void spread(ObjectNode o, Roofline.Spread s) {
    o.put("median", s.median());
    o.put("min", s.min());
    o.put("max", s.max());
    o.put("samples", s.count());
  }
}
