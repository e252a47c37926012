package io.moe4j.backend.cpu;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.config.QuantScheme.ScaleFormat;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import java.util.Random;

/** Random quantised weights: any scheme, packing and strides that a weight can have. */
final class CodedSamples {
  private static final List<Packing> WORDS =
      List.of(Packing.WORDS_ALONG_IN, Packing.WORDS_ALONG_OUT, Packing.WORDS_ALONG_OUT_AWQ);

  private final Random rnd;
  private final Arena arena;

  CodedSamples(Random rnd, Arena arena) {
    this.rnd = rnd;
    this.arena = arena;
  }

  /** {@return any scheme} */
  QuantScheme scheme() {
    Format format = pick(Format.INT4, Format.INT8, Format.FP8, Format.FP4);
    QuantScheme.Builder b = QuantScheme.builder(format);
    int group = pick(7, 8, 16, 16, 24, 32, 32, 64, 128, QuantScheme.ALL);
    boolean integer = format == Format.INT4 || format == Format.INT8;
    switch (rnd.nextInt(4)) {
      case 0 -> b.block(pick(3, 16, 64, 128), pick(7, 32, 128));
      case 1 -> b.perTensor();
      default -> {
        b.group(group).symmetric(!integer || rnd.nextBoolean());
        b.actOrder(group != QuantScheme.ALL && rnd.nextInt(3) == 0);
      }
    }
    return b.scaleFormat(
            pick(ScaleFormat.FLOAT, ScaleFormat.FLOAT, ScaleFormat.E8M0, ScaleFormat.E4M3))
        .build();
  }

  /** {@return a weight whose elements are about {@code 1 / sqrt(in)}} */
  Weight weight(QuantScheme scheme, int out, int in) {
    Packing packing = packing(scheme);
    Tensor codes =
        packing == Packing.DENSE ? dense(scheme, out, in) : words(packing, scheme, out, in);
    Weight.Builder b = Weight.builder("coded", scheme, out, in, codes, packing);
    int groups = Math.toIntExact(scheme.scaleColumnCount(in));
    double deviation =
        switch (scheme.format()) {
          case INT4 -> 5;
          case INT8 -> 80;
          case FP8 -> 100;
          default -> 3;
        };
    double unit = 1 / (Math.sqrt(in) * deviation);
    if (scheme.scaleFormat() == ScaleFormat.E4M3) {
      boolean divided = rnd.nextBoolean();
      double global = unit * (0.5 + rnd.nextDouble());
      Tensor t = Tensor.of(DType.F32, arena.allocate(4), 1);
      t.set(divided ? 1 / global : global, 0);
      b.globalScale(t, divided);
    }
    b.scales(scales(scheme, unit, Math.toIntExact(scheme.scaleRowCount(out)), groups));
    if (!scheme.symmetric()) {
      Packing zeros =
          scheme.bits() == 4
              ? pick(Packing.DENSE, WORDS.get(0), WORDS.get(1), WORDS.get(2))
              : pick(Packing.DENSE, WORDS.get(0), WORDS.get(1));
      Tensor z =
          zeros == Packing.DENSE
              ? bytes(
                  pick(DType.I8, DType.U8), 0, Math.min(127, (1 << scheme.bits()) - 1), out, groups)
              : words(zeros, scheme, out, groups);
      b.zeroPoints(z, zeros, rnd.nextInt(2));
    }
    if (scheme.actOrder()) {
      Tensor index = Tensor.of(DType.I32, arena.allocate(4L * in), in);
      for (int i = 0; i < in; i++) {
        index.set(rnd.nextInt(groups), i);
      }
      b.groupIndex(index);
    }
    return b.build();
  }

  private Packing packing(QuantScheme scheme) {
    return switch (scheme.format()) {
      case INT4 -> pick(WORDS.get(0), WORDS.get(1), WORDS.get(2));
      case INT8 ->
          scheme.symmetric()
              ? pick(Packing.DENSE, WORDS.get(0), WORDS.get(1))
              : pick(WORDS.get(0), WORDS.get(1));
      default -> Packing.DENSE;
    };
  }

  private Tensor dense(QuantScheme scheme, int out, int in) {
    return switch (scheme.format()) {
      case INT8 -> bytes(DType.I8, -128, 127, out, in);
      case FP4 -> bytes(DType.F4, 0, 255, out, in);
      default -> {
        Tensor t = bytes(DType.F8_E4M3, 0, 255, out, in);
        withoutNan(t);
        yield t;
      }
    };
  }

  private static void withoutNan(Tensor t) {
    MemorySegment s = ((HostMemory) t.memory()).segment();
    for (long i = 0; i < s.byteSize(); i++) {
      byte code = s.get(ValueLayout.JAVA_BYTE, i);
      s.set(ValueLayout.JAVA_BYTE, i, (code & 127) == 127 ? (byte) (code & 0xb0) : code);
    }
  }

  private Tensor bytes(DType dtype, int least, int most, int rows, int columns) {
    long n = ((long) rows * columns * dtype.bits() + 7) / 8;
    MemorySegment s = arena.allocate(n, 1);
    for (long i = 0; i < n; i++) {
      s.set(ValueLayout.JAVA_BYTE, i, (byte) (least + rnd.nextInt(most - least + 1)));
    }
    return strided(dtype, s, rows, columns);
  }

  private Tensor words(Packing packing, QuantScheme scheme, int out, int in) {
    long[] shape = packing.shape(out, in, scheme.bits());
    MemorySegment s = arena.allocate(4 * shape[0] * shape[1], 1);
    for (long i = 0; i < s.byteSize(); i++) {
      s.set(ValueLayout.JAVA_BYTE, i, (byte) rnd.nextInt(256));
    }
    return strided(DType.I32, s, shape[0], shape[1]);
  }

  private Tensor scales(QuantScheme scheme, double unit, int rows, int groups) {
    return switch (scheme.scaleFormat()) {
      case E8M0 -> {
        int middle = 127 + Math.getExponent(unit);
        yield bytes(DType.F8_E8M0, middle - 2, middle + 1, rows, groups);
      }
      case E4M3 -> bytes(DType.F8_E4M3, 0x30, 0x40, rows, groups);
      case FLOAT -> {
        DType dtype = pick(DType.F32, DType.BF16, DType.F16);
        MemorySegment s = arena.allocate(dtype.byteSize((long) rows * groups), 1);
        Tensor flat = Tensor.of(dtype, s, (long) rows * groups);
        for (long i = 0; i < flat.size(0); i++) {
          flat.set(unit * (0.4 + 1.2 * rnd.nextDouble()), i);
        }
        yield strided(dtype, s, rows, groups);
      }
    };
  }

  /** As it lies, or transposed: the same bytes mean another matrix then, which is as good. */
  private Tensor strided(DType dtype, MemorySegment s, long rows, long columns) {
    return rnd.nextBoolean()
        ? Tensor.of(dtype, s, rows, columns)
        : Tensor.of(dtype, s, columns, rows).transpose(0, 1);
  }

  @SafeVarargs
  private <T> T pick(T... of) {
    return of[rnd.nextInt(of.length)];
  }
}
