package io.moe4j.cuda.ops;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.Tensor;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class PairBatchTest {
  @ParameterizedTest
  @CsvSource({
    "1024, 64, 128, 512",
    "1023, 64, 128, 512",
    "16, 16, 128, 2",
    "3, 16, 128, 2",
    "2, 64, 128, 2",
    "1, 64, 128, 1",
    "1024, 128, 128, 1024",
    "0, 64, 128, 0",
    "100000, 512, 513, 99806"
  })
  void ofSharedExpertsARankHasItsPart(int tokens, int experts, int global, int here) {
    int[] map = new int[global];
    ExpertRouting routing =
        new ExpertRouting(
            Tensor.ofInts(new int[2], 1, 2),
            Tensor.ofFloats(new float[2], 1, 2),
            Tensor.ofInts(map, global));
    assertThat(PairBatch.tokensHere(tokens, experts, routing)).isEqualTo(here);
  }

  @ParameterizedTest
  @CsvSource({"1", "7", "4096"})
  void withoutAMapAllAreHere(int tokens) {
    ExpertRouting routing =
        new ExpertRouting(
            Tensor.ofInts(new int[2], 1, 2), Tensor.ofFloats(new float[2], 1, 2), null);
    assertThat(PairBatch.tokensHere(tokens, 64, routing)).isEqualTo(tokens);
    assertThat(PairBatch.tokensHere(tokens, 64, null)).isEqualTo(tokens);
  }
}
