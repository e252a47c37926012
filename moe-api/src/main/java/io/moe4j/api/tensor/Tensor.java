package io.moe4j.api.tensor;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.Objects;

/**
 * A typed, strided view of {@link Memory}. Immutable description, no ownership: the allocator of
 * the memory closes or frees it. Strides are in elements and not negative; 0 repeats one element
 * along a dimension (factors shared across experts). Safe to share between threads; the contents
 * follow the memory's own rules.
 *
 * <p>Every factory checks that all elements lie inside the memory, so that a kernel that trusts
 * shape and strides cannot read out of bounds.
 *
 * <p>Elements are little-endian and need not be aligned to their size (tensors of mapped files
 * often are not). A kernel on the host reads them through {@link #segment()}; where a tensor may be
 * strided, as weights may be, through {@code ((HostMemory) memory()).segment()} at {@link
 * #byteOffset()} and the strides. {@link #get} is for tests and small tensors.
 *
 * @since 0.1.0
 */
public final class Tensor {
  private final DType dtype;
  private final long[] shape;
  private final long[] strides;
  private final Memory memory;
  private final long byteOffset;

  private Tensor(DType dtype, long[] shape, long[] strides, Memory memory, long byteOffset) {
    this.dtype = dtype;
    this.shape = shape;
    this.strides = strides;
    this.memory = memory;
    this.byteOffset = byteOffset;
  }

  /**
   * A dense row-major tensor over the start of {@code memory}.
   *
   * @param dtype element type
   * @param memory at least as long as the tensor
   * @param shape sizes, outermost first; empty for a scalar
   * @return the view
   * @throws IllegalArgumentException if a size is negative or the memory is too short
   */
  public static Tensor of(DType dtype, Memory memory, long... shape) {
    return strided(dtype, memory, 0, shape, rowMajorStrides(shape));
  }

  /**
   * A dense row-major tensor over the start of a segment.
   *
   * @param dtype element type
   * @param segment at least as long as the tensor
   * @param shape sizes, outermost first
   * @return the view
   */
  public static Tensor of(DType dtype, MemorySegment segment, long... shape) {
    return of(dtype, new HostMemory(segment), shape);
  }

  /**
   * An F32 tensor over a Java array, without a copy.
   *
   * @param values the elements in row-major order; later changes show through
   * @param shape sizes, outermost first
   * @return the view
   */
  public static Tensor ofFloats(float[] values, long... shape) {
    return of(DType.F32, MemorySegment.ofArray(values), shape);
  }

  /**
   * An I32 tensor over a Java array, without a copy.
   *
   * @param values the elements in row-major order; later changes show through
   * @param shape sizes, outermost first
   * @return the view
   */
  public static Tensor ofInts(int[] values, long... shape) {
    return of(DType.I32, MemorySegment.ofArray(values), shape);
  }

  /**
   * The general form.
   *
   * @param dtype element type
   * @param memory what the tensor looks at
   * @param byteOffset where element {@code [0, 0, ...]} begins in {@code memory}
   * @param shape sizes, outermost first
   * @param strides distance between neighbours along each dimension, in elements, not negative
   * @return the view
   * @throws IllegalArgumentException if sizes or strides are negative, their counts differ, or an
   *     element would lie outside
   */
  public static Tensor strided(
      DType dtype, Memory memory, long byteOffset, long[] shape, long[] strides) {
    return checked(dtype, memory, byteOffset, shape.clone(), strides.clone());
  }

  /**
   * The one way to a tensor: every factory and every view ends here, so none of them can look
   * outside its memory. Keeps the arrays.
   */
  private static Tensor checked(
      DType dtype, Memory memory, long byteOffset, long[] shape, long[] strides) {
    Objects.requireNonNull(dtype, "dtype");
    Objects.requireNonNull(memory, "memory");
    if (shape.length != strides.length) {
      throw new IllegalArgumentException(
          "shape "
              + Arrays.toString(shape)
              + " and strides "
              + Arrays.toString(strides)
              + " differ in length");
    }
    if (byteOffset < 0) {
      throw new IllegalArgumentException("byteOffset is " + byteOffset + ", must not be negative");
    }
    for (int d = 0; d < shape.length; d++) {
      if (shape[d] < 0 || strides[d] < 0) {
        throw new IllegalArgumentException(
            "shape "
                + Arrays.toString(shape)
                + " with strides "
                + Arrays.toString(strides)
                + ": sizes and strides must not be negative");
      }
    }
    long needed;
    try {
      needed = Math.addExact(byteOffset, span(dtype, shape, strides));
    } catch (ArithmeticException e) {
      throw overflow(shape, strides, e);
    }
    if (needed > memory.byteSize()) {
      throw new IllegalArgumentException(
          dtype
              + " tensor of shape "
              + Arrays.toString(shape)
              + " at byte offset "
              + byteOffset
              + " needs "
              + needed
              + " bytes, the memory has "
              + memory.byteSize());
    }
    return new Tensor(dtype, shape, strides, memory, byteOffset);
  }

