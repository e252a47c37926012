package io.moe4j.lora;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * The formulas of the LoRA package in double, pair by pair, and with each element the bound that
 * f32 arithmetic and one rounding to y's dtype must keep.
 *
 * <p>Bound: a sum of n products in f32 is off by at most n u S, with u = 2^-24 and S the sum of
 * magnitudes, to first order; here n = in + rank + 4 (the rest for the weight and the addition),
 * and twice that for the higher orders. Rounding to the dtype adds half a unit in the last place.
 */
public final class DeltaReference {
  private static final double U32 = 0x1p-24;

  public final double[] expected;
  public final double[] bound;
  public final boolean[] written;
  private final DType dtype;
  // By tensor and row or expert; reading element by element is slow.
  private final Map<List<Object>, double[]> rows = new HashMap<>();

  public DeltaReference(double[] old, DType dtype) {
    this.expected = old;
    this.bound = new double[old.length];
    this.written = new boolean[old.length];
    this.dtype = dtype;
  }

  /** What a call is about. Never compared, so arrays do no harm. */
  @SuppressWarnings("ArrayRecordComponent")
  public record Call(
      List<@Nullable LoraLayer> slots,
      int[] mapping,
      int[][] ids,
      int @Nullable [] expertMap,
      int numExperts,
      double @Nullable [][] weights,
      boolean add) {}

  public void w13(Call call, Tensor x, boolean gated, GateUpLayout layout, int width) {
    for (int t = 0; t < call.ids.length; t++) {
      for (int k = 0; k < call.ids[t].length; k++) {
        int pair = t * call.ids[t].length + k;
        int row = x.size(0) == call.ids.length ? t : pair;
        int stride = gated ? 2 * width : width;
        if (gated) {
          for (boolean up : new boolean[] {false, true}) {
            LoraTarget target = up ? LoraTarget.UP : LoraTarget.GATE;
            add(call, t, k, target, x, row, o -> pair * stride + layout.index(up, o, width));
          }
        } else {
          add(call, t, k, LoraTarget.UP, x, row, o -> pair * stride + o);
        }
      }
    }
  }

  public void w2(Call call, Tensor x, int width) {
    for (int t = 0; t < call.ids.length; t++) {
      for (int k = 0; k < call.ids[t].length; k++) {
        int pair = t * call.ids[t].length + k;
        add(call, t, k, LoraTarget.DOWN, x, pair, o -> pair * width + o);
      }
    }
  }

  public void linear(Call call, LoraTarget target, Tensor x, int width) {
    for (int t = 0; t < call.ids.length; t++) {
      int row = t;
      add(call, t, 0, target, x, row, o -> row * width + o);
    }
  }

  interface Column {
    int at(int o);
  }

  private void add(Call call, int t, int k, LoraTarget target, Tensor x, int row, Column column) {
    int slot = call.mapping[t];
    LoraLayer layer = slot < 0 || slot >= call.slots.size() ? null : call.slots.get(slot);
    LoraFactors f = layer == null ? null : layer.get(target);
    int expert = call.ids[t][k];
    if (call.expertMap != null) {
      expert = expert < 0 || expert >= call.expertMap.length ? -1 : call.expertMap[expert];
    }
    if (f == null || expert < 0 || expert >= call.numExperts) {
      return;
    }
    double weight = call.weights == null ? 1 : call.weights[t][k];
    int rank = f.rank();
    int in = f.inFeatures();
    double[] h = new double[rank];
    double[] magnitude = new double[rank];
    double[] xRow = rows.computeIfAbsent(List.of(x, row), key -> x.select(0, row).toDoubles());
    int e = expert;
    double[] aRows = rows.computeIfAbsent(List.of(f.a(), e), key -> f.a(e).toDoubles());
    double[] bRows = rows.computeIfAbsent(List.of(f.b(), e), key -> f.b(e).toDoubles());
    for (int j = 0; j < rank; j++) {
      for (int i = 0; i < in; i++) {
        double product = aRows[j * in + i] * xRow[i];
        h[j] += product;
        magnitude[j] += Math.abs(product);
      }
    }
    for (int o = 0; o < f.outFeatures(); o++) {
      double delta = 0;
      double size = 0;
      for (int j = 0; j < rank; j++) {
        delta += weight * bRows[o * rank + j] * h[j];
        size += Math.abs(weight * bRows[o * rank + j]) * magnitude[j];
      }
      int at = column.at(o);
      double old = call.add ? expected[at] : 0;
      expected[at] = old + delta;
      written[at] = true;
      bound[at] = 2 * (in + rank + 4) * U32 * (size + Math.abs(old)) + halfUnit(expected[at]);
    }
  }

  private double halfUnit(double value) {
    return switch (dtype) {
      case BF16 -> Math.max(Math.abs(value) * 0x1p-8, 0x1p-126);
      case F16 -> Math.max(Math.abs(value) * 0x1p-11, 0x1p-25);
      default -> Math.abs(value) * U32;
    };
  }
}
