package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.AdapterException;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.checkpoint.AdapterPolicy;
import io.moe4j.checkpoint.MoeCheckpoint;
import io.moe4j.checkpoint.PeftAdapter;
import io.moe4j.checkpoint.SafetensorsFile;
import io.moe4j.checkpoint.SafetensorsWriter;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.reference.ReferenceMoe;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collections;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Adapters that change the router, on a batch that mixes them with the base model, against what
 * transformers and PEFT computed; and contexts of another layer.
 */
class RouterLoraTest {
  private static final Path CASE =
      Path.of("..", "testdata", "cases", "v09-router-lora").toAbsolutePath().normalize();
  private static final int H = 16;

  private MoeCheckpoint model;
  private PeftAdapter adapter;

  @BeforeEach
  void open() {
    model = MoeCheckpoint.open(CASE.resolve("model"));
    adapter =
        PeftAdapter.load(
            CASE.resolve("adapter"), "a", model, AdapterPolicy.DEFAULT.withRouter(true));
  }

  @AfterEach
  void close() {
    model.close();
  }

  private Map<Integer, MoeConfig> configs(LoraConfig lora, int maxTokens) {
    Map<Integer, MoeConfig> configs = new TreeMap<>();
    for (int layer : model.layers()) {
      configs.put(layer, model.config(layer).toBuilder().lora(lora).maxTokens(maxTokens).build());
    }
    return configs;
  }

  private static Tensor zeros(DType dtype, long... shape) {
    long bytes = dtype.byteSize(shape[0] * shape[1]);
    return Tensor.of(dtype, Arena.ofAuto().allocate(bytes, 64), shape);
  }

  private static MoeConfig of(Map<Integer, MoeConfig> configs, int layer) {
    MoeConfig config = configs.get(layer);
    if (config == null) {
      throw new AssertionError("no layer " + layer);
    }
    return config;
  }

  @ParameterizedTest
  @ValueSource(strings = {"cpu 9", "cpu 4", "cpu-reference 9", "batched-cpu-reference 3"})
  void onlyTokensOfTheAdapterAreRoutedByIt(String backendAndTokens) {
    String backend = backendAndTokens.substring(0, backendAndTokens.indexOf(' '));
    int maxTokens = Integer.parseInt(backendAndTokens.substring(backend.length() + 1));
    Map<Integer, MoeConfig> configs = configs(new LoraConfig(2, 8).withRouter(), maxTokens);
    if (backend.startsWith("batched")) {
      configs.replaceAll(
          (layer, c) -> c.toBuilder().activationFormat(ActivationFormat.BATCHED).build());
    }
    try (SafetensorsFile in = SafetensorsFile.open(CASE.resolve("input.safetensors"));
        SafetensorsFile out = SafetensorsFile.open(CASE.resolve("expected.safetensors"));
        AdapterRegistry slots = AdapterRegistry.builder(configs).build()) {
      Tensor x = in.tensor("x");
      int t = Math.toIntExact(x.size(0));
      int handle = slots.load(adapter.adapter());
      int[] mapping = new int[t];
      for (int i = 0; i < t; i++) {
        mapping[i] = i % 3 == 1 ? AdapterRegistry.BASE : handle;
      }
      try (AdapterBatch batch = slots.batch(mapping)) {
        for (int layer : model.layers()) {
          try (MoeLayer built =
              MoeLayer.builder(of(configs, layer), model.weights(layer)).backend(backend).build()) {
            Tensor base = zeros(DType.F32, t, H);
            Tensor baseLogits = zeros(DType.F32, t, 4);
            built.forward(MoeForward.of(x, base).logitsInto(baseLogits));
            Tensor mixed = zeros(DType.F32, t, H);
            Tensor logits = zeros(DType.F32, t, 4);
            built.forward(
                MoeForward.of(x, mixed).withLora(batch.context(layer)).logitsInto(logits));
            Tensor expected = out.tensor("layers." + layer + ".output");
            for (int i = 0; i < t; i++) {
              boolean isBase = mapping[i] == AdapterRegistry.BASE;
              Tensor right = isBase ? base : expected;
              for (int h = 0; h < H; h++) {
                assertThat(mixed.get(i, h))
                    .as("layer %d token %d", layer, i)
                    .isCloseTo(right.get(i, h), org.assertj.core.data.Offset.offset(2e-4));
              }
              boolean same = true;
              for (int e = 0; e < 4; e++) {
                same &= logits.get(i, e) == baseLogits.get(i, e);
              }
              assertThat(same).as("logits of token %d are those of the base", i).isEqualTo(isBase);
            }
          }
        }
      }
    }
  }

