package io.moe4j.api.weights;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.config.QuantScheme.ScaleFormat;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.Arrays;
import java.util.List;
import org.jspecify.annotations.Nullable;

/** Every tensor of a weight against its logical shape; messages name the tensor. */
final class WeightChecks {
  private static final List<DType> FLOATS = List.of(DType.F32, DType.BF16, DType.F16);
  private static final List<DType> INTEGERS =
      List.of(DType.I8, DType.U8, DType.I16, DType.I32, DType.I64);

  private final String name;
  private final QuantScheme scheme;
  private final long out;
  private final long in;

  WeightChecks(String name, QuantScheme scheme, long out, long in) {
    this.name = name;
    this.scheme = scheme;
    this.out = out;
    this.in = in;
    if (out < 1 || in < 1) {
      throw new IllegalArgumentException(
          name + " is [" + out + ", " + in + "], both sizes must be at least 1");
    }
  }

  void requireValues(Tensor values, Packing packing) {
    DType[] accepted =
        packing == Packing.DENSE
            ? denseDtypes()
            : scheme.format() == Format.INT4 || scheme.format() == Format.INT8
                ? new DType[] {DType.I32}
                : new DType[0];
    if (accepted.length == 0) {
      throw new IllegalArgumentException(
          name + " is " + scheme + " in packing " + packing + ", which that scheme does not have");
    }
    if (packing == Packing.WORDS_ALONG_OUT_AWQ && scheme.bits() != 4) {
      throw new IllegalArgumentException(
          name + " is " + scheme + ", packing " + packing + " has 4 bits only");
    }
    requireDtype("values", values, accepted);
    requireShape("values", values, packing.shape(out, in, scheme.bits()));
  }

  private DType[] denseDtypes() {
    return switch (scheme.format()) {
      case NONE -> FLOATS.toArray(DType[]::new);
      case INT8 -> new DType[] {DType.I8};
      case FP8 -> new DType[] {DType.F8_E4M3};
      case FP4 -> new DType[] {DType.F4};
      case INT4 -> new DType[0];
    };
  }

  /** {@return the scales as {@code [rows, groups]}} */
  @Nullable Tensor requireScales(@Nullable Tensor scales) {
    if (scheme.isNone()) {
      requireAbsent("scales", scales);
      return null;
    }
    long rows = scheme.scaleRowCount(out);
    long columns = scheme.scaleColumnCount(in);
    if (scales == null) {
      throw new IllegalArgumentException(
          name + " is " + scheme + " and has no scales; expected [" + rows + ", " + columns + "]");
    }
    requireDtype(
        "scales",
        scales,
        switch (scheme.scaleFormat()) {
          case FLOAT -> FLOATS.toArray(DType[]::new);
          case E8M0 -> new DType[] {DType.F8_E8M0};
          case E4M3 -> new DType[] {DType.F8_E4M3};
        });
    if (rows == 1 && columns == 1 && scales.elementCount() == 1) {
      return scales.reshape(1, 1);
    }
    if (columns == 1 && scales.dims() == 1 && scales.size(0) == rows) {
      return scales.reshape(rows, 1);
    }
    requireShape("scales", scales, rows, columns);
    return scales;
  }

  void requireGlobalScale(@Nullable Tensor global) {
    if (scheme.scaleFormat() != ScaleFormat.E4M3) {
      requireAbsent("global scale", global);
    } else if (global == null) {
      throw new IllegalArgumentException(
          name + " is " + scheme + " and has no global scale; expected one F32 number");
    }
    requireScalar("global scale", global);
  }

  void requireScalar(String what, @Nullable Tensor t) {
    if (t != null && (t.elementCount() != 1 || !FLOATS.contains(t.dtype()))) {
      throw new IllegalArgumentException(
          name + " " + what + " is " + t + ", must be one number of " + FLOATS);
    }
  }

  void requireZeroPoints(
      @Nullable Tensor zeros, @Nullable Packing zeroPacking, Packing valuePacking) {
    if (scheme.symmetric()) {
      requireAbsent("zero points", zeros);
      return;
    }
    long groups = scheme.scaleColumnCount(in);
    if (zeros == null || zeroPacking == null) {
      throw new IllegalArgumentException(
          name
              + " is "
              + scheme
              + " and has no zero points; expected one for each of ["
              + out
              + ", "
              + groups
              + "]");
    }
    if (scheme.scaleRows() != 1) {
      throw new IllegalArgumentException(
          name + " is " + scheme + "; zero points need scales of single rows");
    }
    if (zeroPacking == Packing.DENSE) {
      requireDtype("zero points", zeros, INTEGERS.toArray(DType[]::new));
    } else {
      requireDtype("zero points", zeros, DType.I32);
    }
    requireShape("zero points", zeros, zeroPacking.shape(out, groups, scheme.bits()));
  }

  void requireGroupIndex(@Nullable Tensor index) {
    if (!scheme.actOrder()) {
      requireAbsent("group index", index);
      return;
    }
    if (index == null) {
      throw new IllegalArgumentException(
          name + " is " + scheme + " and has no group index; expected I32 [" + in + "]");
    }
    requireDtype("group index", index, DType.I32);
    requireShape("group index", index, in);
    if (index.isHost()) {
      long groups = scheme.scaleColumnCount(in);
      for (long i = 0; i < in; i++) {
        double group = index.get(i);
        if (group < 0 || group >= groups) {
          throw new IllegalArgumentException(
              name
                  + " group index of input "
                  + i
                  + " is "
                  + (long) group
                  + ", must be 0.."
                  + (groups - 1));
        }
      }
    }
  }

  private void requireAbsent(String what, @Nullable Tensor t) {
    if (t != null) {
      throw new IllegalArgumentException(
          name + " is " + scheme + ", which has no " + what + ", but " + what + " are " + t);
    }
  }

  private void requireDtype(String what, Tensor t, DType... accepted) {
    if (!Arrays.asList(accepted).contains(t.dtype())) {
      throw new IllegalArgumentException(
          name + " " + what + " are " + t + ", must be of " + Arrays.toString(accepted));
    }
  }

  private void requireShape(String what, Tensor t, long... shape) {
    if (!Arrays.equals(t.shape(), shape)) {
      throw new IllegalArgumentException(
          name
              + " ["
              + out
              + ", "
              + in
              + "] "
              + scheme
              + ": "
              + what
              + " are "
              + t
              + ", must have shape "
              + Arrays.toString(shape));
    }
  }
}
