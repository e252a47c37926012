package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.stream.Stream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/** What is no number in an expert's weights reaches the tokens that chose it, and no others. */
class NotANumberTest {
  private static final int H = 64;
  private static final int I = 48;
  private static final int E = 5;
  private static final int T = 37;

  static Stream<Arguments> cases() {
    return Stream.of(DType.F32, DType.BF16, DType.F16)
        .flatMap(t ->
            Stream.of("cpu", "cpu-reference")
                .flatMap(b ->
                    Stream.of(Double.NaN, Double.POSITIVE_INFINITY)
                        .map(v -> Arguments.of(t, b, v))));
  }

  private static Tensor matrix(Random random, DType type, int rows, int columns) {
    Tensor t =
        Tensor.of(
            type,
            MemorySegment.ofArray(new byte[(int) type.byteSize((long) rows * columns)]),
            rows,
            columns);
    for (int r = 0; r < rows; r++) {
      for (int c = 0; c < columns; c++) {
        t.set(random.nextGaussian() / 8, r, c);
      }
    }
    return t;
  }

  private static Tensor[] forward(DType type, String backend, double value) {
    Random random = new Random(1);
    List<ExpertWeights.Expert> experts = new ArrayList<>();
    for (int e = 0; e < E; e++) {
      experts.add(
          ExpertWeights.Expert.plain(
              matrix(random, type, I, H), matrix(random, type, I, H), matrix(random, type, H, I)));
    }
    experts.get(3).up().plain().set(value, 7, 11);
    Tensor hidden = matrix(random, DType.F32, T, H);
    Tensor ids = Tensor.ofInts(new int[T * 2], T, 2);
    Tensor weights = Tensor.ofFloats(new float[T * 2], T, 2);
    for (int t = 0; t < T; t++) {
      for (int k = 0; k < 2; k++) {
        ids.set((t + 2 * k) % E, t, k);
        weights.set(0.5, t, k);
      }
    }
    Tensor out = Tensor.ofFloats(new float[T * H], T, H);
    MoeConfig config = MoeConfig.builder(H, I, E, 2).weightDtype(type).build();
    try (MoeLayer layer =
        MoeLayer.builder(config, new MoeLayerWeights(new ExpertWeights(experts), null, null, null))
            .backend(backend)
            .build()) {
      layer.forward(MoeForward.of(hidden, out).withTopk(ids, weights));
    }
    return new Tensor[] {out, ids};
  }

  @ParameterizedTest
  @MethodSource("cases")
  void staysWithTheTokensOfItsExpert(DType type, String backend, double value) {
    Tensor[] sound = forward(type, backend, 0.25);
    Tensor[] with = forward(type, backend, value);
    for (int t = 0; t < T; t++) {
      double[] row = with[0].select(0, t).toDoubles();
      if (Arrays.stream(with[1].select(0, t).toInts()).anyMatch(e -> e == 3)) {
        assertThat(Arrays.stream(row).noneMatch(Double::isFinite)).as("token %d", t).isTrue();
      } else {
        assertThat(row).as("token %d", t).isEqualTo(sound[0].select(0, t).toDoubles());
      }
    }
  }
}
