package io.moe4j.checkpoint;

import io.moe4j.api.AdapterException;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.checkpoint.AdapterReport.Disposition;
import io.moe4j.checkpoint.AdapterReport.TensorEntry;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * A LoRA adapter from a directory as PEFT writes it ({@code adapter_config.json} and {@code
 * adapter_model.safetensors}), loaded for one model: per-expert 2-D factors, fused experts of every
 * PEFT version, factors shared across experts, shared experts and latent projections. Scales are
 * folded into B. Factors are copied, so the files may change or vanish afterwards.
 *
 * <p>What other trainers write under PEFT's file names is read as well: all experts in three
 * dimensions ({@code experts.w1}, {@code experts.gate_up_proj}, or the names of PEFT's wrappers),
 * factors that all experts share apart from their partners ({@code experts.gate_proj.lora_A} beside
 * {@code experts.3.gate_proj.lora_B}), lists of modules ({@code experts.gate_up_projs.3}).
 *
 * <p>So are mlx-lm's own files ({@code adapters.safetensors}), whose factors are turned into PEFT's
 * orientation.
 *
 * <p>Every tensor of the file is applied, skipped or refused, and {@link #report()} says which.
 *
 * @param adapter what it does to each layer; experts are global, see {@link #localExperts}
 * @param report the account of the file
 */
public record PeftAdapter(LoraAdapter adapter, AdapterReport report) {
  /**
   * Loads an adapter for a checkpoint; memory lives as long as it is reachable.
   *
   * @param directory the adapter's directory
   * @param name the caller's name for it
   * @param checkpoint the model
   * @param policy what to do with what cannot be applied
   * @return the adapter
   * @throws CheckpointException if a file is missing or damaged
   * @throws AdapterException if the content is not what the model takes, or the policy refuses it
   *     ({@link AdapterRefusedException} then carries the report)
   */
  public static PeftAdapter load(
      Path directory, String name, MoeCheckpoint checkpoint, AdapterPolicy policy) {
    return load(directory, name, checkpoint.adapterTarget(), policy);
  }

  /**
   * Loads an adapter for a model that is described; memory lives as long as it is reachable.
   *
   * @param directory the adapter's directory
   * @param name the caller's name for it
   * @param model names and sizes of the model
   * @param policy what to do with what cannot be applied
   * @return the adapter
   * @throws CheckpointException if a file is missing or damaged
   * @throws AdapterException if the content is not what the model takes, or the policy refuses it
   */
  public static PeftAdapter load(
      Path directory, String name, AdapterTargetModel model, AdapterPolicy policy) {
    return load(directory, name, model, policy, Arena.ofAuto(), LoadProgress.NONE);
  }

  /**
   * Loads an adapter into memory of the caller's.
   *
   * @param directory the adapter's directory
   * @param name the caller's name for it
   * @param model names and sizes of the model
   * @param policy what to do with what cannot be applied
   * @param arena gets the factors; must outlive the adapter
   * @param progress told about each layer
   * @return the adapter
   * @throws CheckpointException if a file is missing or damaged
   * @throws AdapterException if the content is not what the model takes, or the policy refuses it
   */
  public static PeftAdapter load(
      Path directory,
      String name,
      AdapterTargetModel model,
      AdapterPolicy policy,
      Arena arena,
      LoadProgress progress) {
    return ReadFault.guard(
        directory, () -> read(directory, name, model, policy, arena, progress, true));
  }

  /**
   * Says what would become of an adapter, without refusing anything but damaged files.
   *
   * @param directory the adapter's directory
   * @param model names and sizes of the model
   * @param policy what to do with what cannot be applied
   * @return the account; {@link AdapterReport#accepted()} tells whether it would load
   * @throws CheckpointException if a file is missing or damaged
   * @throws AdapterException if it is no LoRA adapter, or loading would exceed a limit
   */
  public static AdapterReport inspect(
      Path directory, AdapterTargetModel model, AdapterPolicy policy) {
    String name = String.valueOf(directory.toAbsolutePath().normalize().getFileName());
    try (Arena arena = Arena.ofShared()) {
      return ReadFault.guard(
          directory,
          () -> read(directory, name, model, policy, arena, LoadProgress.NONE, false).report());
    }
  }

  private static PeftAdapter read(
      Path directory,
      String name,
      AdapterTargetModel model,
      AdapterPolicy policy,
      Arena arena,
      LoadProgress progress,
      boolean refuse) {
    AdapterConfig config = AdapterConfig.read(directory);
    try (Arena files = Arena.ofShared()) {
      ShardedTensors file = AdapterWeights.open(directory, config.form(), files);
      if (file.tensors().isEmpty() && file.problems().isEmpty()) {
        throw new CheckpointException(
            directory
                + ": the adapter's weights hold no tensor at all; a file saved under DeepSpeed ZeRO-3"
                + " or FSDP without gathering the parameters looks like this");
      }
      AdapterPlan plan =
          new AdapterPlan(
              config,
              model,
              policy,
              AdapterTensors.of(config.form(), file),
              directory.resolve(AdapterConfig.FILE).toString());
      plan.run();
      Account account = new Account(directory, name, config);
      if (refuse) {
        account.requireAccepted(plan);
      }
      new AdapterAssembler(name, directory, plan.contributions())
          .requireBytes(model.layers(), policy, file.bytes());
      plan.requireFinite();
      if (refuse) {
        account.requireAccepted(plan);
      }
      List<TensorEntry> entries = plan.entries();
      AdapterAssembler assembler = new AdapterAssembler(name, directory, plan.contributions());
      LoraAdapter adapter = assembler.assemble(model.layers(), arena, progress);
      Set<String> notes = new LinkedHashSet<>(plan.notes());
      notes.addAll(file.notes());
      notes.addAll(assembler.notes());
      if (adapter.layers().isEmpty()) {
        notes.add("nothing in this adapter changes a MoE block of this model");
      }
      return new PeftAdapter(
          adapter,
          new AdapterReport(
              name,
              directory,
              config,
              entries,
              assembler.targets(),
              List.copyOf(notes),
              plan.advice()));
    }
  }

  /** Whose report it is. */
  private record Account(Path directory, String name, AdapterConfig config) {
    void requireAccepted(AdapterPlan plan) {
      List<TensorEntry> entries = plan.entries();
      if (!plan.advice().isEmpty()) {
        AdapterReport report =
            new AdapterReport(
                name,
                directory,
                config,
                entries,
                List.of(),
                List.copyOf(plan.notes()),
                plan.advice());
        throw new AdapterRefusedException(
            plan.brokenPromise()
                .map(p ->
                    "adapter '%s' (%s) is refused: %s; %s"
                        .formatted(name, directory, p, report.advice()))
                .orElseGet(() -> refusal(report)),
            report);
      }
    }
  }

  private static String refusal(AdapterReport report) {
    Map<String, List<String>> byReason = new LinkedHashMap<>();
    int refused = 0;
    for (TensorEntry e : report.tensors()) {
      if (e.disposition() == Disposition.REFUSED) {
        refused++;
        byReason.computeIfAbsent(e.reason(), r -> new ArrayList<>()).add(e.tensor());
      }
    }
    StringBuilder message =
        new StringBuilder(
            "adapter '%s' (%s) is refused for %d of its %d tensors: "
                .formatted(report.name(), report.directory(), refused, report.tensors().size()));
    byReason.entrySet().stream()
        .limit(3)
        .forEach(e ->
            message
                .append(e.getKey())
                .append(" (")
                .append(StrictJson.shorten(e.getValue().getFirst()))
                .append(
                    e.getValue().size() == 1 ? "" : " and " + (e.getValue().size() - 1) + " more")
                .append("); "));
    if (byReason.size() > 3) {
      message.append(byReason.size() - 3).append(" further reasons are in the report; ");
    }
    return message.append(report.advice()).toString();
  }

  /**
   * The adapter for one rank's experts.
   *
   * @param expertMap which experts are local, and in which order
   * @return an adapter whose routed factors are in local order; views where the local experts are
   *     neighbours, else copies
   */
  public LoraAdapter localExperts(ExpertMap expertMap) {
    return LocalExperts.slice(adapter, expertMap);
  }
}
