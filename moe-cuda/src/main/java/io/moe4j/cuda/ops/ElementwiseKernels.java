package io.moe4j.cuda.ops;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.Kernel;
import org.jspecify.annotations.Nullable;

/**
 * Activation, cast, weighted combine, dispatch and the block's last sum, for F32, BF16 and F16; see
 * {@code elementwise.cu}. All tensors contiguous. Safe for several threads.
 */
public final class ElementwiseKernels {
  private static final int THREADS = 256;
  private static final int CAST_BLOCKS = 4096;
  private static final int COMBINE_COLUMNS = 4 * THREADS;
  private static final int PACK = 4;
  private static final int ALIGNMENT = 16;

  private final Kernel[][] activation;
  private final Kernel[][] cast;
  private final Kernel[][] combine;
  private final Kernel[][] finish;
  private final Kernel[] dispatch;

  /**
   * Loads the kernels.
   *
   * @param device where to run
   */
  public ElementwiseKernels(CudaDevice device) {
    activation = SharedKernels.table(device, "activation", "in", "out");
    cast = SharedKernels.table(device, "cast", "in", "out");
    combine = SharedKernels.table(device, "combine", "in", "out");
    finish = SharedKernels.table(device, "finish", "in", "out");
    dispatch = SharedKernels.table(device, "dispatch", "x");
  }

  private static Kernel pick(Kernel[][] table, Tensor in, Tensor out) {
    return table[SharedKernels.index("input", in.dtype())][
        SharedKernels.index("output", out.dtype())];
  }

  /**
   * {@return the kernels' number of a function, as in {@code activation.cuh}}
   *
   * @param kind the function
   */
  public static int code(Activation.Kind kind) {
    return switch (kind) {
      case SILU -> 0;
      case GELU -> 1;
      case GELU_TANH -> 2;
      case SWIGLUOAI -> 3;
      case SWIGLU_STEP -> 4;
      case SILU_NO_MUL -> 5;
      case GELU_NO_MUL -> 6;
      case GELU_TANH_NO_MUL -> 7;
      case RELU2_NO_MUL -> 8;
    };
  }

  /**
   * The activation of a stacked w13 product.
   *
   * @param activation the function
   * @param in {@code [rows, 2I]}, or {@code [rows, I]} without gate
   * @param layout where gate and up columns stand
   * @param out {@code [rows, I]}, overwritten
   * @param expertNumTokens int32 {@code [E]} for BATCHED rows {@code [E * maxTokens, ..]}: rows
   *     past a count are left alone; null = all rows
   * @param stream where to run
   */
  public void activation(
      Activation activation,
      Tensor in,
      GateUpLayout layout,
      Tensor out,
      @Nullable Tensor expertNumTokens,
      DeviceStream stream) {
    int rows = SharedKernels.size("rows", out.size(0));
    int width = SharedKernels.size("I", out.size(1));
    boolean gated = activation.isGated();
    if (in.size(0) != rows || in.size(1) != (gated ? 2L : 1L) * width) {
      throw new IllegalArgumentException(
          "in is "
              + in
              + " and out "
              + out
              + " for "
              + activation.kind()
              + "; need [rows, "
              + (gated ? "2I" : "I")
              + "] and [rows, I]");
    }
    long element = in.dtype().byteSize(1);
    boolean halves = layout == GateUpLayout.HALVES;
    long up = in.deviceAddress() + (gated ? element * (halves ? width : 1) : 0);
    launch(
        pick(this.activation, in, out),
        activation,
        gated ? in.deviceAddress() : 0,
        up,
        out,
        in.size(1),
        gated && !halves ? 2 : 1,
        expertNumTokens,
        stream);
  }

  /**
   * The activation of gate and up in matrices of their own.
   *
   * @param activation the function
   * @param gate {@code [rows, I]}, or null for a function without gate
   * @param up {@code [rows, I]}
   * @param out {@code [rows, I]}, overwritten
   * @param stream where to run
   */
  public void activation(
      Activation activation, @Nullable Tensor gate, Tensor up, Tensor out, DeviceStream stream) {
    launch(
        pick(this.activation, up, out),
        activation,
        gate == null ? 0 : gate.deviceAddress(),
        up.deviceAddress(),
        out,
        up.size(1),
        1,
        null,
        stream);
  }

  private static void launch(
      Kernel kernel,
      Activation a,
      long gate,
      long up,
      Tensor out,
      long rowStride,
      int columnStride,
      @Nullable Tensor counts,
      DeviceStream stream) {
    int rows = SharedKernels.size("rows", out.size(0));
    kernel
        .begin()
        .pointer(gate)
        .pointer(up)
        .pointer(out)
        .i32(SharedKernels.size("I", out.size(1)))
        .i64(rowStride)
        .i32(columnStride)
        .i32(code(a.kind()))
        .f32(a.alpha())
        .f32(a.beta())
        .f32(a.limit())
        .pointer(counts)
        .i32(counts == null ? 1 : (int) (rows / counts.size(0)))
        .launch(stream, rows);
  }

