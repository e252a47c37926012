package io.moe4j.cli.bench;

/**
 * One measured case.
 *
 * @param shape name of the layer's shape
 * @param dtype of the experts' weights
 * @param tokens {@code T}
 * @param backend who computed
 * @param adapters adapters mixed round-robin over the tokens, 0 = LoRA off
 * @param rank their rank, 0 when there are none
 * @param medianNanos of all repetitions
 * @param minNanos the fastest repetition
 * @param repetitions how many
 * @param bytes weights of the experts that were chosen, router, input and output
 * @param flops of experts and router, without LoRA
 * @param bytesNanos the least time on this machine for those bytes
 * @param flopsNanos the least time on this machine for those flops
 * @param tax with LoRA: median of the ratios to the base layer, measured in turn; NaN without
 */
public record BenchRow(
    String shape,
    String dtype,
    int tokens,
    String backend,
    int adapters,
    int rank,
    double medianNanos,
    double minNanos,
    int repetitions,
    double bytes,
    double flops,
    double bytesNanos,
    double flopsNanos,
    double tax) {

  /** {@return the least time on this machine, the larger of both} */
  public double floorNanos() {
    return Math.max(bytesNanos, flopsNanos);
  }

  /** {@return whether bytes set the floor} */
  boolean memoryBound() {
    return bytesNanos >= flopsNanos;
  }

  /** {@return 1 = as fast as this machine can be} */
  public double fractionOfFloor() {
    return floorNanos() / medianNanos;
  }

  double tokensPerSecond() {
    return tokens * 1e9 / medianNanos;
  }

  boolean hasLora() {
    return adapters > 0;
  }

  /** {@return what rows of one line of a chart share} */
  String series() {
    return shape + ", " + dtype;
  }
}
