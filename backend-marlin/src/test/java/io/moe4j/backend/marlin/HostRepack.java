package io.moe4j.backend.marlin;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.jspecify.annotations.Nullable;

/** What repack.cu makes of a plan, and what the kernels' lanes read from that, on the host. */
final class HostRepack {
  private final PackedLayout layout;
  private final int[] words;
  private final float[] channel;
  private final short[] ratio;
  private final short[] zero;

  HostRepack(Weight weight, RepackPlan plan) {
    layout = plan.layout();
    words = new int[Math.toIntExact(layout.codeBytes() / 4)];
    channel = new float[Math.toIntExact(layout.channelBytes() / 4)];
    int ratios = layout.groupsAChunk() == 0 ? 0 : Math.toIntExact(layout.ratioBytes() / 2);
    ratio = new short[ratios];
    zero = new short[layout.zeroPoints() ? ratios : 0];
    packCodes(weight, plan);
    packScales(weight, plan);
  }

  private static MemorySegment raw(Tensor t) {
    return ((HostMemory) t.memory()).segment().asSlice(t.byteOffset());
  }

  private static int code(MemorySegment data, RepackPlan.Codes c, long row, long column) {
    int per = c.wordBytes() * 8 / c.bits();
    long at =
        c.alongColumns()
            ? column / per * c.columnStride() + row * c.rowStride()
            : column * c.columnStride() + row / per * c.rowStride();
    int field = (int) ((c.alongColumns() ? column : row) % per);
    if (c.awq()) {
      field = field / 2 + field % 2 * 4;
    }
    int word =
        c.wordBytes() == 1
            ? data.get(ValueLayout.JAVA_BYTE, at) & 0xFF
            : data.get(ValueLayout.JAVA_INT_UNALIGNED, at * 4);
    return (word >>> field * c.bits() & (1 << c.bits()) - 1) ^ c.flip();
  }

  private void packCodes(Weight weight, RepackPlan plan) {
    MemorySegment data = raw(weight.values());
    int bits = layout.code().bits();
    int perTile = bits == 4 ? 128 : 256;
    int @Nullable [] permutation = plan.permutation();
    for (int at = 0; at < words.length; at++) {
      int in = at % perTile;
      long chunk = at / perTile % layout.chunks();
      long tile = at / perTile / layout.chunks();
      int part = in % 128;
      int lane = part / 4;
      int step = bits == 4 ? part % 4 : in / 128 * 2 + part % 4 / 2;
      for (int f = 0; f < 32 / bits; f++) {
        int register = bits == 4 ? f % 4 : part % 2 * 2 + f % 2;
        int high = bits == 4 ? f / 4 : f / 2;
        long n = tile * 16 + lane / 4 + register % 2 * 8;
        long k = chunk * 64 + step * 16 + 2 * (lane % 4) + high + register / 2 * 8;
        long from = k >= layout.in() ? -1 : permutation == null ? k : permutation[(int) k];
        if (n < layout.out() && from >= 0) {
          words[at] |= code(data, plan.codes(), n, from) << f * bits;
        }
      }
    }
  }

  private void packScales(Weight weight, RepackPlan plan) {
    RepackPlan.Scales s = plan.scales();
    Tensor scales = weight.scales().orElseThrow();
    double unit = 1;
    if (weight.globalScale().isPresent()) {
      double global = weight.globalScale().get().toDoubles()[0];
      unit = weight.dividedByGlobal() ? 1 / global : global;
    }
    for (int n = 0; n < layout.out(); n++) {
      long base = n / s.rowsAScale() * s.rowStride();
      if (layout.groupsAChunk() == 0) {
        channel[n] = (float) (scale(scales, base) * unit);
        continue;
      }
      double most = 0;
      long given = Math.ceilDiv(plan.inputs(), s.group());
      for (int g = 0; g < given; g++) {
        most = Math.max(most, Math.abs(scale(scales, base + g * s.groupStride())));
      }
      double power = given == 1 ? scale(scales, base) : Math.scalb(1.0, Math.getExponent(most) + 1);
      channel[n] = (float) (power * unit);
      long columns =
          layout.groupsAChunk() == 1 ? 64L << layout.groupShift() : 64 / layout.groupsAChunk();
      for (int g = 0; g < layout.groups(); g++) {
        long k = g * columns - plan.firstInput();
        boolean some = k >= 0 && k < plan.inputs();
        long from = k / s.group();
        int at = Math.toIntExact(layout.ratioIndex(n, g));
        double ratio = some ? scale(scales, base + from * s.groupStride()) / power : 0;
        this.ratio[at] = Float.floatToFloat16((float) ratio);
        if (layout.zeroPoints()) {
          zero[at] =
              (short)
                  (plan.zeros() == null
                      ? layout.fixedZeroPoint()
                      : some
                          ? code(raw(weight.zeroPoints().orElseThrow()), plan.zeros(), n, from)
                              + plan.zeros().offset()
                          : 0);
        }
      }
    }
  }

  private static double scale(Tensor t, long element) {
    return Tensor.of(
            t.dtype(), raw(t).asSlice(element * t.dtype().byteSize(1), t.dtype().byteSize(1)), 1)
        .toDoubles()[0];
  }

  /** The value of output n and the kernels' input k, as a lane finds it. */
  double value(int n, int k) {
    int bits = layout.code().bits();
    int row = n % 16;
    int column = k % 16;
    int lane = row % 8 * 4 + column % 8 / 2;
    int register = row / 8 + column / 8 * 2;
    int step = k % 64 / 16;
    long tile = n / 16 * layout.chunks() + k / 64;
    int code;
    if (bits == 4) {
      int word = words[Math.toIntExact(tile * 128 + lane * 4 + step)];
      code = word >>> 4 * register + 16 * (column % 2) & 15;
    } else {
      int word =
          words[
              Math.toIntExact(
                  tile * 256 + step / 2 * 128 + lane * 4 + step % 2 * 2 + register / 2)];
      code = word >>> 8 * (register % 2) + 16 * (column % 2) & 255;
    }
    double scale = channel[n];
    double zeroPoint = layout.code() == PackedLayout.Code.U8 ? 128 : 8;
    if (layout.groupsAChunk() > 0) {
      long group =
          layout.groupsAChunk() == 1
              ? k / 64 >> layout.groupShift()
              : k / (64 / layout.groupsAChunk());
      int at = Math.toIntExact(layout.ratioIndex(n, group));
      scale *= Float.float16ToFloat(ratio[at]);
      if (layout.zeroPoints()) {
        zeroPoint = zero[at];
      }
    }
    return switch (layout.code()) {
      case U4, U8 -> (code - zeroPoint) * scale;
      case E4M3 -> number(DType.F8_E4M3, code) * scale;
      case E2M1 -> number(DType.F4, code) * scale;
    };
  }

  private static double number(DType type, int code) {
    byte[] bytes = {(byte) code};
    return Tensor.of(type, MemorySegment.ofArray(bytes), type == DType.F4 ? 2 : 1).toDoubles()[0];
  }
}
