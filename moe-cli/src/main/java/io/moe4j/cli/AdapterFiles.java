package io.moe4j.cli;

import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.checkpoint.AdapterPolicy;
import io.moe4j.checkpoint.AdapterReport;
import io.moe4j.checkpoint.AdapterReport.Disposition;
import io.moe4j.checkpoint.AdapterTargetModel;
import io.moe4j.checkpoint.LoadProgress;
import io.moe4j.checkpoint.PeftAdapter;
import io.moe4j.checkpoint.TensorParallel;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The adapters of one run: {@code NAME=DIR} options, loaded. */
final class AdapterFiles implements AutoCloseable {
  /** What {@code --policy} takes. */
  enum Policy {
    /** Refuse what would change the MoE block's result and cannot be applied; report the rest. */
    DEFAULT,
    /** Refuse whatever cannot be applied. */
    STRICT,
    /** Apply what can be applied, report the rest. */
    LENIENT;

    AdapterPolicy policy() {
      return switch (this) {
        case DEFAULT -> AdapterPolicy.DEFAULT;
        case STRICT -> AdapterPolicy.STRICT;
        case LENIENT -> AdapterPolicy.LENIENT;
      };
    }

    @Override
    public String toString() {
      return name().toLowerCase(java.util.Locale.ROOT);
    }
  }

  private static final int MAX_REASONS = 3;

  private final Arena arena = Arena.ofShared();
  private final List<PeftAdapter> loaded = new ArrayList<>();

  private AdapterFiles() {}

  /** Splits {@code NAME=DIR} options, in their order; names are distinct and not {@code base}. */
  static Map<String, Path> parse(List<String> options) {
    Map<String, Path> named = new LinkedHashMap<>();
    for (String option : options) {
      int equals = option.indexOf('=');
      String name = equals > 0 ? option.substring(0, equals).strip() : "";
      if (name.isEmpty() || equals == option.length() - 1) {
        throw CliException.usage(
            "--adapter is \"" + option + "\", must be NAME=DIR, like sql=adapters/sql");
      }
      if (name.equals(RunInput.BASE) || name.contains(",")) {
        throw CliException.usage(
            "--adapter is named \""
                + name
                + "\"; a name has no comma and is not "
                + RunInput.BASE
                + ", which means no adapter");
      }
      if (named.put(name, Path.of(option.substring(equals + 1))) != null) {
        throw CliException.usage("--adapter names \"" + name + "\" twice");
      }
    }
    return named;
  }

  static AdapterFiles load(
      Moe moe, Map<String, Path> directories, AdapterTargetModel model, AdapterPolicy policy) {
    AdapterFiles files = new AdapterFiles();
    try (Progress progress = Progress.start(moe, "Loading adapters", directories.size())) {
      directories.forEach((name, directory) -> {
        progress.doing(name);
        RunInput.requireDirectory("--adapter " + name + ":", directory);
        files.loaded.add(
            PeftAdapter.load(directory, name, model, policy, files.arena, LoadProgress.NONE));
        progress.step();
      });
      return files;
    } catch (RuntimeException e) {
      files.close();
      throw e;
    }
  }

  List<LoraAdapter> adapters() {
    return loaded.stream().map(PeftAdapter::adapter).toList();
  }

  /** Those of one of several ranks. */
  List<LoraAdapter> adapters(ExpertMap experts, ParallelConfig rank) {
    return loaded.stream()
        .map(a -> TensorParallel.of(rank).adapter(a.localExperts(experts)))
        .toList();
  }

  List<String> names() {
    return adapters().stream().map(LoraAdapter::name).toList();
  }

  List<AdapterReport> reports() {
    return loaded.stream().map(PeftAdapter::report).toList();
  }

  /** What is to be told of each adapter that was not applied as a whole. */
  List<String> remarks() {
    List<String> remarks = new ArrayList<>();
    for (AdapterReport r : reports()) {
      Map<String, Integer> skipped = new LinkedHashMap<>();
      r.tensors().stream()
          .filter(t -> t.disposition() != Disposition.APPLIED)
          .forEach(t -> skipped.merge(t.reason(), 1, Integer::sum));
      if (!skipped.isEmpty()) {
        List<String> reasons = new ArrayList<>();
        skipped.entrySet().stream()
            .limit(MAX_REASONS)
            .forEach(e -> reasons.add(e.getValue() + " " + AdapterOptions.inOptions(e.getKey())));
        if (skipped.size() > MAX_REASONS) {
          reasons.add("and more");
        }
        remarks.add(
            "adapter "
                + r.name()
                + ": "
                + skipped.values().stream().mapToInt(Integer::intValue).sum()
                + " of "
                + r.tensors().size()
                + " tensors were left out (moe inspect lists them): "
                + String.join("; ", reasons));
      }
      r.notes().stream()
          .filter(n -> !r.targets().isEmpty() || !n.startsWith("nothing in this adapter"))
          .forEach(n -> remarks.add("adapter " + r.name() + ": " + AdapterOptions.inOptions(n)));
      if (r.targets().isEmpty()) {
        remarks.add("adapter " + r.name() + " changes no MoE layer of this model");
      }
    }
    return remarks;
  }

  @Override
  public void close() {
    arena.close();
  }
}
