package io.moe4j.cli.bench;

import static java.util.Locale.ROOT;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.function.ToDoubleFunction;

/**
 * The report as one SVG that needs nothing else: a panel for each shape and dtype, in it the
 * fraction of the roofline over the number of tokens, and the LoRA tax under it. Follows the
 * reader's light or dark preference.
 */
final class BenchChart {
  private static final int COLUMNS = 2;
  private static final int PANEL_W = 460;
  private static final int PANEL_H = 316;
  private static final int GAP = 24;

  /** Title and legend fit. */
  private static final int LEAST_W = 700;

  private static final int MARGIN = 24;
  private static final int HEAD = 100;

  // Inside a panel.
  private static final int LEFT = 52;
  private static final int RIGHT = 20;
  private static final int PLOT_TOP = 62;
  private static final int PLOT_H = 172;
  private static final int TAX_H = 30;

  private static final String STYLE =
      """
      <style>
        .moe{--bg:#ffffff;--panel:#f6f8fa;--edge:#d8dee4;--ink:#1f2328;--soft:#656d76;--grid:#d8dee4;--base:#0969da;--lora:#bc4c00;--good:#1a7f37;--warm:#9a6700;--hot:#cf222e}
        @media(prefers-color-scheme:dark){.moe{--bg:#0d1117;--panel:#161b22;--edge:#30363d;--ink:#e6edf3;--soft:#8d96a0;--grid:#30363d;--base:#4493f8;--lora:#f0883e;--good:#3fb950;--warm:#d29922;--hot:#f85149}}
        .moe text{font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:var(--ink)}
        .moe .soft{fill:var(--soft)}
        .moe [data-fill=fill-bg]{fill:var(--bg)}.moe [data-fill=fill-panel]{fill:var(--panel)}.moe [data-fill=fill-good]{fill:var(--good)}.moe [data-fill=fill-warm]{fill:var(--warm)}.moe [data-fill=fill-hot]{fill:var(--hot)}
        .moe [data-stroke=stroke-edge]{stroke:var(--edge)}.moe [data-stroke=stroke-grid]{stroke:var(--grid)}.moe [data-stroke=stroke-base]{stroke:var(--base)}.moe [data-stroke=stroke-lora]{stroke:var(--lora)}
        .moe [data-stroke=stroke-good]{stroke:var(--good)}.moe [data-stroke=stroke-warm]{stroke:var(--warm)}.moe [data-stroke=stroke-hot]{stroke:var(--hot)}
      </style>
      """;

  /** The light colours again, as attributes: what is no browser knows no variables. */
  private static final Map<String, String> COLOURS =
      Map.ofEntries(
          Map.entry("--bg", "#ffffff"),
          Map.entry("--panel", "#f6f8fa"),
          Map.entry("--edge", "#d8dee4"),
          Map.entry("--ink", "#1f2328"),
          Map.entry("--soft", "#656d76"),
          Map.entry("--grid", "#d8dee4"),
          Map.entry("--base", "#0969da"),
          Map.entry("--lora", "#bc4c00"),
          Map.entry("--good", "#1a7f37"),
          Map.entry("--warm", "#9a6700"),
          Map.entry("--hot", "#cf222e"));

  private final BenchReport report;
  private final StringBuilder svg = new StringBuilder();
  private final List<Integer> tokens;
  private final double top;

  private BenchChart(BenchReport report) {
    this.report = report;
    this.tokens = report.tokens();
    double most = report.rows().stream().mapToDouble(BenchRow::fractionOfFloor).max().orElse(1);
    this.top = Math.max(1.2, Math.ceil(most * 5 + 0.2) / 5);
  }

  static String svg(BenchReport report) {
    return new BenchChart(report).draw();
  }

  private String draw() {
    List<String> series = new ArrayList<>(report.series());
    int columns = Math.min(COLUMNS, series.size());
    int lines = (series.size() + columns - 1) / columns;
    int width = Math.max(LEAST_W, 2 * MARGIN + columns * PANEL_W + (columns - 1) * GAP);
    int height = HEAD + lines * (PANEL_H + GAP) + MARGIN;
    svg.append(
        String.format(
            ROOT,
            "<svg class=\"moe\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\""
                + " height=\"%d\" role=\"img\" aria-label=\"moe bench: fraction of the roofline\">\n",
            width,
            height,
            width,
            height));
    svg.append(STYLE);
    svg.append(
        String.format(
            ROOT, "<rect width=\"%d\" height=\"%d\" " + fill("--bg") + "/>\n", width, height));
    text(MARGIN, 36, 20, 650, "start", "", "Fraction of the roofline, by tokens in one forward");
    legend(MARGIN, 60);
    for (int i = 0; i < series.size(); i++) {
      panel(
          series.get(i),
          MARGIN + i % columns * (PANEL_W + GAP),
          HEAD + i / columns * (PANEL_H + GAP));
    }
    svg.append("</svg>\n");
    return svg.toString();
  }

