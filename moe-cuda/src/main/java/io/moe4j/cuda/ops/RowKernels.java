package io.moe4j.cuda.ops;

import io.moe4j.api.config.Activation;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.Kernel;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * What experts need around a punica wrapper, for BF16 and F16: rows in the order of a sort with the
 * expert and adapter of each, the activation of a stacked w13 product, and the sum with deltas; see
 * {@code rows.cu}. All tensors contiguous, 16-byte aligned, rows of a multiple of {@value #VECTOR}
 * elements. Safe for several threads.
 */
public final class RowKernels {
  /** Elements that are read and written at once. */
  public static final int VECTOR = 8;

  private static final int THREADS = 256;
  private static final int BLOCKS = 8192;

  private final DType type;
  private final Kernel expand;
  private final Kernel activate;
  private final Kernel add;

  /**
   * Loads the kernels.
   *
   * @param device where to run
   * @param type BF16 or F16
   */
  public RowKernels(CudaDevice device, DType type) {
    this.type = type;
    Map<String, String> constants = Map.of("x", SharedKernels.name(type));
    expand = SharedKernels.load(device, "expand_rows", constants);
    activate = SharedKernels.load(device, "activate_rows", constants);
    add = SharedKernels.load(device, "add_rows", constants);
  }

  /**
   * Where pairs stand in the order of a sort.
   *
   * @param pairOfRow address of int32 {@code [P]}; 0 = row r is pair r
   * @param rowCount address of the int32 number of rows in use; 0 = all
   */
  public record Order(long pairOfRow, long rowCount) {}

  /**
   * Whose a row is.
   *
   * @param expert int32 {@code [P, 1]}: local expert, -1 = nobody's
   * @param slot int32 {@code [P]}: the adapter's slot, -1 = none
   */
  public record Owners(Tensor expert, Tensor slot) {}

  /**
   * Copies each pair's token to the pair's row.
   *
   * @param x {@code [T, H]}
   * @param order of the rows
   * @param routing {@code [T, K]}
   * @param weighted whether rows are multiplied by their pair's weight
   * @param tokenLoraMapping int32 {@code [T]}; null = no row has an adapter
   * @param experts local experts
   * @param out {@code [P, H]}; nobody's rows are left alone
   * @param owners overwritten
   * @param stream where to run
   */
  public void expand(
      Tensor x,
      Order order,
      ExpertRouting routing,
      boolean weighted,
      @Nullable Tensor tokenLoraMapping,
      int experts,
      Tensor out,
      Owners owners,
      DeviceStream stream) {
    require("x", x);
    require("out", out);
    Tensor map = routing.expertMap();
    int pairs = SharedKernels.size("P", out.size(0));
    if (routing.topkIds().elementCount() != pairs || out.size(1) != x.size(1)) {
      throw new IllegalArgumentException(
          "out is " + out + " for topkIds " + routing.topkIds() + " and x " + x + "; need [P, H]");
    }
    if (pairs == 0) {
      return;
    }
    expand
        .begin()
        .pointer(x)
        .pointer(order.pairOfRow())
        .pointer(order.rowCount())
        .pointer(routing.topkIds())
        .pointer(map)
        .pointer(tokenLoraMapping)
        .pointer(weighted ? routing.topkWeights() : null)
        .pointer(out)
        .pointer(owners.expert())
        .pointer(owners.slot())
        .i32(SharedKernels.size("K", routing.topkIds().size(1)))
        .i32(SharedKernels.size("H", x.size(1)))
        .i32(map == null ? experts : SharedKernels.size("E", map.size(0)))
        .i32(experts)
        .launch(stream, pairs);
  }

  /**
   * The activation of a stacked w13 product, gate columns first, and of a delta that has not been
   * added yet.
   *
   * @param activation the function
   * @param y {@code [P, 2I]}, or {@code [P, I]} without gate
   * @param delta of the same shape, or null
   * @param expertOfRow int32, {@code P} of them; rows of -1 are left alone
   * @param out {@code [P, I]}
   * @param stream where to run
   */
  public void activate(
      Activation activation,
      Tensor y,
      @Nullable Tensor delta,
      Tensor expertOfRow,
      Tensor out,
      DeviceStream stream) {
    require("y", y);
    require("out", out);
    int width = SharedKernels.size("I", out.size(1));
    int pairs = SharedKernels.size("P", out.size(0));
    if (y.size(0) != pairs || y.size(1) != (activation.isGated() ? 2L : 1L) * width) {
      throw new IllegalArgumentException(
          "y is "
              + y
              + " and out "
              + out
              + " for "
              + activation.kind()
              + "; need [P, "
              + (activation.isGated() ? "2I" : "I")
              + "] and [P, I]");
    }
    if (pairs == 0) {
      return;
    }
    activate
        .begin()
        .pointer(y)
        .pointer(delta)
        .pointer(expertOfRow)
        .pointer(out)
        .i32(pairs)
        .i32(width)
        .i32(activation.isGated() ? 1 : 0)
        .i32(ElementwiseKernels.code(activation.kind()))
        .f32(activation.alpha())
        .f32(activation.beta())
        .f32(activation.limit())
        .launch(stream, blocks((long) pairs * width));
  }

  /**
   * Adds rows, in f32, one rounding.
   *
   * @param y {@code [P, H]}, changed
   * @param delta of the same shape
   * @param expertOfRow int32, {@code P} of them; rows of -1 are left alone
   * @param stream where to run
   */
  public void add(Tensor y, Tensor delta, Tensor expertOfRow, DeviceStream stream) {
    require("y", y);
    require("delta", delta);
    if (y.size(0) == 0) {
      return;
    }
    add.begin()
        .pointer(y)
        .pointer(delta)
        .pointer(expertOfRow)
        .i32(SharedKernels.size("P", y.size(0)))
        .i32(SharedKernels.size("H", y.size(1)))
        .launch(stream, blocks(y.elementCount()));
  }

  private static int blocks(long elements) {
    return (int) Math.min(BLOCKS, Math.ceilDiv(elements, (long) THREADS * VECTOR));
  }

  private void require(String name, Tensor t) {
    if (t.dtype() != type || t.dims() != 2 || t.size(1) % VECTOR != 0 || !t.isContiguous()) {
      throw new IllegalArgumentException(
          name + " is " + t + ", must be contiguous " + type + " rows of a multiple of " + VECTOR);
    }
  }
}
