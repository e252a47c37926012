package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterReport.Disposition;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;

/**
 * The recorded outputs of transformers and PEFT, for every model and adapter under
 * testdata/fixtures, by a double-precision evaluation of what the loader hands out.
 */
@NullUnmarked // a missing value fails the test where it is used
class GoldenTest {
  private static final double TOLERANCE = 1e-5;

  /** Outputs with activations quantised as the checkpoint means them. */
  private static final String AS_QUANTISED = ".actquant";

  @TestFactory
  Stream<DynamicTest> everyAdapterOfEveryModel() throws IOException {
    List<DynamicTest> tests = new ArrayList<>();
    for (Path root : List.of(Fixtures.root(), Fixtures.families(), Fixtures.quantised())) {
      try (Stream<Path> paths = Files.list(root)) {
        paths
            .filter(p -> Files.exists(p.resolve("io.safetensors")))
            .sorted()
            .forEach(m ->
                tests.add(DynamicTest.dynamicTest(m.getFileName().toString(), () -> check(m))));
      }
    }
    assertThat(tests).hasSizeGreaterThanOrEqualTo(86);
    return tests.stream();
  }

  private static void check(Path fixture) {
    try (MoeCheckpoint checkpoint = MoeCheckpoint.open(fixture.resolve("model"));
        SafetensorsFile io = SafetensorsFile.open(fixture.resolve("io.safetensors"))) {
      List<String> order = List.of(io.metadata().get("mixed_order").split(","));
      assertThat(order).contains("base");
      Map<String, PeftAdapter> adapters = new LinkedHashMap<>();
      for (String name : order) {
        if (!name.equals("base")) {
          adapters.put(
              name,
              PeftAdapter.load(
                  fixture.resolve("adapters").resolve(name),
                  name,
                  checkpoint,
                  AdapterPolicy.DEFAULT));
        }
      }
      for (int layer : checkpoint.layers()) {
        checkLayer(checkpoint, io, layer, order, adapters, "");
        if (io.tensors().containsKey("layers." + layer + ".output.base" + AS_QUANTISED)) {
          checkLayer(checkpoint, io, layer, order, adapters, AS_QUANTISED);
        }
      }
    }
  }

  private static void checkLayer(
      MoeCheckpoint checkpoint,
      SafetensorsFile io,
      int layer,
      List<String> order,
      Map<String, PeftAdapter> adapters,
      String kind) {
    BlockEvaluator block =
        new BlockEvaluator(
            checkpoint.config(layer), checkpoint.weights(layer), kind.equals(AS_QUANTISED));
    Tensor input = io.tensor("layers." + layer + ".input");
    int tokens = Math.toIntExact(input.size(0));
    Map<String, double[][]> outputs = new LinkedHashMap<>();
    for (String name : order) {
      LoraLayer lora =
          name.equals("base") ? LoraLayer.NONE : adapters.get(name).adapter().layer(layer);
      double[][] rows = new double[tokens][];
      double[][] routed = new double[tokens][];
      for (int t = 0; t < tokens; t++) {
        BlockEvaluator.Result r =
            block.forward(input.select(0, t).toDoubles(), tokenId(io, layer, t), lora);
        rows[t] = r.output();
        routed[t] = r.routed();
        // llama4's modelling code hands no ids to its experts.
        String ids = "layers." + layer + ".topk_ids";
        if (io.tensors().containsKey(ids)) {
          int[] expected = io.tensor(ids).select(0, t).toInts();
          assertThat(sorted(r.ids())).isEqualTo(sorted(expected));
        }
      }
      outputs.put(name, rows);
      assertClose(io, "layers." + layer + ".output." + name + kind, rows);
      String routedName = "layers." + layer + ".routed." + name + kind;
      if (io.tensors().containsKey(routedName)) {
        assertClose(io, routedName, routed);
      }
    }
    for (String mixed : List.of("mixed", "mixed_peft")) {
      if (io.tensors().containsKey(mixed + ".assignment")) {
        List<String> names = List.of(io.metadata().get(mixed + "_order").split(","));
        int[] assignment = io.tensor(mixed + ".assignment").toInts();
        double[][] rows = new double[tokens][];
        for (int t = 0; t < tokens; t++) {
          rows[t] = outputs.get(names.get(assignment[t]))[t];
        }
        assertClose(io, "layers." + layer + ".output." + mixed + kind, rows);
      }
    }
  }