  private void legend(int x, int y) {
    line(x, y - 4, x + 22, y - 4, "--base", 2.5, "");
    text(x + 28, y, 12, 400, "start", "soft", "base layer");
    if (report.hasLora()) {
      line(x + 104, y - 4, x + 126, y - 4, "--lora", 2.5, "5 4");
      text(x + 132, y, 12, 400, "start", "soft", "with LoRA (" + report.loraText() + ")");
    }
    int at = report.hasLora() ? x + 330 : x + 104;
    line(at, y - 4, at + 22, y - 4, "--good", 1.5, "6 3");
    text(at + 28, y, 12, 400, "start", "soft", "limit of reading");
    line(at + 134, y - 4, at + 156, y - 4, "--good", 1.5, "1 3");
    text(at + 162, y, 12, 400, "start", "soft", "limit of multiplying");
    StringBuilder names = new StringBuilder();
    for (String name : report.peerNames()) {
      if (report.peers().stream()
          .noneMatch(p -> p.name().equals(name) && report.rowOf(p).isPresent())) {
        continue; // nothing of it is drawn
      }
      names
          .append(names.isEmpty() ? "peers: " : ", ")
          .append(mark(name))
          .append(" = ")
          .append(name);
    }
    if (!names.isEmpty()) {
      text(x, y + 18, 12, 400, "start", "soft", names.toString());
    }
  }

  /** The letter of a peer's points. */
  private String mark(String peer) {
    return String.valueOf((char) ('A' + report.peerNames().indexOf(peer) % 26));
  }

  /** One of the two limits alone: 1 where it sets the floor, above where the other one does. */
  private void limit(
      List<BenchRow> rows, int x, int y, ToDoubleFunction<BenchRow> nanos, String dash) {
    for (int i = 1; i < rows.size(); i++) {
      BenchRow a = rows.get(i - 1);
      BenchRow b = rows.get(i);
      double from = Math.min(top, a.floorNanos() / nanos.applyAsDouble(a));
      double to = Math.min(top, b.floorNanos() / nanos.applyAsDouble(b));
      line(px(x, a.tokens()), py(y, from), px(x, b.tokens()), py(y, to), "--good", 1.5, dash);
    }
  }

  /** What others took, as fractions of the same floor. */
  private void peers(String series, int x, int y) {
    for (Peer p : report.peers()) {
      BenchRow row = report.rowOf(p).filter(r -> r.series().equals(series)).orElse(null);
      if (row == null) {
        continue;
      }
      double fraction = row.floorNanos() / p.nanos();
      double cx = px(x, p.tokens());
      double cy = py(y, Math.min(top, fraction));
      svg.append(
          String.format(
              ROOT,
              "<rect x=\"%.1f\" y=\"%.1f\" width=\"6\" height=\"6\" %s><title>%s, T=%d: %s, %.2f of"
                  + " the roofline</title></rect>\n",
              cx - 3,
              cy - 3,
              fill("--hot"),
              escape(p.name()),
              p.tokens(),
              BenchReport.millis(p.nanos()),
              fraction));
      text(cx + 7, cy + 4, 10, 600, "start", "soft", mark(p.name()));
    }
  }

  private void panel(String series, int x, int y) {
    svg.append(
        String.format(
            ROOT,
            "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"8\" "
                + fill("--panel")
                + ""
                + " "
                + stroke("--edge")
                + "/>\n",
            x,
            y,
            PANEL_W,
            PANEL_H));
    text(x + 16, y + 26, 14, 650, "start", "", series);
    List<BenchRow> base = report.rows(series, false);
    List<BenchRow> lora = report.rows(series, true);
    List<String> backends =
        report.rows().stream()
            .filter(r -> r.series().equals(series))
            .map(BenchRow::backend)
            .distinct()
            .toList();
    text(
        x + PANEL_W - 16, y + 26, 12, 400, "end", "soft", "backend " + String.join(", ", backends));
    double step = top > 2 ? 0.5 : 0.25;
    for (double v = 0; v <= top + 1e-9; v += step) {
      boolean roof = Math.abs(v - 1) < 1e-9;
      line(
          x + LEFT,
          py(y, v),
          x + PANEL_W - RIGHT,
          py(y, v),
          roof ? "--good" : "--grid",
          roof ? 1.5 : 1,
          roof ? "2 3" : "");
      text(x + LEFT - 8, py(y, v) + 4, 11, 400, "end", "soft", String.format(ROOT, "%.2f", v));
    }
    for (int t : tokens) {
      text(px(x, t), y + PLOT_TOP + PLOT_H + 18, 11, 400, "middle", "soft", Integer.toString(t));
    }
    text(x + LEFT - 8, y + PLOT_TOP + PLOT_H + 18, 11, 400, "end", "soft", "T =");
    limit(base, x, y, BenchRow::bytesNanos, "6 3");
    limit(base, x, y, BenchRow::flopsNanos, "1 3");
    peers(series, x, y);
    curve(lora, x, y, "--lora", "5 4", false);
    curve(base, x, y, "--base", "", true);
    if (!lora.isEmpty()) {
      tax(lora, x, y + PLOT_TOP + PLOT_H + 32);
    }
  }

