package io.moe4j.benchmarks;

import io.moe4j.api.tensor.DType;
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
 * The first forward of a layer that was just prepared. The first iteration of each fork is the
 * first forward of its JVM, with every class to load and nothing compiled; {@code forwards} says
 * which forward after prepare is timed, so 1 beside 50 is what the first one costs more.
 */
@State(Scope.Benchmark)
@BenchmarkMode(Mode.SingleShotTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
@Warmup(iterations = 0)
@Measurement(iterations = 4)
@Fork(
    value = 3,
    jvmArgsAppend = {
      "--add-modules=jdk.incubator.vector",
      "--enable-native-access=ALL-UNNAMED",
      "-Xmx1g"
    })
public class FirstForwardBenchmark {
  /** Which layer. */
  @Param("OLMOE")
  public LayerShape shape = LayerShape.OLMOE;

  /** Of the weights. */
  @Param("BF16")
  public DType dtype = DType.BF16;

  /** {@code T}. */
  @Param({"1", "16", "256"})
  public int tokens;

  /** Which forward after prepare is timed. */
  @Param({"1", "50"})
  public int forwards;

  private @Nullable SampleLayer layer;

  /** Prepares the layer, and runs what comes before the forward that is timed. */
  @Setup(Level.Iteration)
  public void open() {
    layer = new SampleLayer(shape, dtype, tokens, 0, 0);
    for (int i = 1; i < forwards; i++) {
      layer.forward();
    }
  }

  /** A forward. */
  @Benchmark
  public void forward() {
    if (layer != null) {
      layer.forward();
    }
  }

  /** Gives the memory back. */
  @TearDown(Level.Iteration)
  public void close() {
    if (layer != null) {
      layer.close();
    }
  }
}
