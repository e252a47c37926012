package io.moe4j.lora.cuda;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaEvent;
import io.moe4j.cuda.CudaStream;
import java.util.function.Consumer;

/**
 * Computes deltas on a second stream while the base product runs on the caller's, then adds them:
 * worth it where the base product leaves the device idle in part. The delta is rounded once before
 * it is added. Rows to which nothing applies are not touched.
 *
 * <p>Four events order the two streams, two a product. Like the wrapper it may be captured in a
 * graph. One forward at a time; not for several threads.
 */
public final class TwoStreams implements AutoCloseable {
  private final CudaPunicaWrapper punica;
  private final CudaStream second;
  private final CudaEvent[] events = new CudaEvent[4];

  /**
   * A second stream of its own.
   *
   * @param device of the wrapper
   * @param punica computes the deltas; stays its owner's
   */
  public TwoStreams(CudaDevice device, CudaPunicaWrapper punica) {
    this.punica = punica;
    this.second = device.newStream();
    for (int i = 0; i < events.length; i++) {
      events[i] = device.newEvent(false);
    }
  }

  /**
   * The w13 product and its deltas.
   *
   * @param base enqueues the product into {@code y} on the stream it is given
   * @param context the batch's adapters
   * @param y {@code [T, K, 2I]} or {@code [T, K, I]}
   * @param delta scratch of y's dtype and shape, contiguous; contents do not matter
   * @param x what the product reads
   * @param routing ids
   * @param gated whether {@code y} has gate columns
   * @param layout where gate and up columns stand
   * @param stream the caller's
   */
  public void w13(
      Consumer<DeviceStream> base,
      MoeLoraContext context,
      Tensor y,
      Tensor delta,
      Tensor x,
      ExpertRouting routing,
      boolean gated,
      GateUpLayout layout,
      CudaStream stream) {
    fork(0, stream);
    punica.addLoraW13(
        PunicaWrapper.W13.of(context, delta, x, routing, gated, layout).withAddInputs(false),
        second);
    base.accept(stream);
    join(1, stream);
    punica.addDelta(
        CudaPunicaWrapper.w13(context, y, x, routing, gated, layout, true, stream), delta);
  }

  /**
   * The w2 product and its deltas.
   *
   * @param base enqueues the product into {@code y} on the stream it is given
   * @param context the batch's adapters
   * @param y {@code [T, K, H]}
   * @param delta scratch of y's dtype and shape, contiguous; contents do not matter
   * @param x {@code [T * K, I]}, what the product reads
   * @param routing ids and weights
   * @param mulRoutedWeight whether deltas are multiplied by topk weights
   * @param stream the caller's
   */
  public void w2(
      Consumer<DeviceStream> base,
      MoeLoraContext context,
      Tensor y,
      Tensor delta,
      Tensor x,
      ExpertRouting routing,
      boolean mulRoutedWeight,
      CudaStream stream) {
    fork(2, stream);
    punica.addLoraW2(
        PunicaWrapper.W2
            .of(context, delta, x, routing)
            .withMulRoutedWeight(mulRoutedWeight)
            .withAddInputs(false),
        second);
    base.accept(stream);
    join(3, stream);
    punica.addDelta(
        CudaPunicaWrapper.w2(context, y, x, routing, mulRoutedWeight, true, stream), delta);
  }

  private void fork(int event, CudaStream stream) {
    events[event].record(stream);
    second.waitFor(events[event]);
  }

  private void join(int event, CudaStream stream) {
    events[event].record(second);
    stream.waitFor(events[event]);
  }

  @Override
  public void close() {
    second.close();
    for (CudaEvent e : events) {
      e.close();
    }
  }
}
