package io.moe4j.cuda;

import static org.assertj.core.api.Assertions.assertThat;

import com.sun.management.ThreadMXBean;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.management.ManagementFactory;
import java.util.Map;
import org.junit.jupiter.api.Test;

/** A launch leaves nothing on the heap. */
@GpuTest
class LaunchAllocationTest {
  private static final int LAUNCHES = 2000;

  @Test
  void launchAllocatesNothing() {
    try (Gpu gpu = new Gpu()) {
      Kernel cast = SharedKernels.load(gpu.device, "cast", Map.of("in", "f32", "out", "f32"));
      Tensor x = gpu.empty(DType.F32, 32);
      Tensor y = gpu.empty(DType.F32, 32);
      // Until the compiler is done.
      launch(gpu, cast, x, y, 10 * LAUNCHES);
      var threads = (ThreadMXBean) ManagementFactory.getThreadMXBean();
      long before = threads.getCurrentThreadAllocatedBytes();
      launch(gpu, cast, x, y, LAUNCHES);
      double bytes = (threads.getCurrentThreadAllocatedBytes() - before) / (double) LAUNCHES;
      gpu.stream.synchronize();
      assertThat(bytes).as("heap bytes a launch").isLessThan(64);
    }
  }

  private static void launch(Gpu gpu, Kernel cast, Tensor x, Tensor y, int times) {
    for (int i = 0; i < times; i++) {
      cast.begin().pointer(x).pointer(y).i64(32).launch(gpu.stream, 1);
      if (i % 500 == 499) {
        gpu.stream.synchronize();
      }
    }
  }
}
