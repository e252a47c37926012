package io.moe4j.cli.bench;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Fact;
import io.moe4j.cli.json.Json;
import io.moe4j.oracle.Selection;
import java.io.StringReader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Optional;
import javax.xml.parsers.DocumentBuilderFactory;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.w3c.dom.Document;
import org.xml.sax.InputSource;

final class BenchReportTest {
  /** 20 GB/s and 100 GFLOP/s. */
  private static final Roofline.Limits LIMITS =
      new Roofline.Limits(
          2,
          "256-bit vectors",
          new Roofline.Spread(20, 18, 22, 9),
          new Roofline.Spread(50, 45, 55, 9),
          new Roofline.Bf16("AMX", new Roofline.Spread(100, 90, 110, 9)));

  private static BenchRow row(int tokens, int adapters, double nanos, double bytes, double flops) {
    return new BenchRow(
        "olmoe <&>",
        "bf16",
        tokens,
        "cpu",
        adapters,
        adapters == 0 ? 0 : 16,
        nanos,
        nanos * 0.9,
        7,
        bytes,
        flops,
        LIMITS.bytesNanos(bytes),
        LIMITS.flopsNanos(flops, true),
        adapters == 0 ? Double.NaN : 1.1);
  }

  private static BenchReport report() {
    return new BenchReport(
        "2026-11-21T00:00:00Z",
        List.of(new BenchReport.Fact("processor", "Processor", "a <fast> one")),
        LIMITS,
        List.of(
            row(1, 0, 5e6, 80e6, 1e6),
            row(1, 8, 5.5e6, 80e6, 1e6),
            row(256, 0, 50e6, 200e6, 4e9),
            row(256, 8, 55e6, 200e6, 4e9)),
        List.of(
            new BenchReport.Layer(
                "olmoe <&>",
                "bf16",
                new Selection(
                    MoeConfig.builder(8, 8, 2, 1).build(),
                    Platform.cpuOnly(),
                    Optional.empty(),
                    Optional.empty(),
                    List.of(),
                    List.of(),
                    "",
                    List.of(
                        Fact.of("kernels", "quick <ones>"), new Fact("weights", "packed", 1024))))),
        List.of(
            new Peer("a <loop>", "olmoe <&>", "bf16", 256, 100e6),
            new Peer("elsewhere", "olmoe <&>", "bf16", 4, 1e6),
            new Peer("cached", "olmoe <&>", "bf16", 1, 1e6)));
  }

  @Test
  void theFloorIsTheSlowerOfReadingAndMultiplying() {
    assertThat(row(1, 0, 5e6, 80e6, 1e6).floorNanos()).isEqualTo(4e6);
    assertThat(row(1, 0, 5e6, 80e6, 1e6).memoryBound()).isTrue();
    assertThat(row(256, 0, 5e6, 200e6, 4e9).floorNanos()).isEqualTo(40e6);
    assertThat(row(256, 0, 5e6, 200e6, 4e9).memoryBound()).isFalse();
    assertThat(LIMITS.flopsNanos(4e9, false)).as("f32").isEqualTo(80e6);
  }

  @Test
  void markdownHasTimesFractionsAndTax() {
    assertThat(report().markdown())
        .contains("| shape, weights | T=1 | T=256 |")
        .contains("| olmoe <&>, bf16 | 5.00 ms (0.80) | 50.0 ms (0.80) |")
        .contains("## LoRA tax (rank 16, 8 adapters)")
        .contains("| olmoe <&>, bf16 | 1.10 | 1.10 |")
        .contains("20.0 GB/s read (18.0 to 22.0), 50 GFLOP/s f32 (45 to 55), 2 threads")
        .contains("100 GFLOP/s bf16 (90 to 110) by AMX")
        .contains("| a <loop> | olmoe <&>, bf16 | 256 | 100 ms | 50.0 ms | 2.00 |")
        .contains("not compared: elsewhere (olmoe <&>, bf16, T=4).");
  }

  @Test
  void jsonHasOneRowACase() {
    var json = report().json();
    assertThat(json.path("rows")).hasSize(4);
    assertThat(json.path("rows").path(0).path("fraction_of_floor").asDouble()).isEqualTo(0.8);
    assertThat(json.path("rows").path(0).has("lora_tax")).isFalse();
    assertThat(json.path("rows").path(3).path("floor").asText()).isEqualTo("flops");
    assertThat(json.path("rows").path(3).path("lora_tax").asDouble()).isEqualTo(1.1);
    assertThat(json.path("limits").path("read_gbps").path("median").asDouble()).isEqualTo(20);
    assertThat(json.path("limits").path("bf16_units").asText()).isEqualTo("AMX");
    assertThat(json.path("peers").path(0).path("ratio").asDouble()).isEqualTo(2);
    assertThat(Json.text(json)).doesNotContain("NaN");
  }

  @Test
  void theChartIsWellFormedAndNeedsNothingElse() throws Exception {
    String svg = report().svg();
    DocumentBuilderFactory factory = DocumentBuilderFactory.newInstance();
    factory.setNamespaceAware(true);
    Document chart = factory.newDocumentBuilder().parse(new InputSource(new StringReader(svg)));
    assertThat(chart.getDocumentElement().getLocalName()).isEqualTo("svg");
    assertThat(chart.getElementsByTagName("polyline").getLength()).isEqualTo(2);
    assertThat(chart.getElementsByTagName("circle").getLength()).isEqualTo(4);
    assertThat(svg)
        .contains("limit of reading", "limit of multiplying")
        .contains(
            "peers: A = a &lt;loop&gt;, C = cached<", "a &lt;loop&gt;, T=256: 100 ms, 0.40 of")
        .as("above what the chart shows")
        .contains("cached, T=1: 1.00 ms, 4.00 of")
        .contains("olmoe &lt;&amp;&gt;, bf16")
        .doesNotContain("href", "NaN", "Infinity");
  }

