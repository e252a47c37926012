package io.moe4j.backend.triton;

import static org.assertj.core.api.Assertions.assertThat;

import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class OccupancyLimitTest {
  private static final int MULTIPROCESSORS = 132;

  /** Programs of some dynamic shared memory that fit a multiprocessor of capability 9.0. */
  private static int fit(int sharedBytes) {
    return 233_472 / (sharedBytes + 1024);
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 100, 132, 133, 192, 264, 265, 360, 396, 400, 1440, 5000})
  void anEvenShareFitsAndNoMore(int programs) {
    int bytes = OccupancyLimit.sharedBytes(programs, MULTIPROCESSORS, 0);
    assertThat(fit(bytes)).isEqualTo((programs + MULTIPROCESSORS - 1) / MULTIPROCESSORS);
    assertThat(bytes).isLessThanOrEqualTo(OccupancyLimit.MOST);
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 360, 5000})
  void aProgramGetsWhatItNeeds(int programs) {
    assertThat(OccupancyLimit.sharedBytes(programs, MULTIPROCESSORS, 200_000)).isEqualTo(200_000);
    assertThat(OccupancyLimit.sharedBytes(programs, MULTIPROCESSORS, 1000))
        .isGreaterThanOrEqualTo(1000);
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 132, 360})
  void aShrinkStillFitsBesides(int programs) {
    int each = (programs + MULTIPROCESSORS - 1) / MULTIPROCESSORS;
    int left = 233_472 - each * (OccupancyLimit.sharedBytes(programs, MULTIPROCESSORS, 0) + 1024);
    assertThat(left).isGreaterThan(30_000);
  }
}