  /** Families that choose experts by token id have the ids recorded. */
  private static int tokenId(SafetensorsFile io, int layer, int token) {
    String name = "layers." + layer + ".token_ids";
    return io.tensors().containsKey(name) ? io.tensor(name).toInts()[token] : -1;
  }

  private static int[] sorted(int[] ids) {
    int[] copy = ids.clone();
    Arrays.sort(copy);
    return copy;
  }

  private static void assertClose(SafetensorsFile io, String name, double[][] rows) {
    double[] golden = io.tensor(name).toDoubles();
    double[] actual = Arrays.stream(rows).flatMapToDouble(Arrays::stream).toArray();
    assertThat(actual).hasSameSizeAs(golden);
    double diff = 0;
    double norm = 0;
    for (int i = 0; i < golden.length; i++) {
      diff += (actual[i] - golden[i]) * (actual[i] - golden[i]);
      norm += golden[i] * golden[i];
    }
    assertThat(Math.sqrt(diff / norm)).as(name).isLessThan(TOLERANCE);
  }

  @TestFactory
  Stream<DynamicTest> everyTensorOfEveryAdapterIsAccountedFor() throws IOException {
    List<DynamicTest> tests = new ArrayList<>();
    for (Path root : List.of(Fixtures.root(), Fixtures.families(), Fixtures.quantised())) {
      try (Stream<Path> paths = Files.walk(root, 4)) {
        paths
            .filter(p -> p.endsWith("adapter_config.json"))
            .map(Path::getParent)
            .sorted()
            .forEach(adapter -> {
              Path model = adapter.getParent().resolveSibling("model");
              String name = root.relativize(adapter).toString();
              tests.add(DynamicTest.dynamicTest(name, () -> account(model, adapter)));
            });
      }
    }
    return tests.stream();
  }

  private static void account(Path model, Path adapter) {
    try (MoeCheckpoint checkpoint = MoeCheckpoint.open(model);
        SafetensorsFile file = SafetensorsFile.open(adapter.resolve("adapter_model.safetensors"))) {
      AdapterReport report =
          PeftAdapter.inspect(adapter, checkpoint.adapterTarget(), AdapterPolicy.DEFAULT);
      assertThat(report.tensors().stream().map(AdapterReport.TensorEntry::tensor))
          .containsExactlyElementsOf(file.tensors().keySet());
      for (AdapterReport.TensorEntry e : report.tensors()) {
        Disposition expected =
            e.tensor().contains("self_attn")
                ? Disposition.SKIPPED
                : e.tensor().contains(".mlp.gate.") ? Disposition.REFUSED : Disposition.APPLIED;
        assertThat(e.disposition()).as(e.tensor()).isEqualTo(expected);
        assertThat(e.targets().isEmpty()).isEqualTo(expected != Disposition.APPLIED);
      }
    }
  }

  @Test
  void aRouterAdapterIsRefusedUnlessThePolicySkips() {
    Path adapter = Fixtures.adapter("qwen3_moe", "x_router");
    try (MoeCheckpoint checkpoint = MoeCheckpoint.open(Fixtures.model("qwen3_moe"))) {
      assertThatThrownBy(() -> PeftAdapter.load(adapter, "x", checkpoint, AdapterPolicy.DEFAULT))
          .isInstanceOf(AdapterRefusedException.class)
          .hasMessageContaining("router")
          .hasMessageContaining("4 of its 12 tensors")
          .satisfies(e ->
              assertThat(((AdapterRefusedException) e).report().counts())
                  .containsEntry(Disposition.REFUSED, 4));
      PeftAdapter skipped = PeftAdapter.load(adapter, "x", checkpoint, AdapterPolicy.LENIENT);
      assertThat(skipped.report().counts())
          .containsEntry(Disposition.SKIPPED, 4)
          .containsEntry(Disposition.APPLIED, 8);
    }
  }
}
