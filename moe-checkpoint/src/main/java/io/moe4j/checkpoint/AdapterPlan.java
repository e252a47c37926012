package io.moe4j.checkpoint;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterAssembler.Contribution;
import io.moe4j.checkpoint.AdapterReport.TensorEntry;
import io.moe4j.checkpoint.TensorAccount.Fate;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.Set;

/**
 * Decides about every tensor of an adapter file: which pairs become {@link Contribution}s, what is
 * skipped or refused and why. {@link TensorAccount} keeps what was decided.
 */
final class AdapterPlan {
  private final AdapterConfig config;
  private final AdapterTargetModel model;
  private final AdapterPolicy policy;
  private final AdapterTensors tensors;
  private final ModulePlaces places;
  private final WrapperResolver wrappers;
  private final PairResolver resolver;
  private final TensorAccount account;
  private final Map<String, FactorPair> pairs = new LinkedHashMap<>();
  private final Map<String, String> spoiled = new HashMap<>();
  private final Map<FactorPair, List<Contribution>> contributions = new LinkedHashMap<>();
  private final LinkedHashSet<String> notes = new LinkedHashSet<>();

  AdapterPlan(
      AdapterConfig config,
      AdapterTargetModel model,
      AdapterPolicy policy,
      AdapterTensors tensors,
      String where) {
    this.config = config;
    this.model = model;
    this.policy = policy;
    this.tensors = tensors;
    this.places =
        new ModulePlaces(
            model,
            config.form(),
            tensors.keys().values().stream().map(AdapterKey::module).toList());
    AdapterScales scales = new AdapterScales(config, where, notes);
    this.wrappers = new WrapperResolver(config, model, policy, scales, notes);
    this.resolver = new PairResolver(model, policy, scales, wrappers);
    this.account = new TensorAccount(policy, tensors.stored());
  }

  /** One entry a tensor, in the order of the file. */
  List<TensorEntry> entries() {
    return account.entries(tensors.keys().keySet());
  }

  List<Contribution> contributions() {
    return contributions.values().stream().flatMap(List::stream).toList();
  }

  Set<String> notes() {
    return notes;
  }

  /** Which policy would load the adapter; empty if it is not refused. */
  String advice() {
    return account.advice();
  }

  /** What the config promises and the file lacks, if that refuses the adapter. */
  Optional<String> brokenPromise() {
    return account.brokenPromise();
  }

  void run() {
    collect();
    SharedFactors.lend(pairs.values());
    for (FactorPair pair : pairs.values()) {
      if (pair.isEmpty()) {
        leaveOutEmpty(pair);
      } else if (pair.isTooLarge()) {
        account.leaveOut(pair, Fate.DAMAGE, "a side of its factors is over " + Integer.MAX_VALUE);
      } else if (pair.place instanceof ModulePlace.Wrapper wrapper) {
        attempt(
            pair,
            () -> {
              requireApplicable(pair);
              wrappers.add(wrapper, pair);
            });
      }
    }
    wrappers.settle();
    for (FactorPair pair : pairs.values()) {
      if (!account.isSettled(pair) && pair.borrowers.isEmpty()) {
        attempt(pair, () -> resolve(pair));
      }
    }
    for (FactorPair pair : pairs.values()) {
      if (!pair.borrowers.isEmpty()) {
        account.lent(pair);
      }
    }
    // What is in a block and left out for other reasons may be what is missing.
    if (account.isComplete()) {
      PromisedTensors.missing(config, model, wrappers, contributions())
          .ifPresent(reason -> {
            notes.add(reason);
            account.breakPromise(reason);
          });
    }
  }

  /** Nothing for a module that the model lacks is harmless; nothing for one it has is damage. */
  private void leaveOutEmpty(FactorPair pair) {
    if (places.isAbsent(pair.module, pair.place)) {
      account.leaveOut(pair, Fate.SKIP, "an empty placeholder for what the model lacks");
    } else if (pair.place instanceof ModulePlace.Unappliable u) {
      account.leaveOut(pair, Fate.IN_BLOCK, u.reason());
    } else {
      account.leaveOut(
          pair,
          Fate.DAMAGE,
          "its factors are empty, [0]: a file saved under DeepSpeed ZeRO-3 or FSDP without gathering"
              + " the parameters looks like this");
    }
  }

  /**
   * Refuses pairs with NaN or infinite values. Reads every element, so it comes after the shapes
   * and what they will take have been checked.
   */
  void requireFinite() {
    if (!contributions.isEmpty()
        && contributions().stream().map(Contribution::b).allMatch(FactorPacker::isZero)) {
      notes.add(
          "every lora_B is zero, so this adapter changes nothing: it was not trained, or was saved"
              + " before it was");
    }
    Map<String, Boolean> finite = new HashMap<>();
    for (FactorPair pair : List.copyOf(contributions.keySet())) {
      if (!isFinite(pair, finite) || (pair.lender != null && !isFinite(pair.lender, finite))) {
        contributions.remove(pair);
        String reason = "it holds NaN or infinite values";
        account.leaveOut(pair, Fate.DAMAGE, reason);
        if (pair.lender != null) {
          account.leaveOut(pair.lender, Fate.DAMAGE, reason);
        }
      }
    }
  }

