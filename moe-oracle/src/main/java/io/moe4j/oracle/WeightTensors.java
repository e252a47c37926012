package io.moe4j.oracle;

import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.MemorySource;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.LatentWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.function.Consumer;
import java.util.function.UnaryOperator;
import org.jspecify.annotations.Nullable;

/** All tensors of a layer's weights, to look at or to copy out of mapped files. */
final class WeightTensors {
  private static final long ALIGNMENT = 64;

  private WeightTensors() {}

  static void forEach(MoeLayerWeights weights, Consumer<Tensor> action) {
    map(
        weights,
        t -> {
          action.accept(t);
          return t;
        });
  }

  /** {@return bytes of all tensors, as they stand in memory} */
  static long byteSize(MoeLayerWeights weights) {
    long[] sum = {0};
    forEach(weights, t -> sum[0] += t.dtype().byteSize(t.elementCount()));
    return sum[0];
  }

  private static MoeLayerWeights map(MoeLayerWeights w, UnaryOperator<Tensor> f) {
    RouterWeights router = w.router();
    SharedExpertWeights shared = w.shared();
    LatentWeights latent = w.latent();
    MoeLayerWeights mapped =
        new MoeLayerWeights(
            new ExpertWeights(w.experts().experts().stream().map(x -> map(x, f)).toList()),
            router == null
                ? null
                : new RouterWeights(
                    f.apply(router.weight()),
                    map(router.bias(), f),
                    map(router.correctionBias(), f)),
            shared == null
                ? null
                : new SharedExpertWeights(map(shared.mlp(), f), map(shared.sigmoidGate(), f)),
            latent == null ? null : new LatentWeights(f.apply(latent.in()), f.apply(latent.out())));
    return w.layerIndex().isPresent() ? mapped.withLayerIndex(w.layerIndex().getAsInt()) : mapped;
  }

  private static ExpertWeights.Expert map(ExpertWeights.Expert x, UnaryOperator<Tensor> f) {
    Weight gate = x.gate();
    return ExpertWeights.Expert.of(
            gate == null ? null : gate.withTensors(f),
            x.up().withTensors(f),
            x.down().withTensors(f))
        .withBias(map(x.gateBias(), f), map(x.upBias(), f), map(x.downBias(), f));
  }

  private static @Nullable Tensor map(@Nullable Tensor t, UnaryOperator<Tensor> f) {
    return t == null ? null : f.apply(t);
  }

  /** Bytes {@code from..to} of one memory that several tensors may share. */
  private record Range(long from, long to) {}

  /** A range, and where it has been copied to. */
  private record Copy(Range range, HostMemory memory) {}

  /**
   * Copies what lies in mapped files, byte for byte and with its strides; what several tensors
   * share is copied once.
   *
   * @param arena owns the copies
   * @return the weights without mapped memory
   */
  static MoeLayerWeights copyMapped(MoeLayerWeights weights, Arena arena) {
    Map<HostMemory, List<Range>> used = new LinkedHashMap<>();
    forEach(
        weights,
        t -> {
          if (isMapped(t)) {
            used.computeIfAbsent((HostMemory) t.memory(), _ -> new ArrayList<>()).add(range(t));
          }
        });
    Map<HostMemory, List<Copy>> copies = new LinkedHashMap<>();
    used.forEach((memory, ranges) -> {
      MemorySource source = Objects.requireNonNull(memory.source());
      source.requireIntact();
      copies.put(memory, merged(ranges).stream().map(r -> copy(memory, r, arena)).toList());
      source.requireIntact();
    });
    return map(
        weights, t -> isMapped(t) ? moved(t, copies.getOrDefault(t.memory(), List.of())) : t);
  }

  private static boolean isMapped(Tensor t) {
    return t.memory() instanceof HostMemory host && host.source() != null;
  }

  private static Range range(Tensor t) {
    long last = 0;
    for (int d = 0; d < t.dims(); d++) {
      last += (t.size(d) - 1) * t.stride(d);
    }
    long bytes = t.elementCount() == 0 ? 0 : t.dtype().byteSize(last + 1);
    return new Range(t.byteOffset() / ALIGNMENT * ALIGNMENT, t.byteOffset() + bytes);
  }

  private static List<Range> merged(List<Range> ranges) {
    List<Range> merged = new ArrayList<>();
    for (Range r : ranges.stream().sorted(Comparator.comparingLong(Range::from)).toList()) {
      Range last = merged.isEmpty() ? null : merged.getLast();
      if (last != null && r.from() <= last.to()) {
        merged.set(merged.size() - 1, new Range(last.from(), Math.max(last.to(), r.to())));
      } else {
        merged.add(r);
      }
    }
    return merged;
  }

  private static Copy copy(HostMemory memory, Range r, Arena arena) {
    MemorySegment to = arena.allocate(Math.max(1, r.to() - r.from()), ALIGNMENT);
    MemorySegment.copy(memory.segment(), r.from(), to, 0, r.to() - r.from());
    return new Copy(r, new HostMemory(to));
  }

  private static Tensor moved(Tensor t, List<Copy> copies) {
    Range r = range(t);
    Copy in =
        copies.stream()
            .filter(c -> c.range().from() <= r.from() && r.to() <= c.range().to())
            .findFirst()
            .orElseThrow();
    long[] strides = new long[t.dims()];
    for (int d = 0; d < strides.length; d++) {
      strides[d] = t.stride(d);
    }
    return Tensor.strided(
        t.dtype(), in.memory(), t.byteOffset() - in.range().from(), t.shape(), strides);
  }
}
