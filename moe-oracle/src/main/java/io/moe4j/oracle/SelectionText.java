package io.moe4j.oracle;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.spi.Fact;
import io.moe4j.api.spi.Support;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.stream.Collectors;

/** A selection in words. */
final class SelectionText {
  private static final List<String> HEADER =
      List.of("", "backend", "priority", "from", "version", "verdict");

  private SelectionText() {}

  static String summary(Selection s) {
    String out;
    if (s.chosen().isPresent()) {
      out =
          "Using "
              + s.chosen().get().name()
              + " experts backend"
              + (s.isExplicit() ? ", as asked for," : "")
              + " out of candidates "
              + names(s);
    } else {
      out = headline(s);
    }
    return out + refusals(s);
  }

  private static List<String> names(Selection s) {
    return s.supported().stream().map(Candidate::name).toList();
  }

  private static String refusals(Selection s) {
    List<String> all = new ArrayList<>();
    for (Candidate c : s.refused()) {
      all.add(c.name() + ": " + Printable.line(c.support().toString()));
    }
    for (PluginFailure f : s.failures()) {
      all.add(Printable.line(f.name()) + ": " + Printable.line(f.reason().message()));
    }
    return all.isEmpty() ? "" : " (refused: " + String.join(" | ", all) + ")";
  }

  static String headline(Selection s) {
    if (s.chosen().isPresent()) {
      return "chosen: " + s.chosen().get().name() + why(s);
    }
    if (s.requested().isEmpty()) {
      return s.candidates().isEmpty()
          ? "no experts backend was found: add backend-cpu or another backend to the class path, or"
              + " name a plugins directory"
          : "no experts backend fits this layer on this machine";
    }
    String name = s.requested().get();
    return s.candidate(name)
        .map(c ->
            "backend \""
                + name
                + "\" was asked for and cannot run this layer: "
                + Printable.line(c.support().toString()))
        .or(() ->
            s.failures().stream()
                .filter(f -> f.name().equals(name))
                .findFirst()
                .map(f ->
                    "backend \""
                        + name
                        + "\" was asked for and cannot be used: "
                        + Printable.line(f.reason().message())))
        .orElseGet(() ->
            "backend \""
                + name
                + "\" was asked for and is not known; known are "
                + s.candidates().stream().map(Candidate::name).sorted().toList());
  }

  private static String why(Selection s) {
    if (s.isExplicit()) {
      return " (asked for by name)";
    }
    List<Candidate> fit = s.supported();
    long highest = fit.stream().filter(c -> c.priority().equals(fit.getFirst().priority())).count();
    return fit.size() == 1
        ? " (the only one that fits)"
        : highest == 1
            ? " (highest priority of " + fit.size() + " that fit)"
            : " (first by name of "
                + highest
                + " with the highest priority, of "
                + fit.size()
                + " that fit)";
  }

  static String explain(Selection s) {
    List<List<String>> rows = new ArrayList<>();
    rows.add(HEADER);
    for (Candidate c : s.candidates()) {
      boolean chosen = s.chosen().isPresent() && s.chosen().get().equals(c);
      String verdict = chosen ? "chosen" : c.isSupported() ? "fits" : "";
      String priority = c.priority().isPresent() ? Integer.toString(c.priority().getAsInt()) : "-";
      addRows(
          rows,
          chosen ? "*" : "",
          c.name(),
          priority,
          c.backend().origin(),
          verdict,
          c.support().reasons());
    }
    for (PluginFailure f : s.failures()) {
      addRows(rows, "!", f.name(), "-", f.origin(), "", List.of(f.reason()));
    }
    return "layer:   "
        + layer(s.config())
        + "\nmachine: "
        + machine(s)
        + "\n"
        + headline(s)
        + s.chosen().map(c -> ": " + Printable.line(c.backend().description())).orElse("")
        + s.facts().stream().map(f -> "\n" + fact(f)).collect(Collectors.joining())
        + (movesRows(s) ? "\n" + s.exchange() : "")
        + (s.candidates().isEmpty() && s.failures().isEmpty() ? "" : "\n\n" + table(rows))
        + ServingJars.missing(s).stream().map(m -> "\n" + m).collect(Collectors.joining());
  }