  /** Outside of browsers there are no variables: without attributes everything is black. */
  @Test
  void everyShapeOfTheChartHasPlainColours() throws Exception {
    Document chart =
        DocumentBuilderFactory.newInstance()
            .newDocumentBuilder()
            .parse(new InputSource(new StringReader(report().svg())));
    for (String shape : List.of("rect", "circle", "text")) {
      var all = chart.getElementsByTagName(shape);
      for (int i = 0; i < all.getLength(); i++) {
        assertThat(((org.w3c.dom.Element) all.item(i)).getAttribute("fill"))
            .matches("#[0-9a-f]{6}");
      }
    }
    for (String shape : List.of("line", "polyline", "circle")) {
      var all = chart.getElementsByTagName(shape);
      assertThat(all.getLength()).isPositive();
      for (int i = 0; i < all.getLength(); i++) {
        assertThat(((org.w3c.dom.Element) all.item(i)).getAttribute("stroke"))
            .matches("#[0-9a-f]{6}");
      }
    }
  }

  /** What ran is beside what was measured, in every form. */
  @Test
  void layersSayWhatTheyRun() {
    assertThat(report().markdown())
        .contains("- olmoe <&> bf16: kernels: quick <ones>; weights: 1024 bytes, packed\n");
    assertThat(report().html())
        .contains("<dt>olmoe &lt;&amp;&gt; bf16</dt>")
        .contains("kernels: quick &lt;ones&gt;; weights: 1024 bytes, packed");
    assertThat(report().json().at("/layers/0/facts/0/text").asText()).isEqualTo("quick <ones>");
    assertThat(report().json().at("/layers/0/facts/0/bytes").isMissingNode()).isTrue();
    assertThat(report().json().at("/layers/0/facts/1/bytes").asLong()).isEqualTo(1024);
    assertThat(report().explanations())
        .startsWith("## olmoe <&> bf16\n\nlayer:   E=2 top_k=1 H=8 I=8")
        .contains("\nkernels: quick <ones>\nweights: 1024 bytes (0.0 MiB), packed");
  }

  @Test
  void limitsThatMovedAreNoLimits() {
    assertThat(report().warning()).isEmpty();
    Roofline.Limits moved =
        new Roofline.Limits(
            LIMITS.threads(), "x", new Roofline.Spread(20, 1.6, 24.4, 5), LIMITS.gflops(), null);
    BenchReport r = new BenchReport("now", List.of(), moved, report().rows(), List.of(), List.of());
    assertThat(r.warning().orElseThrow()).contains("read bandwidth", "mean little");
    assertThat(r.markdown()).contains("**Warning**: read bandwidth");
    assertThat(r.html()).contains("Warning");
    assertThat(r.json().path("warning").asText()).contains("read bandwidth");
  }

  @Test
  void thePageHoldsTheChartAndEveryRow() {
    String html = report().html();
    assertThat(html).startsWith("<!doctype html>").contains("<svg", "a &lt;fast&gt; one");
    assertThat(html.split("<tr>", -1)).hasSize(10);
    assertThat(html).contains("<td>a &lt;loop&gt;</td>", "<td>2.00</td>");
    assertThat(html).doesNotContain("src=", "href=");
  }

  @Test
  void limitsAreMeasured() {
    try (Roofline roofline = new Roofline(1, null)) {
      roofline.sample();
      roofline.sample();
      Roofline.Limits limits = roofline.limits();
      assertThat(limits.readGbps().count()).isEqualTo(2);
      assertThat(limits.readGbps().median()).isBetween(0.1, 2000.0);
      assertThat(limits.gflops().median()).isBetween(0.1, 1000.0);
    }
  }

  @Test
  void scalarProbeDoesTheSameWork() {
    try (java.lang.foreign.Arena arena = java.lang.foreign.Arena.ofConfined()) {
      var memory = arena.allocate(512, 64).fill((byte) 1);
      assertThat(new ScalarProbe().read(memory)).isEqualTo(64 * 0x0101010101010101L);
      assertThat(new VectorProbe().read(memory)).isEqualTo(64 * 0x0101010101010101L);
    }
    assertThat(new ScalarProbe().multiplyAdd(10) / 8)
        .isCloseTo(1f, org.assertj.core.data.Offset.offset(1e-3f));
    float lanes = new VectorProbe().flopsPerIteration() / 2f;
    assertThat(new VectorProbe().multiplyAdd(10) / lanes)
        .isCloseTo(1f, org.assertj.core.data.Offset.offset(1e-3f));
  }

  @Test
  void peersAreReadFromAFile(@TempDir Path dir) throws Exception {
    Path file =
        Files.writeString(
            dir.resolve("p.json"),
            "[{\"name\":\"x\",\"shape\":\"olmoe\",\"dtype\":\"bf16\",\"tokens\":4,\"ms\":1.5}]");
    assertThat(Peer.read(file)).containsExactly(new Peer("x", "olmoe", "bf16", 4, 1.5e6));
    Files.writeString(file, "[{\"name\":\"x\"}]");
    assertThatThrownBy(() -> Peer.read(file)).hasMessageContaining("entry 0");
    Files.writeString(file, "{");
    assertThatThrownBy(() -> Peer.read(file)).hasMessageContaining("is no JSON");
    Files.writeString(file, "{}");
    assertThatThrownBy(() -> Peer.read(file)).hasMessageContaining("holds no array");
  }
}
