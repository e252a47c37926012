package io.moe4j.comm.nccl;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.device.Device;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.tck.GpuTest;
import java.util.List;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** The NCCL of this machine, a world of one on the first card. */
@GpuTest
@Timeout(60)
class NcclGpuTest {
  private final NcclCommProvider nccl = new NcclCommProvider();

  @BeforeEach
  void assumeNccl() {
    String why = NcclLibrary.Installed.HERE.reason().orElse("");
    assumeTrue(why.isEmpty(), "skipped: " + why);
    System.out.println("NCCL " + nccl.version());
  }

  private static float[] read(CudaDevice device, Tensor t) {
    Tensor host = Tensor.ofFloats(new float[Math.toIntExact(t.elementCount())], t.shape());
    device.copy(t, host, device.defaultStream());
    device.defaultStream().synchronize();
    return host.toFloats();
  }

  @Test
  void everyCallEagerAndRecorded() {
    try (CudaDevice device = new CudaDeviceProvider().open(0);
        Device.Buffer from = device.allocate(4096);
        Device.Buffer to = device.allocate(4096);
        Communicator one = nccl.open(CommConfig.of(nccl.newGroup(), 0, 1), device)) {
      assertThat(one.description()).isEqualTo("nccl " + nccl.version());
      Tensor send = Tensor.of(DType.F32, from.memory(), 4, 2);
      Tensor receive = Tensor.of(DType.F32, to.memory(), 4, 2);
      float[] values = {1, 2, 3, 4, 5, 6, 7, 8};
      device.copy(Tensor.ofFloats(values, 4, 2), send, device.defaultStream());
      Runnable[] calls = {
        () -> one.allGather(send, receive, device.defaultStream()),
        () -> one.allGather(List.of(send), List.of(receive), device.defaultStream()),
        () -> one.reduceScatter(send, receive, device.defaultStream()),
        () -> one.allToAll(send, new long[] {4}, receive, new long[] {4}, device.defaultStream()),
      };
      for (int i = 0; i < calls.length; i++) {
        device.fill(receive, 0, device.defaultStream());
        calls[i].run();
        assertThat(read(device, receive)).as("call %d", i).isEqualTo(values);
        device.fill(receive, 0, device.defaultStream());
        try (Device.Graph graph = device.capture(device.defaultStream(), calls[i]).orElseThrow()) {
          assertThat(read(device, receive)).as("only recorded").containsOnly(0);
          graph.launch(device.defaultStream());
          assertThat(read(device, receive)).as("replay of call %d", i).isEqualTo(values);
        }
      }
      one.allReduce(send, device.defaultStream());
      assertThat(read(device, send)).isEqualTo(values);
    }
  }

  /** What NCCL took is given back, by leaving and by aborting; both may be repeated. */
  @Test
  @Tag("gpu-alone")
  void memoryComesBack() {
    try (CudaDevice device = new CudaDeviceProvider().open(0)) {
      nccl.open(CommConfig.of(nccl.newGroup(), 0, 1), device).close(); // what stays for ever
      long before = device.freeBytes();
      for (int n = 0; n < 4; n++) {
        Communicator c = nccl.open(CommConfig.of(nccl.newGroup(), 0, 1), device);
        if (n % 2 == 1) {
          c.abort(new IllegalStateException("out of paper"));
          assertThatThrownBy(() ->
                  c.allReduce(
                      Tensor.of(DType.F32, new DeviceMemory(device.info().id(), 4096, 8), 2),
                      device.defaultStream()))
              .isInstanceOf(CommException.class)
              .hasMessageContaining("out of paper");
        }
        c.close();
        c.close();
      }
      assertThat(before - device.freeBytes()).as("bytes that are gone").isLessThan(4L << 20);
    }
  }
}