  /** Factors on a router that normalises its input read what it reads (Gemma 4). */
  @ParameterizedTest
  @ValueSource(strings = {"cpu 9", "cpu 4", "cpu-reference 9"})
  void aRouterThatNormalisesItsInput(String backendAndTokens, @TempDir Path dir)
      throws IOException {
    String backend = backendAndTokens.substring(0, backendAndTokens.indexOf(' '));
    int maxTokens = Integer.parseInt(backendAndTokens.substring(backend.length() + 1));
    Path family = Path.of("..", "testdata", "families", "gemma4").toAbsolutePath().normalize();
    Random random = new Random(3);
    try (MoeCheckpoint gemma = MoeCheckpoint.open(family.resolve("model"));
        SafetensorsFile io = SafetensorsFile.open(family.resolve("io.safetensors"))) {
      MoeConfig config =
          gemma.config(0).toBuilder()
              .lora(new LoraConfig(1, 2).withRouter())
              .maxTokens(maxTokens)
              .build();
      int h = config.hiddenSize();
      int e = config.numExperts();
      float[] a = new float[2 * h];
      float[] b = new float[e * 2];
      for (int i = 0; i < a.length; i++) {
        a[i] = (float) random.nextGaussian() / 4;
      }
      for (int i = 0; i < b.length; i++) {
        b[i] = (float) random.nextGaussian();
      }
      String module = "base_model.model.model.language_model.layers.0.router.proj.lora_";
      SafetensorsWriter.write(
          dir.resolve("adapter_model.safetensors"),
          Map.of(
              module + "A.weight", Tensor.ofFloats(a, 2, h),
              module + "B.weight", Tensor.ofFloats(b, e, 2)),
          Map.of());
      Files.writeString(
          dir.resolve("adapter_config.json"),
          "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":2,\"target_modules\":[\"proj\"]}");
      PeftAdapter changed =
          PeftAdapter.load(dir, "g", gemma, AdapterPolicy.DEFAULT.withRouter(true));
      MoeLayerWeights weights = gemma.weights(0);
      RouterWeights router = weights.router();
      float[] merged = router.weight().toFloats();
      for (int row = 0; row < e; row++) {
        for (int i = 0; i < h; i++) {
          merged[row * h + i] += b[2 * row] * a[i] + b[2 * row + 1] * a[h + i];
        }
      }
      RouterWeights other =
          new RouterWeights(Tensor.ofFloats(merged, e, h), null, null, router.norm(), null, null);
      Tensor x = io.tensor("layers.0.input");
      int t = Math.toIntExact(x.size(0));
      try (AdapterRegistry slots = AdapterRegistry.builder(Map.of(0, config)).build();
          MoeLayer layer = MoeLayer.builder(config, weights).backend(backend).build()) {
        slots.load(changed.adapter());
        try (AdapterBatch batch = slots.batch(Collections.nCopies(t, "g"))) {
          Tensor logits = zeros(DType.F32, t, e);
          layer.forward(
              MoeForward.of(x, zeros(DType.F32, t, h))
                  .withLora(batch.context(0))
                  .logitsInto(logits));
          for (int i = 0; i < t; i++) {
            double[] right =
                ReferenceMoe.routerLogits(config.routing(), other, x.select(0, i).toDoubles());
            for (int j = 0; j < e; j++) {
              assertThat(logits.get(i, j))
                  .isCloseTo(right[j], org.assertj.core.data.Offset.offset(1e-4));
            }
          }
        }
      }
    }
  }

  @Test
  void refusedWhereTheLayerDoesNotAllowIt() {
    Map<Integer, MoeConfig> plain = configs(new LoraConfig(2, 8), 9);
    try (AdapterRegistry slots = AdapterRegistry.builder(plain).build()) {
      assertThat(adapter.adapter().layer(0).get(LoraTarget.ROUTER)).isNotNull();
      assertThatThrownBy(() -> slots.load(adapter.adapter()))
          .isInstanceOf(AdapterException.class)
          .hasMessageContaining("ROUTER")
          .hasMessageContaining("withRouter");
    }
    // A layer that does not allow it does not take a registry's word for it either.
    Map<Integer, MoeConfig> open = configs(new LoraConfig(2, 8).withRouter(), 9);
    try (AdapterRegistry slots = AdapterRegistry.builder(open).build();
        MoeLayer built = MoeLayer.builder(of(plain, 0), model.weights(0)).backend("cpu").build()) {
      int handle = slots.load(adapter.adapter());
      try (AdapterBatch batch = slots.batch(new int[] {handle})) {
        assertThatThrownBy(() ->
                built.forward(
                    MoeForward.of(zeros(DType.F32, 1, H), zeros(DType.F32, 1, H))
                        .withLora(batch.context(0))))
            .isInstanceOf(IllegalArgumentException.class)
            .hasMessageContaining("ROUTER");
      }
    }
  }

  @Test
  void contextsOfAnotherLayerAreRefused() {
    Map<Integer, MoeConfig> configs = configs(new LoraConfig(2, 8).withRouter(), 9);
    try (AdapterRegistry slots = AdapterRegistry.builder(configs).build();
        MoeLayer first =
            MoeLayer.builder(of(configs, 0), model.weights(0)).backend("cpu").build()) {
      int handle = slots.load(adapter.adapter());
      try (AdapterBatch batch = slots.batch(new int[] {handle, AdapterRegistry.BASE})) {
        MoeForward request = MoeForward.of(zeros(DType.F32, 2, H), zeros(DType.F32, 2, H));
        first.forward(request.withLora(batch.context(0)));
        assertThatThrownBy(() -> first.forward(request.withLora(batch.context(1))))
            .isInstanceOf(IllegalArgumentException.class)
            .hasMessageContaining("context of layer 1, this is layer 0");
      }
      try (AdapterBatch none =
          slots.batch(new int[] {AdapterRegistry.BASE, AdapterRegistry.BASE})) {
        MoeForward request = MoeForward.of(zeros(DType.F32, 2, H), zeros(DType.F32, 2, H));
        assertThatThrownBy(() -> first.forward(request.withLora(none.context(1))))
            .isInstanceOf(IllegalArgumentException.class)
            .hasMessageContaining("layer 1");
      }
    }
  }
}
