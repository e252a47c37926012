package io.moe4j.backend.cpu;

import io.moe4j.api.tensor.DType;
import io.moe4j.backend.cpu.ffi.NativeBlock;
import io.moe4j.backend.cpu.kernel.Kernels;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Objects;
import java.util.concurrent.ConcurrentLinkedQueue;
import org.jspecify.annotations.Nullable;

/**
 * The end of a layer, token by token: {@code routed + sigmoid(gate) shared}, halved where both are
 * averaged, plus a bias, in the output's dtype. Thread-safe like {@link GroupedMlp}.
 */
final class OutputRows {
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;
  private static final MemorySegment NONE = MemorySegment.ofArray(new byte[0]);
  private static final int TOKENS_PER_TILE = 8;

  /**
   * One batch.
   *
   * @param tokens how many
   * @param routed F32 {@code [T, H]}
   * @param sum F32 {@code [T, H]} to work in, may be {@code routed}
   * @param shared F32 {@code [T, H]}, or null
   * @param gate F32 {@code [T]}, what the sigmoid is taken of, or null; overwritten
   * @param output {@code [T, H]}
   * @param type its dtype
   */
  record Batch(
      int tokens,
      MemorySegment routed,
      MemorySegment sum,
      @Nullable MemorySegment shared,
      @Nullable MemorySegment gate,
      MemorySegment output,
      DType type) {}

  private static final Batch NOTHING = new Batch(0, NONE, NONE, null, null, NONE, DType.F32);

  private final Kernels kernels;
  private final @Nullable NativeBlock c;
  private final ThreadTeam team;
  private final int hidden;
  private final boolean average;
  private final @Nullable MemorySegment bias;
  private final ConcurrentLinkedQueue<Pass> pool = new ConcurrentLinkedQueue<>();

  /**
   * @param hidden elements of a row
   * @param average whether the sum is halved
   * @param bias F32 {@code [H]}, or null
   */
  OutputRows(BlockKernels with, int hidden, boolean average, @Nullable MemorySegment bias) {
    kernels = with.java();
    c = with.c();
    team = with.team();
    this.hidden = hidden;
    this.average = average;
    if (bias != null) {
      Objects.checkFromIndexSize(0, 4L * hidden, bias.byteSize());
    }
    this.bias = bias;
  }

  /** Writes the output of all tokens. */
  void run(Batch batch) {
    long elements = (long) batch.tokens() * hidden;
    Objects.checkFromIndexSize(0, 4 * elements, batch.routed().byteSize());
    Objects.checkFromIndexSize(0, 4 * elements, batch.sum().byteSize());
    Objects.checkFromIndexSize(0, batch.type().byteSize(elements), batch.output().byteSize());
    if (batch.shared() != null) {
      Objects.checkFromIndexSize(0, 4 * elements, batch.shared().byteSize());
    }
    if (batch.gate() != null) {
      Objects.checkFromIndexSize(0, 4L * batch.tokens(), batch.gate().byteSize());
    }
    Pass p = pool.poll();
    if (p == null) {
      p = new Pass();
    }
    try {
      p.batch = batch;
      team.run(p.region, Math.ceilDiv(batch.tokens(), TOKENS_PER_TILE));
    } finally {
      p.batch = NOTHING;
      pool.add(p);
    }
  }

  private final class Pass {
    private final ThreadTeam.Region region = this::tile;
    private Batch batch = NOTHING;

    private void tile(int index, int member) {
      int from = index * TOKENS_PER_TILE;
      int to = Math.min(batch.tokens(), from + TOKENS_PER_TILE);
      MemorySegment gate = batch.gate();
      for (int t = from; gate != null && t < to; t++) {
        float z = gate.getAtIndex(F32, t);
        gate.setAtIndex(F32, t, (float) (1 / (1 + Math.exp(-(double) z))));
      }
      if (c != null) {
        c.finish(
            batch.routed(),
            batch.shared(),
            gate,
            average,
            bias,
            batch.output(),
            batch.type(),
            hidden,
            from,
            to);
      } else {
        for (int t = from; t < to; t++) {
          row(t, gate == null ? 1f : gate.getAtIndex(F32, t));
        }
      }
    }

    private void row(int t, float factor) {
      long at = 4L * t * hidden;
      MemorySegment sum = batch.sum();
      MemorySegment.copy(batch.routed(), at, sum, at, 4L * hidden);
      MemorySegment shared = batch.shared();
      if (shared != null) {
        kernels.forType(DType.F32).axpy(factor, shared, at, sum, at, hidden);
      }
      for (int i = 0; average && i < hidden; i++) {
        sum.set(F32, at + 4L * i, sum.get(F32, at + 4L * i) / 2);
      }
      for (int i = 0; bias != null && i < hidden; i++) {
        sum.set(F32, at + 4L * i, sum.get(F32, at + 4L * i) + bias.getAtIndex(F32, i));
      }
      MlpForward.store(sum, at, batch.output(), batch.type(), (long) t * hidden, hidden);
    }
  }
}
