package io.moe4j.cuda.ops;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.device.WorkspaceLayout;
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
import org.jspecify.annotations.Nullable;

/**
 * A forward of a backend's own products whose deltas come from the context's punica wrapper:
 *
 * <pre>
 *   ids        -> [sort]        pairs by expert
 *   hidden     -> [rows]        each pair's token, expert and slot, in the order of the sort
 *              -> [w13] -> addLoraW13 -> [activation] -> [w2] -> addLoraW2 -> [combine]
 * </pre>
 *
 * To the wrapper the rows of the sort are a batch of tokens with one expert each. The products
 * write what they computed as it is: rounded to the weights' dtype, the bias in it. The w13 delta
 * is added before the activation; the w2 delta before the weights, which the combine multiplies
 * both by in f32. With router weights on the input the rows carry them, so the w13 delta does too.
 *
 * <p>On a second stream ({@link LoraMode}) the wrapper writes a delta of its own into zeros while
 * the product runs; four events order the two streams, two a product. It is rounded once, then
 * added in f32.
 *
 * <p>Forwards without adapters go the same way without the wrapper: a row without an adapter has
 * the same bits whatever the rows around it have. Widths must be multiples of {@link
 * RowKernels#VECTOR}. Safe for several threads.
 *
 * @since 0.2.0
 */
public final class ComposedLora implements AutoCloseable {
  /**
   * Up to this many pairs a product leaves much of the card waiting; with more, zeros and deltas
   * that are written and read once more cost what the second stream gains.
   */
  private static final int FEW_PAIRS = 256;

  /** A backend's products over the rows of a sort, for one forward. */
  public interface Products {
    /**
     * Enqueues a product as it is, with bias, without LoRA or activation.
     *
     * @param first w13, gate rows first, or w2
     * @param x {@code [P, contraction]}, rows in the order of the sort
     * @param y {@code [P, columns]}, overwritten; rows of nobody may be left alone
     */
    void product(boolean first, Tensor x, Tensor y);

    /** Enqueues the weighted sum over k of the rows that w2 left. */
    void combine();
  }

  /**
   * Where what only composed forwards need lies, as byte offsets in a workspace.
   *
   * @param wide 16-bit {@code [P, 2I]}, or {@code [P, I]} without gate
   * @param delta 16-bit, room for the larger of the two deltas
   * @param experts int32 {@code [P]}
   * @param slots int32 {@code [P]}
   * @param weights F32 {@code [P]}
   * @since 0.2.0
   */
  public record Scratch(long wide, long delta, long experts, long slots, long weights) {
    private static final int ELEMENT = 2;

    /**
     * Reserves it.
     *
     * @param layout where it goes
     * @param pairs {@code P}; 0 = the forwards are not composed
     * @param hidden width of the experts' input and output
     * @param width of the w13 product
     * @param deltaRows {@link ComposedLora#mostBeside}
     * @return the offsets
     */
    public static Scratch reserve(
        WorkspaceLayout layout, long pairs, int hidden, long width, int deltaRows) {
      return new Scratch(
          layout.reserve(ELEMENT * pairs * width),
          layout.reserve(pairs == 0 ? 0 : (long) ELEMENT * deltaRows * Math.max(width, hidden)),
          layout.reserve(Integer.BYTES * pairs),
          layout.reserve(Integer.BYTES * pairs),
          layout.reserve(Float.BYTES * pairs));
    }
  }

  /**
   * One forward, after its sort.
   *
   * @param batch the pairs, without LoRA
   * @param naive whether row r is pair r, unsorted
   * @param lists what the sort left
   * @param hidden address of the experts' input {@code [T, H]}, in the weights' dtype
   * @param ids offset of the ids that were made of a BATCHED call
   * @param sorted offset of 16-bit {@code [P, H]}, overwritten
   * @param middle offset of 16-bit {@code [P, I]}, overwritten
   * @param y offset of 16-bit {@code [P, H]}, where {@link Products#combine} reads
   * @param scratch the rest
   * @since 0.2.0
   */
  public record Rows(
      PairBatch batch,
      boolean naive,
      TileLists lists,
      long hidden,
      long ids,
      long sorted,
      long middle,
      long y,
      Scratch scratch) {}

  private final CudaDevice device;
  private final MoeConfig config;
  private final PaddedSizes sizes;
  private final RowKernels rows;
  private final LoraExperts owner;
  private final int experts;
  private final LoraMode mode;
  private final CudaEvent[] events = new CudaEvent[4];

  /**
   * Loads the kernels.
   *
   * @param device where to run
   * @param config of the layer; widths are multiples of {@link RowKernels#VECTOR}
   * @param experts local
   * @param owner whose LoRA methods are called
   * @param mode a composable one
   */
  public ComposedLora(
      CudaDevice device, MoeConfig config, int experts, LoraExperts owner, LoraMode mode) {
    this.device = device;
    this.config = config;
    this.sizes = PaddedSizes.of(config);
    this.experts = experts;
    this.owner = owner;
    this.rows = new RowKernels(device, config.weightDtype());
    this.mode = mode;
    for (int i = 0; i < events.length; i++) {
      try {
        events[i] = device.newEvent(false);
      } catch (RuntimeException | Error e) {
        for (int made = 0; made < i; made++) {
          events[made].close(); // nobody else could
        }
        throw e;
      }
    }
  }