  private boolean isFinite(FactorPair pair, Map<String, Boolean> known) {
    return pair.names().stream()
        .allMatch(name ->
            known.computeIfAbsent(
                name,
                n -> FactorPacker.isFinite(Objects.requireNonNull(tensors.stored().get(n), n))));
  }

  private void collect() {
    Map<String, ModulePlace> found = new HashMap<>();
    int emptyOutside = 0;
    for (AdapterKey key : tensors.keys().values()) {
      String tensor = key.tensor();
      ModulePlace place = found.computeIfAbsent(key.module(), places::find);
      boolean factor = key.part() == AdapterKey.Part.A || key.part() == AdapterKey.Part.B;
      if (place instanceof ModulePlace.Outside outside) {
        account.leaveOut(tensor, Fate.OUTSIDE, outside.reason());
        Tensor t = tensors.stored().get(tensor);
        emptyOutside += factor && t != null && t.elementCount() == 0 ? 1 : 0;
      } else if (tensors.unreadable().containsKey(tensor)) {
        account.leaveOut(tensor, Fate.DAMAGE, "it " + tensors.unreadable().get(tensor));
        spoiled.put(key.module(), "a tensor that cannot be read");
      } else if (factor) {
        addFactor(pairs.computeIfAbsent(key.module(), m -> new FactorPair(m, place)), key);
      } else {
        String reason =
            switch (key.part()) {
              case MAGNITUDE -> "a DoRA magnitude vector";
              case LORA_BIAS -> "a bias on a LoRA factor (lora_bias)";
              case EMBEDDING -> "embedding factors in a MoE block";
              case FOREIGN -> foreign();
              default -> "a weight or bias of the block itself (modules_to_save or bias)";
            };
        spoiled.put(key.module(), reason);
        account.leaveOut(tensor, Fate.IN_BLOCK, reason);
      }
    }
    if (emptyOutside > 0) {
      notes.add(
          emptyOutside
              + " factors outside the MoE blocks are empty; the file may have been saved without"
              + " gathering the parameters");
    }
  }

  private String foreign() {
    return switch (config.form()) {
      case PEFT ->
          "a factor under a trainer's own name; accepted are NAME.lora_A and NAME.lora_B as PEFT"
              + " writes them: export the adapter in PEFT's form";
      case MLX ->
          "a factor under a name that mlx-lm does not write; accepted are NAME.lora_a and"
              + " NAME.lora_b";
    };
  }

  private void addFactor(FactorPair pair, AdapterKey key) {
    Tensor tensor = tensors.factors().get(key.tensor());
    pair.turned |= config.form() == AdapterConfig.Form.MLX && tensor != null && tensor.dims() == 2;
    boolean isA = key.part() == AdapterKey.Part.A;
    if ((isA ? pair.aName : pair.bName) != null) {
      account.leaveOut(
          key.tensor(), Fate.DAMAGE, "a second lora_" + key.part() + " for " + pair.source());
    } else if (isA) {
      pair.aName = key.tensor();
      pair.a = tensor;
    } else {
      pair.bName = key.tensor();
      pair.b = tensor;
    }
  }

  /** A step that may find a problem. */
  private interface Step {
    void run() throws AdapterProblem;
  }

  private void attempt(FactorPair pair, Step step) {
    try {
      step.run();
    } catch (AdapterProblem p) {
      account.leaveOut(pair, Fate.of(p), p.reason());
    }
  }

  /** What holds for every pair in a block, before its shapes are looked at. */
  private void requireApplicable(FactorPair pair) throws AdapterProblem {
    if (pair.place instanceof ModulePlace.Unappliable u) {
      throw AdapterProblem.unappliable(u.reason());
    }
    if (pair.place instanceof ModulePlace.Router && !policy.applyRouter()) {
      throw AdapterProblem.unappliable(
          "the router; changing it changes who computes a token, which"
              + " AdapterPolicy.withRouter(true) allows");
    }
    for (Tensor t : List.of(pair.a(), pair.b())) {
      if (t.dtype() != DType.F32 && t.dtype() != DType.BF16 && t.dtype() != DType.F16) {
        throw AdapterProblem.damage(
            "its factors are " + t.dtype() + "; accepted are F32, BF16 and F16");
      }
    }
    if (config.form() == AdapterConfig.Form.MLX) {
      MlxFactors.requireWritten(pair);
    }
    if (!config.variants().isEmpty()) {
      throw AdapterProblem.unappliable(
          "the adapter uses " + String.join(", ", config.variants()) + ", not plain LoRA");
    }
    String reason = spoiled.get(pair.module);
    if (reason == null && pair.lender != null) {
      reason = spoiled.get(pair.lender.module);
    }
    if (reason != null) {
      throw AdapterProblem.unappliable("its module has " + reason);
    }
  }

  private void resolve(FactorPair pair) throws AdapterProblem {
    requireApplicable(pair);
    List<Contribution> found = resolver.resolve(pair);
    contributions.put(pair, found);
    account.apply(pair, found);
  }
}