  private void curve(
      List<BenchRow> rows, int x, int y, String colour, String dash, boolean labels) {
    if (rows.isEmpty()) {
      return;
    }
    StringBuilder points = new StringBuilder();
    for (BenchRow r : rows) {
      points.append(
          String.format(ROOT, "%.1f,%.1f ", px(x, r.tokens()), py(y, r.fractionOfFloor())));
    }
    svg.append(
        String.format(
            ROOT,
            "<polyline points=\"%s\" fill=\"none\" %s stroke-width=\"2.5\""
                + " stroke-linejoin=\"round\"%s/>\n",
            points.toString().strip(),
            stroke(colour),
            dash.isEmpty() ? "" : " stroke-dasharray=\"" + dash + "\""));
    for (BenchRow r : rows) {
      double cx = px(x, r.tokens());
      double cy = py(y, r.fractionOfFloor());
      svg.append(
          String.format(
              ROOT,
              "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" "
                  + fill("--panel")
                  + " %s"
                  + " stroke-width=\"2\"><title>T=%d%s: %s, %.2f of the roofline, %.0f tokens/s</title></circle>\n",
              cx,
              cy,
              stroke(colour),
              r.tokens(),
              r.hasLora() ? " with LoRA" : "",
              BenchReport.millis(r.medianNanos()),
              r.fractionOfFloor(),
              r.tokensPerSecond()));
      if (labels) {
        text(cx, cy - 10, 11, 600, "middle", "", String.format(ROOT, "%.2f", r.fractionOfFloor()));
      }
    }
  }

  /** One coloured cell a token count: the factor that LoRA costs. */
  private void tax(List<BenchRow> rows, int x, int y) {
    text(x + LEFT - 8, y + 19, 11, 400, "end", "soft", "tax");
    double w = Math.min(56, (PANEL_W - LEFT - RIGHT) / (double) tokens.size() - 6);
    for (BenchRow r : rows) {
      String colour = r.tax() <= 1.15 ? "--good" : r.tax() <= 1.4 ? "--warm" : "--hot";
      svg.append(
          String.format(
              ROOT,
              "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" rx=\"5\" %s"
                  + " fill-opacity=\"0.18\" %s stroke-opacity=\"0.5\"/>\n",
              px(x, r.tokens()) - w / 2,
              y,
              w,
              TAX_H,
              fill(colour),
              stroke(colour)));
      text(px(x, r.tokens()), y + 19, 11, 600, "middle", "", String.format(ROOT, "%.2f", r.tax()));
    }
  }

  private double px(int panelX, int t) {
    double room = PANEL_W - LEFT - RIGHT;
    return panelX + LEFT + room * (tokens.indexOf(t) + 0.5) / tokens.size();
  }

  private double py(int panelY, double fraction) {
    return panelY + PLOT_TOP + PLOT_H * (1 - fraction / top);
  }

  private void line(
      double x1, double y1, double x2, double y2, String colour, double w, String dash) {
    svg.append(
        String.format(
            ROOT,
            "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" %s stroke-width=\"%.1f\"%s/>\n",
            x1,
            y1,
            x2,
            y2,
            stroke(colour),
            w,
            dash.isEmpty() ? "" : " stroke-dasharray=\"" + dash + "\""));
  }

  private void text(double x, double y, int size, int weight, String anchor, String cls, String s) {
    svg.append(
        String.format(
            ROOT,
            "<text x=\"%.1f\" y=\"%.1f\" font-family=\"sans-serif\" font-size=\"%d\" font-weight=\"%d\""
                + " text-anchor=\"%s\" fill=\"%s\"%s>%s</text>\n",
            x,
            y,
            size,
            weight,
            anchor,
            COLOURS.getOrDefault("--" + (cls.isEmpty() ? "ink" : cls), "#1f2328"),
            cls.isEmpty() ? "" : " class=\"" + cls + "\"",
            escape(s)));
  }

  private static String fill(String colour) {
    return paint("fill", colour);
  }

  private static String stroke(String colour) {
    return paint("stroke", colour);
  }

  /** A plain attribute, which a browser's style overrides. */
  private static String paint(String attribute, String colour) {
    return attribute
        + "=\""
        + COLOURS.getOrDefault(colour, "#1f2328")
        + "\" data-"
        + attribute
        + "=\""
        + attribute
        + "-"
        + colour.substring(2)
        + "\"";
  }

  static String escape(String s) {
    return s.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace("\"", "&quot;");
  }
}
