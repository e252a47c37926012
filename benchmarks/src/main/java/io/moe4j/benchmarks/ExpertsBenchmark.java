package io.moe4j.benchmarks;

import io.moe4j.api.tensor.DType;
import io.moe4j.cli.bench.Roofline;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.TearDown;
import org.openjdk.jmh.annotations.Warmup;

/**
 * One forward of a layer's routed experts, all threads of the backend. {@code adapters} 0 and 8 are
 * twins that differ by LoRA alone: their ratio is the LoRA tax. After each fork the floor is
 * printed: the larger of bytes over read bandwidth and operations over multiply-add speed, from
 * medians of samples taken between the iterations.
 */
@State(Scope.Benchmark)
@BenchmarkMode(Mode.SampleTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
@Warmup(iterations = 4, time = 2)
@Measurement(iterations = 8, time = 1)
@Fork(
    value = 1,
    jvmArgsAppend = {
      "--add-modules=jdk.incubator.vector",
      "--enable-native-access=ALL-UNNAMED",
      "-Xmx1g"
    })
public class ExpertsBenchmark {
  private static final int RANK = 16;

  /** Which layer. */
  @Param({"OLMOE", "QWEN3_30B_A3B", "MIXTRAL_SMALL", "TINY"})
  public LayerShape shape = LayerShape.OLMOE;

  /** Of the weights. */
  @Param({"BF16", "F32", "F16"})
  public DType dtype = DType.BF16;

  /** {@code T}. */
  @Param({"1", "4", "16", "64", "256", "1024"})
  public int tokens;

  /** Adapters mixed in the batch. */
  @Param({"0", "8"})
  public int adapters;

  private @Nullable SampleLayer layer;
  private @Nullable Roofline roofline;

  /** Takes memory; some hundred megabytes. */
  @Setup
  public void open() {
    layer = new SampleLayer(shape, dtype, tokens, adapters, RANK);
    roofline = new Roofline(Runtime.getRuntime().availableProcessors(), null);
  }

  /** Samples the limits. */
  @Setup(Level.Iteration)
  public void sample() {
    if (roofline != null) {
      for (int i = 0; i < 3; i++) {
        roofline.sample();
      }
    }
  }

  /** A forward. */
  @Benchmark
  public void forward() {
    if (layer != null) {
      layer.forward();
    }
  }

  /** Says what the floor was. */
  @TearDown
  public void report() {
    if (layer != null && roofline != null) {
      Roofline.Limits limits = roofline.limits();
      double bandwidth = limits.readGbps().median();
      double speed = limits.gflops().median();
      double byBytes = layer.bytes() / bandwidth / 1e6;
      double byFlops = layer.flops() / speed / 1e6;
      System.out.printf(
          "%nroofline %.1f GB/s, %.0f GFLOP/s: floor %.3f ms (bytes %.3f, operations %.3f)%n",
          bandwidth, speed, Math.max(byBytes, byFlops), byBytes, byFlops);
      layer.close();
      roofline.close();
    }
  }
}