  /** Bytes from the first element to the end of the last one; 0 where there is no element. */
  private static long span(DType dtype, long[] shape, long[] strides) {
    boolean empty = false;
    long count = 1;
    long last = 0;
    for (int d = 0; d < shape.length; d++) {
      empty |= shape[d] == 0;
      count = Math.multiplyExact(count, shape[d]);
      last = Math.addExact(last, Math.multiplyExact(Math.max(0, shape[d] - 1), strides[d]));
    }
    long bits = Math.multiplyExact(Math.addExact(last, 1), dtype.bits());
    return empty ? 0 : Math.ceilDiv(bits, (long) Byte.SIZE);
  }

  private static IllegalArgumentException overflow(
      long[] shape, long[] strides, ArithmeticException cause) {
    return new IllegalArgumentException(
        "shape "
            + Arrays.toString(shape)
            + " with strides "
            + Arrays.toString(strides)
            + " overflows a 64-bit size",
        cause);
  }

  private static long[] rowMajorStrides(long[] shape) {
    long[] strides = new long[shape.length];
    long step = 1;
    for (int d = shape.length - 1; d >= 0; d--) {
      strides[d] = step;
      try {
        step = Math.multiplyExact(step, Math.max(1, shape[d]));
      } catch (ArithmeticException e) {
        throw overflow(shape, strides, e);
      }
    }
    return strides;
  }

  /** {@return the element type} */
  public DType dtype() {
    return dtype;
  }

  /** {@return a copy of the sizes, outermost first} */
  public long[] shape() {
    return shape.clone();
  }

  /** {@return the number of dimensions} */
  public int dims() {
    return shape.length;
  }

  /**
   * {@return the size of one dimension}
   *
   * @param dim 0 is the outermost
   */
  public long size(int dim) {
    return shape[dim];
  }

  /**
   * {@return the distance between neighbours along one dimension, in elements}
   *
   * @param dim 0 is the outermost
   */
  public long stride(int dim) {
    return strides[dim];
  }

  /** {@return the number of elements} */
  public long elementCount() {
    long n = 1;
    for (long s : shape) {
      n *= s;
    }
    return n;
  }

  /** {@return what this tensor looks at} */
  public Memory memory() {
    return memory;
  }

  /** {@return where element {@code [0, 0, ...]} begins in {@link #memory()}, in bytes} */
  public long byteOffset() {
    return byteOffset;
  }

  /** {@return whether the memory can be read by Java} */
  public boolean isHost() {
    return memory instanceof HostMemory;
  }

  /** {@return whether the elements lie dense in row-major order} */
  public boolean isContiguous() {
    long step = 1;
    for (int d = shape.length - 1; d >= 0; d--) {
      if (shape[d] != 1 && strides[d] != step) {
        return elementCount() == 0;
      }
      step *= shape[d];
    }
    return true;
  }

  /**
   * {@return the bytes of a contiguous host tensor, exactly as long as the tensor}
   *
   * @throws IllegalStateException if the tensor is on a device or not contiguous
   */
  public MemorySegment segment() {
    if (!(memory instanceof HostMemory host)) {
      throw new IllegalStateException(this + " is on a device, not in host memory");
    }
    if (!isContiguous()) {
      throw new IllegalStateException(this + " is not contiguous");
    }
    return host.segment().asSlice(byteOffset, dtype.byteSize(elementCount()));
  }

  /**
   * The device address of element {@code [0, 0, ...]}.
   *
   * @return the address
   * @throws IllegalStateException if the tensor is in host memory
   */
  public long deviceAddress() {
    if (!(memory instanceof DeviceMemory device)) {
      throw new IllegalStateException(this + " is in host memory, not on a device");
    }
    return device.address() + byteOffset;
  }

