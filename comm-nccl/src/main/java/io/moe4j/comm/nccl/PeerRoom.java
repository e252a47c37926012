package io.moe4j.comm.nccl;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.PeerMemory;
import java.util.List;

/**
 * A piece of memory on every rank that all others write into, laid out alike: what kernels of
 * {@code peers.cu} meet by, then what a gather brings, then what a sum brings.
 *
 * @param all by rank, as this rank's device sees them; its own is among them
 * @param rank this one
 * @param arriving bytes for what a gather brings
 * @param sums bytes for what a sum brings
 */
record PeerRoom(List<PeerMemory> all, int rank, long arriving, long sums) implements AutoCloseable {
  /** Of {@code struct Head}, and what follows begins at a page. */
  static final long HEAD_BYTES = 40 << 10;

  static long byteSize(long arriving, long sums) {
    return Math.addExact(HEAD_BYTES, Math.addExact(arriving, sums));
  }

  boolean fits(long arrivingBytes, long sumsBytes) {
    return arrivingBytes <= arriving && sumsBytes <= sums;
  }

  /** {@return where sums of other ranks arrive, from the room's beginning} */
  long sumsAt() {
    return HEAD_BYTES + arriving;
  }

  /** {@return a tensor in this rank's own room} */
  Tensor tensor(DType dtype, long offset, long... shape) {
    DeviceMemory own = all.get(rank).memory();
    long elements = 1;
    for (long n : shape) {
      elements = Math.multiplyExact(elements, n);
    }
    return Tensor.of(
        dtype,
        new DeviceMemory(own.device(), own.address() + offset, dtype.byteSize(elements)),
        shape);
  }

  /** {@return the room's address on a rank; 0 where there is no such rank} */
  long address(int of) {
    return of < all.size() ? all.get(of).memory().address() : 0;
  }

  @Override
  public void close() {
    // Those of others first: kernels of this rank have finished. Its own is freed when the driver
    // finds that nobody has it mapped.
    for (int r = 0; r < all.size(); r++) {
      if (r != rank) {
        all.get(r).close();
      }
    }
    all.get(rank).close();
  }
}