  /** Whether deltas of a forward with that many pairs are computed beside the products. */
  private static boolean beside(LoraMode mode, int pairs) {
    return mode == LoraMode.COMPOSABLE_TWO_STREAMS
        || (mode == LoraMode.COMPOSABLE && pairs <= FEW_PAIRS);
  }

  /**
   * {@return rows of deltas of their own that forwards of up to so many pairs need room for}
   *
   * @param mode a composable one
   * @param pairs at most
   */
  public static int mostBeside(LoraMode mode, int pairs) {
    return mode == LoraMode.COMPOSABLE
        ? Math.min(pairs, FEW_PAIRS)
        : beside(mode, pairs) ? pairs : 0;
  }

  /**
   * Enqueues everything after the sort. One call at a time enqueues, since calls share the events.
   *
   * @param r the forward
   * @param products of the backend
   * @param routing of the call; null for BATCHED
   * @param context the call's; null = no adapters
   * @param workspace of the call
   */
  public synchronized void run(
      Rows r,
      Products products,
      @Nullable ExpertRouting routing,
      @Nullable MoeLoraContext context,
      Workspace workspace) {
    DType type = config.weightDtype();
    DeviceStream stream = r.batch().stream();
    int pairs = r.batch().pairs();
    int tokens = r.batch().tokens();
    int hidden = sizes.hidden();
    int inter = sizes.intermediate();
    Activation activation = config.activation();
    int width = activation.isGated() ? 2 * inter : inter;
    long base = ((DeviceMemory) workspace.memory()).address();
    Scratch at = r.scratch();
    Tensor x = workspace.tensor(r.sorted(), type, pairs, hidden);
    Tensor middle = workspace.tensor(r.middle(), type, pairs, inter);
    Tensor y13 = workspace.tensor(at.wide(), type, pairs, width);
    Tensor y2 = workspace.tensor(r.y(), type, pairs, hidden);
    Tensor expertOfRow = workspace.tensor(at.experts(), DType.I32, pairs, 1);
    Tensor slotOfRow = workspace.tensor(at.slots(), DType.I32, pairs);
    Tensor weightOfRow = workspace.tensor(at.weights(), DType.F32, pairs, 1);
    // The rows of a BATCHED call are tokens with one expert each, -1 past an expert's count.
    ExpertRouting given =
        routing == null
            ? new ExpertRouting(workspace.tensor(r.ids(), DType.I32, tokens, 1), weightOfRow, null)
            : routing;
    rows.expand(
        Tensor.of(
            type,
            new DeviceMemory(device.info().id(), r.hidden(), type.byteSize((long) tokens * hidden)),
            tokens,
            hidden),
        new RowKernels.Order(
            r.naive() ? 0 : base + r.lists().pairs(), r.naive() ? 0 : base + r.lists().rowCount()),
        given,
        config.routerWeightOnInput() && routing != null,
        context == null ? null : context.tokenLoraMapping(),
        experts,
        x,
        new RowKernels.Owners(expertOfRow, slotOfRow),
        stream);
    // No weights go on here: the combine has those of the pairs.
    ExpertRouting byRow = new ExpertRouting(expertOfRow, weightOfRow, null);
    MoeLoraContext rowContext = context == null ? null : context.withTokenLoraMapping(slotOfRow);
    boolean two = rowContext != null && beside(mode, pairs);
    CudaStream second = two ? device.beside(stream) : null;

    Tensor delta13 = null;
    if (rowContext != null && second != null) {
      delta13 = workspace.tensor(at.delta(), type, pairs, width);
      fork(0, delta13, stream, second);
      w13(rowContext, delta13, x, byRow, second);
    }
    products.product(true, x, y13);
    if (second != null) {
      join(1, stream, second);
    } else if (rowContext != null) {
      w13(rowContext, y13, x, byRow, stream);
    }
    rows.activate(activation, y13, delta13, expertOfRow, middle, stream);
    Tensor delta2 = null;
    if (rowContext != null && second != null) {
      delta2 = workspace.tensor(at.delta(), type, pairs, hidden);
      fork(2, delta2, stream, second);
      w2(rowContext, delta2, middle, byRow, second);
    }
    products.product(false, middle, y2);
    if (second != null && delta2 != null) {
      join(3, stream, second);
      rows.add(y2, delta2, expertOfRow, stream);
    } else if (rowContext != null) {
      w2(rowContext, y2, middle, byRow, stream);
    }
    products.combine();
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
    events[event].makeWait(stream);
  }

  @Override
  public void close() {
    for (CudaEvent e : events) {
      e.close();
    }
  }
}