  /**
   * One slice along a dimension, which disappears.
   *
   * @param dim the dimension
   * @param index {@code 0..size(dim)-1}
   * @return a view with one dimension less
   */
  public Tensor select(int dim, long index) {
    Objects.checkIndex(dim, shape.length);
    Objects.checkIndex(index, shape[dim]);
    long[] newShape = new long[shape.length - 1];
    long[] newStrides = new long[shape.length - 1];
    for (int d = 0, o = 0; d < shape.length; d++) {
      if (d != dim) {
        newShape[o] = shape[d];
        newStrides[o++] = strides[d];
      }
    }
    return checked(dtype, memory, offsetOf(dim, index), newShape, newStrides);
  }

  /**
   * A stretch along a dimension.
   *
   * @param dim the dimension
   * @param start first index
   * @param length number of indices
   * @return a view of the same number of dimensions
   */
  public Tensor narrow(int dim, long start, long length) {
    return sliced(dim, start, length, 1);
  }

  /**
   * Every {@code step}-th index along a dimension.
   *
   * @param dim the dimension
   * @param start first index
   * @param length number of indices taken
   * @param step distance between them, at least 1
   * @return a view of the same number of dimensions
   */
  public Tensor sliced(int dim, long start, long length, long step) {
    Objects.checkIndex(dim, shape.length);
    // Written so that nothing overflows: the last index taken is start + (length - 1) * step.
    boolean inside =
        start >= 0
            && length >= 0
            && step >= 1
            && start <= shape[dim]
            && (length == 0
                || (shape[dim] > start && length - 1 <= (shape[dim] - 1 - start) / step));
    if (!inside) {
      throw new IndexOutOfBoundsException(
          "start "
              + start
              + ", length "
              + length
              + ", step "
              + step
              + " outside size "
              + shape[dim]
              + " of dimension "
              + dim
              + " of "
              + this);
    }
    long[] newShape = shape.clone();
    long[] newStrides = strides.clone();
    newShape[dim] = length;
    try {
      // One index or none has no distance to the next.
      newStrides[dim] = length <= 1 ? strides[dim] : Math.multiplyExact(strides[dim], step);
    } catch (ArithmeticException e) {
      throw overflow(newShape, newStrides, e);
    }
    return checked(
        dtype, memory, length == 0 ? byteOffset : offsetOf(dim, start), newShape, newStrides);
  }

  /** Where the slice at an index of a dimension begins, in bytes. */
  private long offsetOf(int dim, long index) {
    try {
      return Math.addExact(byteOffset, dtype.byteSize(Math.multiplyExact(index, strides[dim])));
    } catch (ArithmeticException e) {
      throw new IllegalArgumentException(
          "index "
              + index
              + " of dimension "
              + dim
              + " of "
              + this
              + " does not begin at a whole byte of the memory",
          e);
    }
  }

  /**
   * Two dimensions exchanged.
   *
   * @param a one dimension
   * @param b the other
   * @return a view of the same elements
   */
  public Tensor transpose(int a, int b) {
    Objects.checkIndex(a, shape.length);
    Objects.checkIndex(b, shape.length);
    long[] newShape = shape.clone();
    long[] newStrides = strides.clone();
    newShape[a] = shape[b];
    newShape[b] = shape[a];
    newStrides[a] = strides[b];
    newStrides[b] = strides[a];
    return checked(dtype, memory, byteOffset, newShape, newStrides);
  }

  /**
   * The same elements of a contiguous tensor under another shape.
   *
   * @param newShape must have the same number of elements
   * @return the view
   * @throws IllegalStateException if this tensor is not contiguous
   */
  public Tensor reshape(long... newShape) {
    if (!isContiguous()) {
      throw new IllegalStateException(this + " is not contiguous");
    }
    Tensor result = checked(dtype, memory, byteOffset, newShape.clone(), rowMajorStrides(newShape));
    if (result.elementCount() != elementCount()) {
      throw new IllegalArgumentException(this + " cannot be seen as " + Arrays.toString(newShape));
    }
    return result;
  }

