package io.moe4j.backend.triton;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaEvent;
import io.moe4j.cuda.CudaStream;
import io.moe4j.cuda.ops.PaddedSizes;
import io.moe4j.cuda.ops.RowKernels;
import org.jspecify.annotations.Nullable;

/**
 * A forward whose deltas come from the context's punica wrapper:
 *
 * <pre>
 *   ids        -> [sort]        pairs by expert
 *   hidden     -> [rows]        each pair's token, expert and slot, in the order of the sort
 *              -> [gemm w13] -> addLoraW13 -> [activation] -> [gemm w2] -> addLoraW2 -> [combine]
 * </pre>
 *
 * To the wrapper the rows of the sort are a batch of tokens with one expert each. Both products go
 * through the kernels of w2, which write what they computed as it is: rounded to the weights'
 * dtype, the bias in it. The w13 delta is added before the activation; the w2 delta before the
 * weights, which the combine multiplies both by in f32. With router weights on the input the rows
 * carry them, so the w13 delta does too.
 *
 * <p>On a second stream ({@link LoraMode}) the wrapper writes a delta of its own into zeros while
 * the product runs; four events order the two streams, two a product. It is rounded once, then
 * added in f32.
 *
 * <p>Forwards without adapters go the same way without the wrapper: a row without an adapter has
 * the same bits whatever the rows around it have.
 */
final class ComposedLora implements AutoCloseable {
  private final CudaDevice device;
  private final MoeConfig config;
  private final PaddedSizes sizes;
  private final GemmLaunches gemm;
  private final RowKernels rows;
  private final LoraExperts owner;
  private final int experts;
  private final LoraMode mode;
  private final CudaEvent[] events = new CudaEvent[4];

  /**
   * @param owner whose LoRA methods are called
   * @param mode a composable one
   */
  ComposedLora(
      CudaDevice device,
      MoeConfig config,
      PaddedSizes sizes,
      int experts,
      GemmLaunches gemm,
      LoraExperts owner,
      LoraMode mode) {
    this.device = device;
    this.config = config;
    this.sizes = sizes;
    this.experts = experts;
    this.gemm = gemm;
    this.owner = owner;
    this.rows = new RowKernels(device, config.weightDtype());
    this.mode = mode;
    for (int i = 0; i < events.length; i++) {
      events[i] = device.newEvent(false);
    }
  }

  /** Rows of deltas of their own that a forward of up to that many pairs needs room for. */
  int deltaRows(int pairs) {
    return mode.mostBeside(pairs);
  }

  /**
   * Everything after the sort. One call at a time enqueues, since calls share the events.
   *
   * @param f without LoRA as far as the kernels here are concerned
   * @param routing of the call; for BATCHED ids made here
   * @param context the call's; null = no adapters
   * @param workspace of the call
   */
  synchronized void run(
      Forward f, ExpertRouting routing, @Nullable MoeLoraContext context, Workspace workspace) {
    ForwardLayout at = f.at();
    DType type = config.weightDtype();
    DeviceStream stream = f.stream();
    int pairs = f.pairs();
    int hidden = sizes.hidden();
    int inter = sizes.intermediate();
    Activation activation = config.activation();
    int width = activation.isGated() ? 2 * inter : inter;
    boolean naive = f.plan().naive();
    Tensor x = workspace.tensor(at.sorted, type, pairs, hidden);
    Tensor middle = workspace.tensor(at.middle, type, pairs, inter);
    Tensor y13 = workspace.tensor(at.wide, type, pairs, width);
    Tensor y2 = workspace.tensor(at.y, type, pairs, hidden);
    Tensor expertOfRow = workspace.tensor(at.rowExperts, DType.I32, pairs, 1);
    Tensor slotOfRow = workspace.tensor(at.rowSlots, DType.I32, pairs);
    rows.expand(
        Tensor.of(
            type,
            new DeviceMemory(
                device.info().id(), f.hidden(), type.byteSize((long) f.batch().tokens() * hidden)),
            f.batch().tokens(),
            hidden),
        new RowKernels.Order(
            naive ? 0 : f.address(at.lists.pairs()), naive ? 0 : f.address(at.lists.rowCount())),
        routing,
        config.routerWeightOnInput() && !f.batched(),
        context == null ? null : context.tokenLoraMapping(),
        experts,
        x,
        new RowKernels.Owners(expertOfRow, slotOfRow),
        stream);
    // No weights go on here: the combine has those of the pairs.
    ExpertRouting byRow =
        new ExpertRouting(expertOfRow, workspace.tensor(at.rowWeights, DType.F32, pairs, 1), null);
    MoeLoraContext rowContext = context == null ? null : context.withTokenLoraMapping(slotOfRow);
    boolean two = rowContext != null && mode.beside(pairs);
    CudaStream second = two ? device.beside(stream) : null;

    Tensor delta13 = null;
    if (rowContext != null && second != null) {
      delta13 = workspace.tensor(at.delta, type, pairs, width);
      fork(0, delta13, stream, second);
      w13(rowContext, delta13, x, byRow, second);
    }
    gemm.product(f, true, x, y13);
    if (second != null) {
      join(1, stream, second);
    } else if (rowContext != null) {
      w13(rowContext, y13, x, byRow, stream);
    }
    rows.activate(activation, y13, delta13, expertOfRow, middle, stream);
    Tensor delta2 = null;
    if (rowContext != null && second != null) {
      delta2 = workspace.tensor(at.delta, type, pairs, hidden);
      fork(2, delta2, stream, second);
      w2(rowContext, delta2, middle, byRow, second);
    }
    gemm.product(f, false, middle, y2);
    if (second != null && delta2 != null) {
      join(3, stream, second);
      rows.add(y2, delta2, expertOfRow, stream);
    } else if (rowContext != null) {
      w2(rowContext, y2, middle, byRow, stream);
    }
    gemm.combine(f);
  }

  private void w13(
      MoeLoraContext context, Tensor y, Tensor x, ExpertRouting byRow, DeviceStream stream) {
    owner.applyW13Lora(
        PunicaWrapper.W13.of(
            context,
            y.reshape(y.size(0), 1, y.size(1)),
            x,
            byRow,
            config.activation().isGated(),
            GateUpLayout.HALVES),
        stream);
  }

  private void w2(
      MoeLoraContext context, Tensor y, Tensor x, ExpertRouting byRow, DeviceStream stream) {
    owner.applyW2Lora(
        PunicaWrapper.W2.of(context, y.reshape(y.size(0), 1, y.size(1)), x, byRow), stream);
  }

  /** Rows to which nothing applies are not written, so what is there must be nothing. */
  private void fork(int event, Tensor delta, DeviceStream stream, CudaStream other) {
    events[event].record(stream);
    other.waitFor(events[event]);
    device.fill(delta, 0, other);
  }

  private void join(int event, DeviceStream stream, CudaStream other) {
    events[event].record(other);
    events[event].holdBack(stream);
  }

  @Override
  public void close() {
    for (CudaEvent e : events) {
      e.close();
    }
  }
}