  /**
   * Converts element by element, rounding to nearest even.
   *
   * @param in any shape
   * @param out as many elements, overwritten
   * @param stream where to run
   */
  public void cast(Tensor in, Tensor out, DeviceStream stream) {
    long n = in.elementCount();
    if (out.elementCount() != n) {
      throw new IllegalArgumentException("cannot cast " + in + " to " + out);
    }
    pick(cast, in, out)
        .begin()
        .pointer(in)
        .pointer(out)
        .i64(n)
        .launch(stream, (int) Math.min(CAST_BLOCKS, Math.ceilDiv(n, THREADS)));
  }

  /**
   * The weighted sum over k of what the experts wrote, in f32.
   *
   * @param y rows of {@code H} elements
   * @param routing {@code [T, K]}: pairs without a local expert add nothing
   * @param weighted whether the topk weights are applied here
   * @param rowOfPair address of int32 {@code [P]}, the row of each pair in {@code y}; 0 = the
   *     pair's number is its row
   * @param experts local experts
   * @param out {@code [T, H]}, overwritten
   * @param stream where to run
   */
  public void combine(
      Tensor y,
      ExpertRouting routing,
      boolean weighted,
      long rowOfPair,
      int experts,
      Tensor out,
      DeviceStream stream) {
    combine(y, routing, weighted, rowOfPair, 0, experts, 0, out, stream);
  }

  /** With {@code off}: {@code y} is {@code [experts, maxRows, H]}. */
  void combine(
      Tensor y,
      ExpertRouting routing,
      boolean weighted,
      long rowOfPair,
      long off,
      int experts,
      int maxRows,
      Tensor out,
      DeviceStream stream) {
    int width = SharedKernels.size("H", out.size(1));
    boolean wide = width % PACK == 0 && y.deviceAddress() % ALIGNMENT == 0;
    pick(combine, y, out)
        .begin()
        .pointer(y)
        .pointer(routing.topkIds())
        .pointer(routing.expertMap())
        .pointer(rowOfPair)
        .pointer(off)
        .pointer(weighted ? routing.topkWeights() : null)
        .pointer(out)
        .i32(SharedKernels.size("K", routing.topkIds().size(1)))
        .i32(width)
        .i32(globalExperts(routing, experts))
        .i32(experts)
        .i32(maxRows)
        .i32(wide ? 1 : 0)
        .launch(
            stream, SharedKernels.size("T", out.size(0)), Math.ceilDiv(width, COMBINE_COLUMNS), 1);
  }

  private static int globalExperts(ExpertRouting routing, int experts) {
    Tensor map = routing.expertMap();
    return map == null ? experts : SharedKernels.size("E", map.size(0));
  }

  /** See {@link io.moe4j.api.spi.BlockOps#dispatch}; places come from a {@link PairSort}. */
  void dispatch(
      Tensor hidden,
      ExpertRouting routing,
      boolean weighted,
      @Nullable Tensor slots,
      long rowOfPair,
      long off,
      Tensor batched,
      Tensor expertNumTokens,
      @Nullable Tensor batchedSlots,
      DeviceStream stream) {
    int experts = SharedKernels.size("E", batched.size(0));
    dispatch[SharedKernels.index("hidden", hidden.dtype())]
        .begin()
        .pointer(hidden)
        .pointer(routing.topkIds())
        .pointer(routing.expertMap())
        .pointer(rowOfPair)
        .pointer(off)
        .pointer(weighted ? routing.topkWeights() : null)
        .pointer(slots)
        .pointer(batched)
        .pointer(expertNumTokens)
        .pointer(batchedSlots)
        .i32(SharedKernels.size("K", routing.topkIds().size(1)))
        .i32(SharedKernels.size("H", hidden.size(1)))
        .i32(globalExperts(routing, experts))
        .i32(experts)
        .i32(SharedKernels.size("maxTokens", batched.size(1)))
        .launch(stream, SharedKernels.size("P", routing.topkIds().elementCount()));
  }

  /**
   * The last sum of a block: {@code out = routed + sigmoid(gate) * shared}.
   *
   * @param routed {@code [T, H]}; may be {@code out} itself
   * @param shared F32 {@code [T, H]}, or null
   * @param gate F32 {@code [T]} logits, or null for a factor of 1
   * @param out {@code [T, H]}, overwritten
   * @param stream where to run
   */
  public void finish(
      Tensor routed,
      @Nullable Tensor shared,
      @Nullable Tensor gate,
      Tensor out,
      DeviceStream stream) {
    pick(finish, routed, out)
        .begin()
        .pointer(routed)
        .pointer(shared)
        .pointer(gate)
        .pointer(out)
        .i32(SharedKernels.size("H", out.size(1)))
        .launch(stream, SharedKernels.size("T", out.size(0)));
  }
}
