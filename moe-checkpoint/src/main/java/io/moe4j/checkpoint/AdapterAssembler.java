package io.moe4j.checkpoint;

import io.moe4j.api.AdapterException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumMap;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Function;

/** Packs contributions from a file into the factors of a {@link LoraAdapter}. */
final class AdapterAssembler {
  /** Adapters that take no more may have grown as they like. */
  private static final double UNQUESTIONED_BYTES = 1L << 30;

  /** All experts at once. */
  static final int ALL = -1;

  /**
   * Factors of one linear map, as views of the file.
   *
   * @param layer layer index
   * @param target the linear map
   * @param expert global expert, or {@link #ALL}
   * @param a {@code [E or 1, r, in]}; the same object for gate and up of one pair, which then share
   *     the packed memory
   * @param b {@code [E or 1, out, r]}
   * @param scale to be folded into B
   * @param source names of the tensors, for messages
   */
  record Contribution(
      int layer, LoraTarget target, int expert, Tensor a, Tensor b, double scale, String source) {
    int rank() {
      return Math.toIntExact(a.size(1));
    }
  }

  private final String name;
  private final String who;
  private final Map<Integer, Map<LoraTarget, List<Contribution>>> byPlace = new TreeMap<>();
  private final List<String> notes = new ArrayList<>();
  private final List<AdapterReport.TargetEntry> targets = new ArrayList<>();

  /**
   * @param name the caller's name for the adapter
   * @param directory where it is, for messages
   * @param contributions what it holds
   */
  AdapterAssembler(String name, Path directory, List<Contribution> contributions) {
    this.name = name;
    this.who = "adapter '" + name + "' (" + directory + ")";
    for (Contribution c : contributions) {
      byPlace
          .computeIfAbsent(c.layer(), l -> new EnumMap<>(LoraTarget.class))
          .computeIfAbsent(c.target(), t -> new ArrayList<>())
          .add(c);
    }
  }

  List<String> notes() {
    return notes;
  }

  List<AdapterReport.TargetEntry> targets() {
    return targets;
  }

  /**
   * Copies everything.
   *
   * @param configs the model's layers
   * @param arena gets the memory
   * @param progress told about each layer
   */
  LoraAdapter assemble(Map<Integer, MoeConfig> configs, Arena arena, LoadProgress progress) {
    Map<Integer, LoraLayer> layers = new TreeMap<>();
    for (Map.Entry<Integer, Map<LoraTarget, List<Contribution>>> e : byPlace.entrySet()) {
      MoeConfig config = configs.get(e.getKey());
      if (config == null) {
        throw new IllegalStateException("layer " + e.getKey() + " has no config");
      }
      IdentityHashMap<Tensor, Tensor> packedA = new IdentityHashMap<>();
      Map<LoraTarget, LoraFactors> factors = new EnumMap<>(LoraTarget.class);
      e.getValue()
          .forEach((target, list) -> {
            boolean sharedA =
                list.getFirst().expert() == ALL && packedA.containsKey(list.getFirst().a());
            LoraFactors packed = pack(target, list, config.numExperts(), packedA, arena);
            factors.put(target, packed);
            targets.add(entry(list, packed, sharedA));
          });
      layers.put(e.getKey(), new LoraLayer(factors));
      progress.onProgress("adapter '" + name + "'", layers.size(), byPlace.size());
    }
    return new LoraAdapter(name, layers);
  }

  /**
   * Checks what the factors will take, before anything is read or taken.
   *
   * @param configs the model's layers
   * @param policy the limits
   * @param fileBytes what the adapter takes as a file
   */
  void requireBytes(Map<Integer, MoeConfig> configs, AdapterPolicy policy, long fileBytes) {
    long maxBytes = policy.maxBytes();
    double bytes = 0;
    for (Map.Entry<Integer, Map<LoraTarget, List<Contribution>>> e : byPlace.entrySet()) {
      MoeConfig config = configs.get(e.getKey());
      for (Map.Entry<LoraTarget, List<Contribution>> t : e.getValue().entrySet()) {
        double experts = t.getKey().isRouted() && config != null ? config.numExperts() : 1;
        double rank = t.getValue().stream().mapToInt(Contribution::rank).max().orElse(0);
        Contribution any = t.getValue().getFirst();
        bytes += experts * rank * (any.a().size(2) + any.b().size(1)) * Float.BYTES;
      }
    }
    if (bytes > maxBytes) {
      throw new AdapterException(
          "%s would take up to %.0f bytes in memory; the policy's maxBytes is %d"
              .formatted(who, bytes, maxBytes));
    }
    double growth = bytes / Math.max(1, fileBytes);
    if (bytes > UNQUESTIONED_BYTES && growth > policy.maxGrowth()) {
      throw new AdapterException(
          ("%s has %d bytes and would take up to %.0f in memory, %.0f times as much (it has"
                  + " factors for few of the experts, and memory is taken for all); the policy's"
                  + " maxGrowth is %d")
              .formatted(who, fileBytes, bytes, growth, policy.maxGrowth()));
    }
  }