  /**
   * Repeats this tensor along a new outermost dimension with stride 0.
   *
   * @param count size of the new dimension, not negative
   * @return a view with one dimension more
   * @throws IllegalArgumentException if {@code count} is negative or the number of elements does
   *     not fit a long
   */
  public Tensor expand(long count) {
    long[] newShape = new long[shape.length + 1];
    long[] newStrides = new long[shape.length + 1];
    newShape[0] = count;
    System.arraycopy(shape, 0, newShape, 1, shape.length);
    System.arraycopy(strides, 0, newStrides, 1, shape.length);
    return checked(dtype, memory, byteOffset, newShape, newStrides);
  }

  /**
   * Reads one element of a host tensor as a double. Convenient and slow: for tests, tools and small
   * tensors.
   *
   * @param index one index per dimension
   * @return the value, exact for every type but 64-bit integers beyond 2^53
   */
  public double get(long... index) {
    return Elements.read(hostSegment(), dtype, byteOffset, offset(index));
  }

  /**
   * Writes one element of a host tensor, rounding to nearest even. Convenient and slow: for tests,
   * tools and small tensors.
   *
   * @param value the value
   * @param index one index per dimension
   */
  public void set(double value, long... index) {
    Elements.write(hostSegment(), dtype, byteOffset, offset(index), value);
  }

  private MemorySegment hostSegment() {
    if (memory instanceof HostMemory host) {
      return host.segment();
    }
    throw new IllegalStateException(this + " is on a device, not in host memory");
  }

  private long offset(long[] index) {
    if (index.length != shape.length) {
      throw new IllegalArgumentException(
          Arrays.toString(index) + " does not index a tensor of shape " + Arrays.toString(shape));
    }
    long o = 0;
    for (int d = 0; d < index.length; d++) {
      o += Objects.checkIndex(index[d], shape[d]) * strides[d];
    }
    return o;
  }

  /**
   * A copy of a host tensor's elements as floats, in row-major order whatever the strides.
   *
   * @return a new array
   */
  public float[] toFloats() {
    double[] wide = toDoubles();
    float[] out = new float[wide.length];
    for (int i = 0; i < out.length; i++) {
      out[i] = (float) wide[i];
    }
    return out;
  }

  /**
   * A copy of a host tensor's elements as doubles, in row-major order whatever the strides.
   *
   * @return a new array
   */
  public double[] toDoubles() {
    double[] out = new double[Math.toIntExact(elementCount())];
    long[] index = new long[shape.length];
    MemorySegment segment = hostSegment();
    for (int i = 0; i < out.length; i++) {
      long o = 0;
      for (int d = 0; d < shape.length; d++) {
        o += index[d] * strides[d];
      }
      out[i] = Elements.read(segment, dtype, byteOffset, o);
      for (int d = shape.length - 1; d >= 0 && ++index[d] == shape[d]; d--) {
        index[d] = 0;
      }
    }
    return out;
  }

  /**
   * A copy of an integer host tensor's elements, in row-major order.
   *
   * @return a new array
   * @throws IllegalStateException if the dtype is not an integer type
   */
  public int[] toInts() {
    if (dtype.isFloating()) {
      throw new IllegalStateException(this + " does not hold integers");
    }
    double[] wide = toDoubles();
    int[] out = new int[wide.length];
    for (int i = 0; i < out.length; i++) {
      out[i] = (int) wide[i];
    }
    return out;
  }

  /**
   * Like {@code BF16[16, 128]}; for messages.
   *
   * @return dtype and shape
   */
  @Override
  public String toString() {
    return dtype
        + Arrays.toString(shape)
        + (isContiguous() ? "" : " strides " + Arrays.toString(strides));
  }

