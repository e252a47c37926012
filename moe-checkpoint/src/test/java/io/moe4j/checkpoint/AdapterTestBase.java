package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.tensor.Tensor;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.io.TempDir;

/** What tests of adapter files share: small models, files, and deltas from their definition. */
@NullUnmarked // a missing value fails the test where it is used
@SuppressWarnings("NarrowCalculation") // products of small constants as shapes
abstract class AdapterTestBase {
  static final int E = 4;
  static final int H = 16;
  static final int I = 12;
  static final String BLOCK = "model.layers.1.mlp.";
  static final String EXPERTS = BLOCK + "experts";
  static final Map<String, Object> BOTH =
      Map.of("target_parameters", List.of("experts.gate_up_proj", "experts.down_proj"));

  @TempDir Path dir;

  /** Where a file keeps an element of a factor. */
  interface At {
    double get(int expert, int row, int column);
  }

  static AdapterTargetModel model(String type, MoeConfig.Builder config) {
    Map<Integer, MoeConfig> layers = new TreeMap<>();
    layers.put(1, config.build());
    layers.put(2, config.build());
    return new AdapterTargetModel(KnownLayouts.all().get(type), layers, 3);
  }

  static AdapterTargetModel qwen3() {
    return model("qwen3_moe", MoeConfig.builder(H, I, E, 2));
  }

  static AdapterTargetModel qwen2() {
    return model(
        "qwen2_moe",
        MoeConfig.builder(H, I, E, 2)
            .sharedExpert(new SharedExpertConfig(20, Activation.SILU, true)));
  }

  static TinyCheckpoint adapter(int rank, double alpha) {
    return TinyCheckpoint.adapter(rank, alpha);
  }

  static TinyCheckpoint fused(int rank, double alpha) {
    TinyCheckpoint t = adapter(rank, alpha);
    t.config.putAll(BOTH);
    return t;
  }

  LoraAdapter load(TinyCheckpoint adapter, AdapterTargetModel model) {
    return load(adapter, model, AdapterPolicy.DEFAULT).adapter();
  }

  PeftAdapter load(TinyCheckpoint adapter, AdapterTargetModel model, AdapterPolicy policy) {
    return load(adapter.writeAdapter(dir), model, policy);
  }

  static PeftAdapter load(Path written, AdapterTargetModel model, AdapterPolicy policy) {
    PeftAdapter loaded = PeftAdapter.load(written, "x", model, policy);
    MoeConfig config =
        model.layers().get(1).toBuilder().lora(new LoraConfig(1, 1 << 20, true)).build();
    loaded.adapter().layers().values().forEach(layer -> layer.requireFits(config));
    return loaded;
  }

  static long[] d(long... dims) {
    return dims;
  }

  static Tensor a(TinyCheckpoint t, String module) {
    return t.tensors.get("base_model.model." + module + ".lora_A.weight");
  }

  static Tensor b(TinyCheckpoint t, String module) {
    return t.tensors.get("base_model.model." + module + ".lora_B.weight");
  }

  static void assertDelta(
      LoraFactors f, int experts, int out, int in, int rank, double scale, At a, At b) {
    assertThat(f.inFeatures()).isEqualTo(in);
    assertThat(f.outFeatures()).isEqualTo(out);
    for (int e = 0; e < experts; e++) {
      for (int o = 0; o < out; o++) {
        for (int i = 0; i < in; i++) {
          double expected = 0;
          for (int j = 0; j < rank; j++) {
            expected += scale * b.get(e, o, j) * a.get(e, j, i);
          }
          double actual = 0;
          for (int j = 0; j < f.rank(); j++) {
            actual += f.b(e).get(o, j) * f.a(e).get(j, i);
          }
          assertThat(actual).isCloseTo(expected, org.assertj.core.data.Offset.offset(1e-5));
        }
      }
    }
  }

  static AdapterTargetModel nemotron(int h, int i, int latent) {
    return model(
        "nemotron_h",
        MoeConfig.builder(h, i, E, 2)
            .activation(Activation.RELU2_NO_MUL)
            .latentSize(latent)
            .sharedExpert(new SharedExpertConfig(20, Activation.RELU2_NO_MUL, false)));
  }
}