  private static AdapterReport.TargetEntry entry(
      List<Contribution> list, LoraFactors packed, boolean sharedA) {
    Contribution first = list.getFirst();
    int experts = first.expert() != ALL ? list.size() : packed.numExperts();
    long bytes = (sharedA ? 0 : bytes(packed.a())) + bytes(packed.b());
    return new AdapterReport.TargetEntry(
        first.layer(),
        first.target(),
        packed.rank(),
        first.target().isRouted() ? experts : 0,
        first.scale(),
        packed.a().dtype() + "/" + packed.b().dtype(),
        bytes);
  }

  private static long bytes(Tensor t) {
    return t.dtype().byteSize(t.elementCount());
  }

  private LoraFactors pack(
      LoraTarget target,
      List<Contribution> list,
      int numExperts,
      IdentityHashMap<Tensor, Tensor> packedA,
      Arena arena) {
    if (list.getFirst().expert() == ALL) {
      return packWhole(list.getFirst(), packedA, arena);
    }
    return packExperts(target, list, numExperts, arena);
  }

  private LoraFactors packWhole(
      Contribution c, IdentityHashMap<Tensor, Tensor> packedA, Arena arena) {
    Tensor a = packedA.get(c.a());
    if (a == null) {
      a = FactorPacker.allocate(arena, c.a().dtype(), c.a().shape());
      requireFinite(FactorPacker.copy(c.a(), a, 1), c);
      packedA.put(c.a(), a);
    }
    DType dtype = FactorPacker.scalesExactly(c.b(), c.scale()) ? c.b().dtype() : DType.F32;
    Tensor b = FactorPacker.allocateB(arena, dtype, c.b().size(0), c.b().size(1), c.b().size(2));
    requireFinite(FactorPacker.copy(c.b(), b, c.scale()), c);
    return new LoraFactors(a, b);
  }

  private LoraFactors packExperts(
      LoraTarget target, List<Contribution> list, int numExperts, Arena arena) {
    Contribution first = list.getFirst();
    int rank = list.stream().mapToInt(Contribution::rank).max().orElseThrow();
    int smallest = list.stream().mapToInt(Contribution::rank).min().orElseThrow();
    if (smallest != rank) {
      notes.add(
          "layer %d %s: experts have ranks %d to %d, padded with zeros to %d"
              .formatted(first.layer(), target, smallest, rank, rank));
    }
    if (list.size() < numExperts) {
      notes.add(
          "layer %d %s: factors for %d of %d experts, no change to the others"
              .formatted(first.layer(), target, list.size(), numExperts));
    }
    DType aDtype = common(list, c -> c.a().dtype());
    DType bDtype = common(list, c -> c.b().dtype());
    for (Contribution c : list) {
      if (!FactorPacker.scalesExactly(c.b(), c.scale())) {
        bDtype = DType.F32;
        break;
      }
    }
    // One factor that all experts borrow stays one; experts without the other still get no delta.
    boolean oneA = isOne(list, Contribution::a);
    boolean oneB =
        !oneA
            && isOne(list, Contribution::b)
            && list.stream().allMatch(c -> c.scale() == first.scale());
    Tensor a = FactorPacker.allocate(arena, aDtype, oneA ? 1 : numExperts, rank, first.a().size(2));
    Tensor b =
        FactorPacker.allocateB(arena, bDtype, oneB ? 1 : numExperts, first.b().size(1), rank);
    for (Contribution c : list) {
      Tensor toA = a.narrow(0, oneA ? 0 : c.expert(), 1);
      Tensor toB = b.narrow(0, oneB ? 0 : c.expert(), 1);
      requireFinite(FactorPacker.copy(c.a(), toA, 1), c);
      requireFinite(FactorPacker.copy(c.b(), toB, c.scale()), c);
    }
    return new LoraFactors(a, b);
  }

  /** Whether all experts have the same stretch of the file for a factor. */
  private static boolean isOne(List<Contribution> list, Function<Contribution, Tensor> of) {
    Tensor first = of.apply(list.getFirst());
    return list.size() > 1
        && list.stream()
            .map(of)
            .allMatch(t ->
                t.memory().equals(first.memory())
                    && t.byteOffset() == first.byteOffset()
                    && Arrays.equals(t.shape(), first.shape()));
  }

  private static DType common(List<Contribution> list, Function<Contribution, DType> of) {
    DType first = of.apply(list.getFirst());
    return list.stream().allMatch(c -> of.apply(c) == first) ? first : DType.F32;
  }

  private void requireFinite(boolean finite, Contribution c) {
    if (!finite) {
      throw new AdapterException(
          who
              + ": "
              + c.source()
              + " holds NaN or infinite values, or becomes infinite with its scale "
              + c.scale());
    }
  }
}
