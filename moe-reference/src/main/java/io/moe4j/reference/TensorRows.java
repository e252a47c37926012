package io.moe4j.reference;

import io.moe4j.api.tensor.Tensor;

/** Vectors in and out of tensors; an index names a row, whatever the number of dimensions. */
final class TensorRows {
  private TensorRows() {}

  static double[] read(Tensor t, long... index) {
    return row(t, index).toDoubles();
  }

  static void write(double[] values, Tensor t, long... index) {
    Tensor row = row(t, index);
    for (int i = 0; i < values.length; i++) {
      row.set(values[i], i);
    }
  }

  private static Tensor row(Tensor t, long... index) {
    Tensor row = t;
    for (long i : index) {
      row = row.select(0, i);
    }
    return row;
  }
}
