package io.moe4j.backend.cpu;

import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.cpu.ffi.CallStruct;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * One call's adapters for the kernels in C: where the factors of each slot are, and one entry for
 * each segment of tokens that share an expert and an adapter. Factors are read in place, in any
 * strides; those on the heap are copied. Reused from call to call.
 */
final class NativeLora {
  private static final int TARGETS = 3;

  /** The factors of one slot for one target. */
  private static final class Factors {
    int rank;
    long a;
    long aExpert;
    long aRow;
    long aCol;
    DType aType = DType.F32;
    long b;
    long bExpert;
    long bOut;
    long bRank;
    DType bType = DType.F32;

    boolean sharesA(Factors other) {
      return rank == other.rank
          && a == other.a
          && aExpert == other.aExpert
          && aRow == other.aRow
          && aCol == other.aCol
          && aType == other.aType;
    }
  }

  private final PackedWeights w;
  private final Mlp.Options options;

  /** By slot and target. */
  private final Factors[] factors;

  /** By slot: whether it has factors for any of the three. */
  final boolean[] live;

  /** By target: whether any slot has factors for it. */
  private final boolean[] targets = new boolean[TARGETS];

  /** What this call reads, so that memory which only the collector frees stays until it ends. */
  private final List<Tensor> read = new ArrayList<>();

  private @Nullable Arena copies;

  NativeLora(PackedWeights w, Mlp.Options options) {
    this.w = w;
    this.options = options;
    live = new boolean[options.maxLoras()];
    factors = new Factors[options.maxLoras() * TARGETS];
    Arrays.setAll(factors, _ -> new Factors());
  }

  /**
   * Looks at a call's adapters.
   *
   * @return whether there are any
   */
  boolean look(@Nullable MoeLoraContext context) {
    Arrays.fill(live, false);
    Arrays.fill(targets, false);
    if (context == null || !context.hasLora()) {
      return false;
    }
    boolean any = false;
    for (int s = 0; s < live.length; s++) {
      LoraLayer layer = s < context.maxLoras() ? context.slot(s) : null;
      set(s, 0, layer, w.gateTarget, w.hidden, w.intermediate);
      set(s, 1, layer, w.upTarget, w.hidden, w.intermediate);
      set(s, 2, layer, w.downTarget, w.intermediate, w.hidden);
      any |= live[s];
    }
    return any;
  }

  private void set(
      int slot, int which, @Nullable LoraLayer layer, LoraTarget target, int in, int out) {
    Factors f = factors[slot * TARGETS + which];
    f.rank = 0;
    boolean unused = which == 0 && !w.activation.isGated();
    LoraFactors from = layer == null || unused ? null : layer.get(target);
    if (from == null) {
      return;
    }
    Tensor a = kept(from.a());
    Tensor b = kept(from.b());
    f.aType = Rows.requireFloat("LoRA A", a);
    f.bType = Rows.requireFloat("LoRA B", b);
    if (from.rank() > options.maxRank()
        || from.inFeatures() != in
        || from.outFeatures() != out
        || (from.numExperts() != 1 && from.numExperts() < w.count)) {
      throw new IllegalArgumentException(
          "slot "
              + slot
              + " has for "
              + target
              + " A "
              + a
              + " and B "
              + b
              + ", must have at most"
              + " rank "
              + options.maxRank()
              + ", read "
              + in
              + ", write "
              + out
              + " and serve "
              + w.count
              + " experts");
    }
    long sa = f.aType.bits() / 8;
    long sb = f.bType.bits() / 8;
    f.a = address(a) + a.byteOffset();
    f.aExpert = a.size(0) == 1 ? 0 : a.stride(0) * sa;
    f.aRow = a.stride(1) * sa;
    f.aCol = a.stride(2) * sa;
    f.b = address(b) + b.byteOffset();
    f.bExpert = b.size(0) == 1 ? 0 : b.stride(0) * sb;
    f.bOut = b.stride(1) * sb;
    f.bRank = b.stride(2) * sb;
    f.rank = from.rank();
    live[slot] = true;
    targets[which] = true;
  }

  /** What is read by its address alone must be referred to here as well. */
  private Tensor kept(Tensor t) {
    Tensor own = FileMemory.copied(t);
    read.add(own);
    return own;
  }

  private long address(Tensor t) {
    MemorySegment s = Rows.segment(t);
    if (!s.scope().isAlive()) {
      throw new IllegalStateException("the memory of factors " + t + " is closed");
    }
    if (s.isNative()) {
      return s.address();
    }
    Arena arena = copies;
    if (arena == null) {
      arena = Arena.ofShared();
      copies = arena;
    }
    return arena.allocate(s.byteSize(), 64).copyFrom(s).address();
  }

  /** Lets go of the copies. */
  void clear() {
    read.clear();
    if (copies != null) {
      copies.close();
      copies = null;
    }
  }

  boolean any13() {
    return targets[0] || targets[1];
  }

  boolean any2() {
    return targets[2];
  }

  /** Writes the entries of a plan's segments to the workspace. */
  void write(TokenPlan plan, MemorySegment ws, NativeLayout l) {
    for (int i = 0; i < plan.segments; i++) {
      long at = l.segments() + i * CallStruct.SEGMENT_BYTES;
      int from = plan.segmentStart[i];
      CallStruct.segment(ws, at, from, plan.segmentEnd[i]);
      long shrunk = ws.address() + l.shrunk() + from * l.shrunkStride();
      int slot = plan.segmentSlot[i] * TARGETS;
      for (int which = 0; which < TARGETS; which++) {
        Factors f = factors[slot + which];
        if (f.rank == 0) {
          CallStruct.noTarget(ws, at, which);
          continue;
        }
        boolean shares = which == 1 && f.sharesA(factors[slot]);
        long e = plan.segmentExpert[i];
        CallStruct.target(
            ws,
            at,
            which,
            f.a + e * f.aExpert,
            f.aRow,
            f.aCol,
            f.aType,
            f.b + e * f.bExpert,
            f.bOut,
            f.bRank,
            f.bType,
            f.rank,
            shrunk + (shares ? 0 : which) * (l.shrunkStride() / TARGETS),
            !shares);
      }
    }
  }
}
