package io.moe4j.cli.bench;

import static java.util.Locale.ROOT;

/** The report as one HTML page that needs nothing else: facts, chart, every row. */
final class BenchPage {
  private static final String STYLE =
      """
      :root{color-scheme:light dark;--bg:#fff;--ink:#1f2328;--soft:#656d76;--edge:#d8dee4;--panel:#f6f8fa}
      @media(prefers-color-scheme:dark){:root{--bg:#0d1117;--ink:#e6edf3;--soft:#8d96a0;--edge:#30363d;--panel:#161b22}}
      body{margin:0 auto;padding:32px 24px;max-width:1040px;background:var(--bg);color:var(--ink);font:15px/1.5 ui-sans-serif,system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif}
      h1{font-size:26px;margin:0 0 4px}p{color:var(--soft);margin:6px 0}
      .scroll{overflow-x:auto}dd{overflow-wrap:anywhere}
      dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;margin:18px 0}dt{color:var(--soft)}dd{margin:0}
      svg{max-width:100%;height:auto;margin:8px 0 20px;border-radius:10px}
      table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:13px}
      th,td{padding:5px 10px;border-bottom:1px solid var(--edge);text-align:right}th{color:var(--soft);font-weight:600;position:sticky;top:0;background:var(--bg)}
      @media(max-width:600px){body{padding:20px 12px}dl{grid-template-columns:minmax(0,1fr)}}
      th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}tr:hover td{background:var(--panel)}
      """;

  private BenchPage() {}

  static String html(BenchReport report) {
    StringBuilder s = new StringBuilder();
    s.append("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    s.append("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n");
    s.append("<title>moe bench</title>\n<style>\n")
        .append(STYLE)
        .append("</style>\n</head>\n<body>\n");
    s.append("<h1>moe bench</h1>\n");
    s.append(
        "<p>One forward of one MoE layer, routing included, against what this machine could do at"
            + " best. The floor of a case is the larger of bytes / read bandwidth and flops /"
            + " multiply-add peak (of bf16 where hidden states are bf16 and there are units for"
            + " it); all limits were sampled between the cases.</p>\n");
    s.append("<dl>");
    for (BenchReport.Fact f : report.machine()) {
      fact(s, f.label(), f.value());
    }
    for (BenchReport.Layer l : report.layers()) {
      if (!l.selection().facts().isEmpty()) {
        fact(s, l.shape() + " " + l.dtype(), l.facts());
      }
    }
    fact(s, "Limits", report.limitsText());
    report.warning().ifPresent(w -> fact(s, "Warning", w));
    fact(s, "Measured", report.when());
    s.append("</dl>\n").append(BenchChart.svg(report));
    s.append(
        "<div class=\"scroll\">\n<table>\n<thead><tr><th>shape</th><th>weights</th><th>T</th><th>adapters</th><th>median</th>"
            + "<th>fastest</th><th>floor</th><th>set by</th><th>of roofline</th><th>LoRA tax</th>"
            + "<th>tokens/s</th></tr></thead>\n<tbody>\n");
    for (BenchRow r : report.rows()) {
      s.append("<tr>");
      cell(s, r.shape());
      cell(s, r.dtype());
      cell(s, Integer.toString(r.tokens()));
      cell(s, r.hasLora() ? r.adapters() + " x r" + r.rank() : "none");
      cell(s, BenchReport.millis(r.medianNanos()));
      cell(s, BenchReport.millis(r.minNanos()));
      cell(s, BenchReport.millis(r.floorNanos()));
      cell(s, r.memoryBound() ? "bytes" : "flops");
      cell(s, String.format(ROOT, "%.2f", r.fractionOfFloor()));
      cell(s, r.hasLora() ? String.format(ROOT, "%.2f", r.tax()) : "");
      cell(s, String.format(ROOT, "%.0f", r.tokensPerSecond()));
      s.append("</tr>\n");
    }
    s.append("</tbody>\n</table>\n</div>\n");
    peers(s, report);
    return s.append("</body>\n</html>\n").toString();
  }

  private static void peers(StringBuilder s, BenchReport report) {
    if (report.peers().isEmpty()) {
      return;
    }
    s.append(
        "<div class=\"scroll\">\n<table>\n<thead><tr><th>peer</th><th>shape, weights</th><th>T</th>"
            + "<th>peer</th><th>ours</th><th>peer / ours</th></tr></thead>\n<tbody>\n");
    for (Peer p : report.peers()) {
      s.append("<tr>");
      cell(s, p.name());
      cell(s, p.shape() + ", " + p.dtype());
      cell(s, Integer.toString(p.tokens()));
      cell(s, BenchReport.millis(p.nanos()));
      cell(s, report.rowOf(p).map(r -> BenchReport.millis(r.medianNanos())).orElse("-"));
      cell(
          s,
          report
              .rowOf(p)
              .map(r -> String.format(ROOT, "%.2f", p.nanos() / r.medianNanos()))
              .orElse("-"));
      s.append("</tr>\n");
    }
    s.append("</tbody>\n</table>\n</div>\n");
  }

  private static void fact(StringBuilder s, String label, String value) {
    s.append("<dt>").append(BenchChart.escape(label)).append("</dt><dd>");
    s.append(BenchChart.escape(value)).append("</dd>");
  }

  private static void cell(StringBuilder s, String text) {
    s.append("<td>").append(BenchChart.escape(text)).append("</td>");
  }
}
