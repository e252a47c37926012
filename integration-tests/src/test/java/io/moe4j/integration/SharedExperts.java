package io.moe4j.integration;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.cuda.CudaDevice;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Random experts that the cases of a test class share: made once and copied to the first card once,
 * so that a layer of a gigabyte is prepared from there.
 */
final class SharedExperts implements AutoCloseable {
  private static final int SEED = 7;

  /**
   * The same experts twice.
   *
   * @param host for the reference
   * @param there for the layer: on the card where they are plain, else also on the host
   */
  record Experts(ExpertWeights host, ExpertWeights there) {
    static Experts onHost(ExpertWeights host) {
      return new Experts(host, host);
    }
  }

  private final CudaDevice device = Card.open();
  private final List<Device.Buffer> buffers = new ArrayList<>();
  private final Map<List<Object>, Experts> made = new HashMap<>();

  /**
   * {@return the experts of a layer}
   *
   * @param c sizes, schemes and biases
   * @param deviation of w13
   * @param deviation2 of w2
   */
  Experts of(MoeConfig c, double deviation, double deviation2) {
    List<Object> key =
        List.of(
            c.numLocalExperts(),
            c.hiddenSize(),
            c.intermediateSize(),
            c.w13Schemes(),
            c.w2Schemes(),
            c.expertBias(),
            deviation,
            deviation2);
    return made.computeIfAbsent(
        key,
        k -> {
          ExpertWeights host = new RandomTensors(SEED).experts(c, deviation, deviation2);
          return c.isQuantized() || c.expertBias()
              ? Experts.onHost(host)
              : new Experts(host, copied(host));
        });
  }

  private ExpertWeights copied(ExpertWeights host) {
    ExpertWeights there =
        new ExpertWeights(
            host.experts().stream()
                .map(e ->
                    ExpertWeights.Expert.plain(copied(e.gate()), copied(e.up()), copied(e.down())))
                .toList());
    device.defaultStream().synchronize();
    return there;
  }

  private Tensor copied(Weight weight) {
    Tensor from = weight.plain();
    Device.Buffer b = device.allocate(from.dtype().byteSize(from.elementCount()));
    buffers.add(b);
    Tensor to = Tensor.of(from.dtype(), b.memory(), from.shape());
    device.copy(from, to, device.defaultStream());
    return to;
  }

  @Override
  public void close() {
    buffers.forEach(Device.Buffer::close);
    device.close();
  }
}