  /** Layouts without alignment, because files give none. */
  static final class Elements {
    private static final ValueLayout.OfFloat F32 =
        ValueLayout.JAVA_FLOAT_UNALIGNED.withOrder(java.nio.ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfDouble F64 =
        ValueLayout.JAVA_DOUBLE_UNALIGNED.withOrder(java.nio.ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfShort I16 =
        ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(java.nio.ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfInt I32 =
        ValueLayout.JAVA_INT_UNALIGNED.withOrder(java.nio.ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfLong I64 =
        ValueLayout.JAVA_LONG_UNALIGNED.withOrder(java.nio.ByteOrder.LITTLE_ENDIAN);

    /** By bit pattern: sign, two exponent bits, one mantissa bit. */
    private static final double[] F4_VALUES = {
      0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6
    };

    private Elements() {}

    static double read(MemorySegment s, DType t, long base, long i) {
      return switch (t) {
        case F64 -> s.get(F64, base + 8 * i);
        case F32 -> s.get(F32, base + 4 * i);
        case F16 -> Float.float16ToFloat(s.get(I16, base + 2 * i));
        case BF16 -> Float.intBitsToFloat(s.get(I16, base + 2 * i) << 16);
        case I64 -> s.get(I64, base + 8 * i);
        case I32 -> s.get(I32, base + 4 * i);
        case I16 -> s.get(I16, base + 2 * i);
        case U16 -> Short.toUnsignedInt(s.get(I16, base + 2 * i));
        case U32 -> Integer.toUnsignedLong(s.get(I32, base + 4 * i));
        case I8 -> s.get(ValueLayout.JAVA_BYTE, base + i);
        case U8, BOOL -> Byte.toUnsignedInt(s.get(ValueLayout.JAVA_BYTE, base + i));
        case F4 -> {
          byte two = s.get(ValueLayout.JAVA_BYTE, base + (i >> 1));
          yield F4_VALUES[(i & 1) == 0 ? two & 15 : two >> 4 & 15];
        }
        case F8_E8M0 -> {
          int exponent = Byte.toUnsignedInt(s.get(ValueLayout.JAVA_BYTE, base + i));
          yield exponent == 255 ? Double.NaN : Math.scalb(1.0, exponent - 127);
        }
        case F8_E4M3 -> fp8(s.get(ValueLayout.JAVA_BYTE, base + i), 3);
        case F8_E5M2 -> fp8(s.get(ValueLayout.JAVA_BYTE, base + i), 2);
        case U64 ->
            throw new IllegalStateException("elements of " + t + " cannot be read one by one");
      };
    }

    /**
     * OCP 8-bit floating point: E4M3 without infinities (only all ones is NaN), E5M2 with those of
     * IEEE 754.
     */
    private static double fp8(byte code, int mantissaBits) {
      int bits = Byte.toUnsignedInt(code);
      int exponentBits = 7 - mantissaBits;
      int mantissa = bits & ((1 << mantissaBits) - 1);
      int exponent = (bits >> mantissaBits) & ((1 << exponentBits) - 1);
      int bias = (1 << (exponentBits - 1)) - 1;
      double sign = bits < 128 ? 1 : -1;
      if (mantissaBits == 3 && (bits & 127) == 127) {
        return Double.NaN;
      }
      if (mantissaBits == 2 && exponent == 31) {
        return mantissa == 0 ? sign * Double.POSITIVE_INFINITY : Double.NaN;
      }
      double fraction = mantissa / (double) (1 << mantissaBits);
      return exponent == 0
          ? sign * Math.scalb(fraction, 1 - bias)
          : sign * Math.scalb(1 + fraction, exponent - bias);
    }

    static void write(MemorySegment s, DType t, long base, long i, double v) {
      switch (t) {
        case F64 -> s.set(F64, base + 8 * i, v);
        case F32 -> s.set(F32, base + 4 * i, (float) v);
        case F16 -> s.set(I16, base + 2 * i, Float.floatToFloat16((float) v));
        case BF16 -> s.set(I16, base + 2 * i, toBFloat16((float) v));
        case I64 -> s.set(I64, base + 8 * i, (long) v);
        case I32 -> s.set(I32, base + 4 * i, (int) v);
        case I16, U16 -> s.set(I16, base + 2 * i, (short) (int) v);
        case U32 -> s.set(I32, base + 4 * i, (int) (long) v);
        case I8, U8, BOOL -> s.set(ValueLayout.JAVA_BYTE, base + i, (byte) (int) v);
        case F8_E4M3, F8_E5M2, F8_E8M0, F4, U64 ->
            throw new IllegalStateException("elements of " + t + " cannot be written one by one");
      }
    }
  }

  /**
   * Rounds a float to bfloat16, nearest even; NaN stays NaN.
   *
   * @param value the value
   * @return the upper 16 bits of the rounded binary32
   */
  public static short toBFloat16(float value) {
    int bits = Float.floatToRawIntBits(value);
    if (Float.isNaN(value)) {
      return (short) ((bits >>> 16) | 0x0040);
    }
    return (short) ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16);
  }
}
