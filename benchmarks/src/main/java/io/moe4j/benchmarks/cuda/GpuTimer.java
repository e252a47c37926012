package io.moe4j.benchmarks.cuda;

import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaEvent;
import io.moe4j.cuda.CudaGraph;
import io.moe4j.cuda.CudaStream;
import java.util.Arrays;

/** Medians of what work costs the host, and of what it costs the card. */
final class GpuTimer {
  private static final int ROUNDS = 11;
  private static final int UNROLL = 20;
  private static final int HOST_ROUNDS = 400;

  private GpuTimer() {}

  /** {@return microseconds of one run on the card: a graph of twenty, replayed} */
  static double replayed(CudaDevice device, CudaStream stream, Runnable work) {
    work.run();
    try (CudaEvent start = device.newEvent(true);
        CudaEvent end = device.newEvent(true);
        CudaGraph graph =
            CudaGraph.capture(
                device,
                stream,
                () -> {
                  for (int i = 0; i < UNROLL; i++) {
                    work.run();
                  }
                })) {
      double[] micros = new double[ROUNDS];
      for (int i = -3; i < ROUNDS; i++) {
        start.record(stream);
        graph.launch(stream);
        end.record(stream);
        end.synchronize();
        if (i >= 0) {
          micros[i] = end.microsSince(start) / UNROLL;
        }
      }
      Arrays.sort(micros);
      return micros[ROUNDS / 2];
    }
  }

  /**
   * {@return microseconds that one run keeps the calling thread} The card is idle before every
   * round, so that no call waits for room in the queue, and the last half counts, when the compiler
   * is done.
   */
  static double onHost(CudaStream stream, Runnable work) {
    double[] rounds = new double[HOST_ROUNDS];
    for (int r = 0; r < 2 * HOST_ROUNDS; r++) {
      stream.synchronize();
      long start = System.nanoTime();
      for (int i = 0; i < UNROLL; i++) {
        work.run();
      }
      rounds[r % HOST_ROUNDS] = (System.nanoTime() - start) / 1e3 / UNROLL;
    }
    stream.synchronize();
    Arrays.sort(rounds);
    return rounds[HOST_ROUNDS / 2];
  }
}
