package io.moe4j.checkpoint;

import io.moe4j.api.lora.LoraTarget;
import java.nio.file.Path;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;

/**
 * What became of an adapter: every tensor of its file, once.
 *
 * @param name the caller's name for it
 * @param directory where it is
 * @param config what adapter_config.json says
 * @param tensors one entry a tensor, in the order of the file
 * @param targets what is applied, by layer
 * @param notes remarks: padded ranks, missing experts, versions that contradict shapes
 */
public record AdapterReport(
    String name,
    Path directory,
    AdapterConfig config,
    List<TensorEntry> tensors,
    List<TargetEntry> targets,
    List<String> notes) {

  /** What became of a tensor. */
  public enum Disposition {
    /** It is part of the loaded adapter. */
    APPLIED,
    /** It is left out, by the policy. */
    SKIPPED,
    /** It keeps the adapter from loading. */
    REFUSED
  }

  /**
   * One tensor of the file.
   *
   * @param tensor its name
   * @param described dtype and shape, like {@code F32[64, 128]}
   * @param disposition what became of it
   * @param layer the MoE layer it is applied to, or empty
   * @param targets the linear maps it is applied to; empty if it is not
   * @param reason why it is not applied, or how it is
   */
  public record TensorEntry(
      String tensor,
      String described,
      Disposition disposition,
      Optional<Integer> layer,
      Set<LoraTarget> targets,
      String reason) {
    /**
     * Checks and copies the components.
     *
     * @param tensor its name
     * @param described dtype and shape
     * @param disposition what became of it
     * @param layer the layer or empty
     * @param targets copied
     * @param reason why or how
     */
    public TensorEntry {
      targets = Set.copyOf(targets);
    }
  }

  /**
   * One linear map that the adapter changes.
   *
   * @param layer layer index
   * @param target the linear map
   * @param rank its rank, of all experts (smaller ones are padded with zeros)
   * @param experts experts with factors of their own; 0 if it is no routed map
   * @param scale what is folded into B; for experts with different scales, that of the first
   * @param dtypes element types of A and B as loaded, like {@code BF16/F32}
   * @param bytes memory of its factors; memory shared with another target is counted once
   */
  public record TargetEntry(
      int layer,
      LoraTarget target,
      int rank,
      int experts,
      double scale,
      String dtypes,
      long bytes) {}

  /** Copies the lists. */
  public AdapterReport {
    tensors = List.copyOf(tensors);
    targets = List.copyOf(targets);
    notes = List.copyOf(notes);
  }

  /** {@return how many tensors met each fate} */
  public Map<Disposition, Integer> counts() {
    Map<Disposition, Integer> counts = new EnumMap<>(Disposition.class);
    for (Disposition d : Disposition.values()) {
      counts.put(d, 0);
    }
    tensors.forEach(t -> counts.merge(t.disposition(), 1, Integer::sum));
    return counts;
  }

  /** {@return whether nothing keeps the adapter from loading} */
  public boolean accepted() {
    return tensors.stream().noneMatch(t -> t.disposition() == Disposition.REFUSED);
  }

  /** {@return memory that the loaded factors take, in bytes} */
  public long bytes() {
    return targets.stream().mapToLong(TargetEntry::bytes).sum();
  }
}