  /** Names stand in a column with "layer:" and "machine:". */
  private static String fact(Fact f) {
    String bytes =
        f.bytes() == 0
            ? ""
            : String.format(
                Locale.ROOT, "%d bytes (%.1f MiB), ", f.bytes(), f.bytes() / (double) (1 << 20));
    return String.format(Locale.ROOT, "%-8s ", f.name() + ":") + bytes + Printable.line(f.text());
  }

  /** One rank with STANDARD experts is nothing to explain. */
  private static boolean movesRows(Selection s) {
    return !s.exchange().isEmpty()
        && (s.config().parallel().worldSize() > 1
            || s.config().activationFormat() == ActivationFormat.BATCHED);
  }

  private static void addRows(
      List<List<String>> rows,
      String mark,
      String name,
      String priority,
      PluginOrigin origin,
      String verdict,
      List<Support.Reason> reasons) {
    List<String> lines =
        reasons.isEmpty()
            ? List.of(verdict)
            : reasons.stream().map(r -> Printable.line(r.message())).toList();
    rows.add(
        List.of(
            mark,
            Printable.line(name),
            priority,
            Printable.line(origin.shortLocation()),
            Printable.line(origin.version().orElse("-")),
            lines.getFirst()));
    for (String more : lines.subList(1, lines.size())) {
      rows.add(List.of("", "", "", "", "", more));
    }
  }

  private static String layer(MoeConfig c) {
    return "E="
        + c.numExperts()
        + (c.expertMap().isPresent() ? " (" + c.numLocalExperts() + " here)" : "")
        + " top_k="
        + c.topK()
        + " H="
        + c.hiddenSize()
        + " I="
        + c.intermediateSize()
        + (c.latentSize() > 0 ? " D=" + c.latentSize() : "")
        + (c.zeroExperts() > 0 ? " zero=" + c.zeroExperts() : "")
        + ", "
        + c.quantSchemes().stream()
            .map(q -> q.isNone() ? c.weightDtype().toString() : q.toString())
            .collect(Collectors.joining(" and "))
        + " weights, "
        + c.inputDtype()
        + " input, "
        + c.activation().kind()
        + ", "
        + c.activationFormat()
        + (c.quantizedActivations() ? ", quantised activations" : "")
        + ", LoRA "
        + c.lora()
            .map(l -> "on (" + l.maxLoras() + " slots, rank up to " + l.maxRank() + ")")
            .orElse("off");
  }

  private static String machine(Selection s) {
    return s.platform().devices().isEmpty()
        ? "no devices"
        : s.platform().devices().stream()
            .map(d ->
                d.id()
                    + " "
                    + Printable.line(d.name())
                    + d.capability().map(c -> " (capability " + c + ")").orElse(""))
            .collect(Collectors.joining(", "));
  }

  /** Columns as wide as their widest cell; priorities to the right, the last column ragged. */
  private static String table(List<List<String>> rows) {
    int columns = HEADER.size();
    int[] width = new int[columns];
    for (List<String> row : rows) {
      for (int c = 0; c < columns; c++) {
        width[c] = Math.max(width[c], row.get(c).length());
      }
    }
    StringBuilder out = new StringBuilder();
    for (List<String> row : rows) {
      StringBuilder line = new StringBuilder();
      for (int c = 0; c < columns; c++) {
        String pad = " ".repeat(width[c] - row.get(c).length());
        boolean right = HEADER.get(c).equals("priority");
        line.append(right ? pad + row.get(c) : row.get(c) + pad).append("  ");
      }
      out.append(out.isEmpty() ? "" : "\n").append(line.toString().stripTrailing());
    }
    return out.toString();
  }
}
