package io.moe4j.oracle;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.LatentWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.stream.IntStream;

/** A small layer (H = 4, I = 3, E = 4, top_k = 2) over a {@link FakeDevice}. */
final class LayerFixture {
  static final int H = 4;
  static final int I = 3;
  static final int E = 4;
  static final int K = 2;
  static final int MAX_TOKENS = 8;

  private LayerFixture() {}

  static MoeConfig.Builder config() {
    return MoeConfig.builder(H, I, E, K).weightDtype(DType.F32).maxTokens(MAX_TOKENS);
  }

  static MoeConfig.Builder loraConfig() {
    return config().lora(new LoraConfig(3, 8));
  }

  static MoeConfig.Builder sharedConfig() {
    return config().sharedExpert(new SharedExpertConfig(2, Activation.SILU, false));
  }

  static MoeLayerWeights weights(MoeConfig c) {
    return new MoeLayerWeights(
        new ExpertWeights(
            IntStream.range(0, c.numLocalExperts())
                .mapToObj(e -> mlp(c, I, c.expertHiddenSize()))
                .toList()),
        new RouterWeights(
            zeros(c.numChoices(), H),
            null,
            c.routing().correctionBias() ? zeros(E) : null,
            null,
            c.routing().expertScale() ? zeros(c.numChoices()) : null,
            c.routing().byTokenId() ? empty(DType.I32, 1, K) : null),
        c.sharedExpert().isPresent() ? new SharedExpertWeights(mlp(2, H), null) : null,
        c.latentSize() > 0
            ? new LatentWeights(zeros(c.latentSize(), H), zeros(H, c.latentSize()))
            : null);
  }

  private static ExpertWeights.Expert mlp(MoeConfig c, int i, int h) {
    QuantScheme scheme = c.quantSchemes().getFirst();
    return scheme.isNone()
        ? mlp(i, h)
        : ExpertWeights.Expert.of(fp8(scheme, i, h), fp8(scheme, i, h), fp8(scheme, h, i));
  }

  private static Weight fp8(QuantScheme scheme, int out, int in) {
    return Weight.builder("w", scheme, out, in, empty(DType.F8_E4M3, out, in), Packing.DENSE)
        .scales(zeros(scheme.scaleRowCount(out), scheme.scaleColumnCount(in)))
        .build();
  }

  private static ExpertWeights.Expert mlp(int i, int h) {
    return ExpertWeights.Expert.plain(zeros(i, h), zeros(i, h), zeros(h, i));
  }

  static Tensor zeros(long... shape) {
    long n = 1;
    for (long s : shape) {
      n *= s;
    }
    return Tensor.ofFloats(new float[Math.toIntExact(n)], shape);
  }

  static Tensor empty(DType dtype, long... shape) {
    long n = 1;
    for (long s : shape) {
      n *= s;
    }
    return Tensor.of(dtype, MemorySegment.ofArray(new byte[(int) dtype.byteSize(n)]), shape);
  }

  /** Row {@code t} is {@code t, t, t, t}. */
  static Tensor hidden(int tokens) {
    Tensor x = zeros(tokens, H);
    for (int t = 0; t < tokens; t++) {
      for (int h = 0; h < H; h++) {
        x.set(t, t, h);
      }
    }
    return x;
  }

  /** What the fakes give for {@link #hidden}, worked out without them: experts -t, -t+1 mod E. */
  static double expected(int t) {
    int first = Math.floorMod(-t, E);
    int second = Math.floorMod(-t + 1, E);
    return t * (first + 1) + 0.5 * t * (second + 1);
  }

  static FakeBackend lora(FakeDevice device) {
    return new FakeBackend("fake", device.info().id().type())
        .withLora()
        .prepares((c, w, d) -> FakeExperts.lora(device));
  }

  static FakeBackend modular(FakeDevice device) {
    return new FakeBackend("fake", DeviceType.CPU)
        .prepares((c, w, d) -> FakeExperts.modular(device));
  }

  static FakeBackend monolithic(FakeDevice device) {
    return new FakeBackend("mono", DeviceType.CPU)
        .prepares((c, w, d) -> FakeExperts.monolithic(device));
  }

  static MoeOracle oracle(FakeDevice device, ExpertsBackend... backends) {
    return MoeOracle.of(
        BackendCatalog.of(
            List.of(backends), List.of(device.provider()), List.of(device.blockOps())));
  }

  static MoeLayer layer(FakeDevice device, FakeBackend backend, MoeConfig config) {
    return MoeLayer.builder(config, weights(config)).oracle(oracle(device, backend)).build();
  }
}
