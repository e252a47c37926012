package io.moe4j.comm.tcp;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.nio.BufferUnderflowException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/**
 * What a rank is about to do, as it tells the others. All ranks have to say the same; only the rows
 * of an {@link Op#ALL_TO_ALL} differ.
 */
final class Call {
  /** The calls of a communicator, by the names of its methods. */
  enum Op {
    ALL_GATHER("allGather"),
    REDUCE_SCATTER("reduceScatter"),
    ALL_REDUCE("allReduce"),
    ALL_TO_ALL("allToAll");

    final String method;

    Op(String method) {
      this.method = method;
    }
  }

  private static final int MAX_DIMS = 16;

  /** Calls before this one. */
  private final long number;

  private final Op op;

  /** Of what is sent. */
  private final DType dtype;

  /** Of what is sent. */
  private final long[] shape;

  /** For the rank that is told. */
  final long rows;

  private Call(long number, Op op, DType dtype, long[] shape, long rows) {
    this.number = number;
    this.op = op;
    this.dtype = dtype;
    this.shape = shape;
    this.rows = rows;
    if (shape.length < 1 || shape.length > MAX_DIMS) {
      throw new IllegalArgumentException(
          "tensors have " + shape.length + " dimensions, must have 1.." + MAX_DIMS);
    }
  }

  static Call of(long number, Op op, Tensor sent) {
    return new Call(number, op, sent.dtype(), sent.shape(), 0);
  }

  Call withRows(long count) {
    return new Call(number, op, dtype, shape, count);
  }

  void write(ByteBuffer to) {
    to.putLong(number);
    putName(to, op.method);
    putName(to, dtype.name());
    to.putInt(shape.length);
    for (long n : shape) {
      to.putLong(n);
    }
    to.putLong(rows);
  }

  private static void putName(ByteBuffer to, String name) {
    to.put((byte) name.length()).put(name.getBytes(StandardCharsets.US_ASCII));
  }

  private static String getName(ByteBuffer from) {
    byte[] name = new byte[Byte.toUnsignedInt(from.get())];
    from.get(name);
    return new String(name, StandardCharsets.US_ASCII);
  }

  /**
   * {@return what another rank wrote}
   *
   * @throws IllegalArgumentException if it is nothing of the kind
   */
  static Call read(ByteBuffer from) {
    try {
      long number = from.getLong();
      String method = getName(from);
      Op op =
          Arrays.stream(Op.values())
              .filter(o -> o.method.equals(method))
              .findFirst()
              .orElseThrow(() -> new IllegalArgumentException("call " + method));
      DType dtype = DType.valueOf(getName(from));
      int dims = from.getInt();
      if (dims < 1 || dims > MAX_DIMS) {
        throw new IllegalArgumentException(dims + " dimensions");
      }
      long[] shape = new long[dims];
      for (int d = 0; d < dims; d++) {
        shape[d] = from.getLong();
      }
      return new Call(number, op, dtype, shape, from.getLong());
    } catch (BufferUnderflowException e) {
      throw new IllegalArgumentException("a call that is cut short", e);
    }
  }

  boolean agreesWith(Call other) {
    return number == other.number
        && op == other.op
        && dtype == other.dtype
        && Arrays.equals(rowShape(), other.rowShape())
        && (op == Op.ALL_TO_ALL || shape[0] == other.shape[0]);
  }

  private long[] rowShape() {
    return Arrays.copyOfRange(shape, 1, shape.length);
  }

  @Override
  public String toString() {
    return op.method + " with " + dtype + Arrays.toString(shape) + " as call " + number;
  }
}
