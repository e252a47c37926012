package io.moe4j.checkpoint;

import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterAssembler.Contribution;
import io.moe4j.checkpoint.AdapterPolicy.Action;
import io.moe4j.checkpoint.AdapterReport.Disposition;
import io.moe4j.checkpoint.AdapterReport.TensorEntry;
import java.util.Collection;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;

/** What became of every tensor of an adapter file, and whether that refuses the adapter. */
final class TensorAccount {
  /** Why a tensor is not applied: who decides what that means. */
  enum Fate {
    /** Refused whatever the policy. */
    DAMAGE,
    /** The policy decides for what is in a block. */
    IN_BLOCK,
    /** The policy decides for what is outside. */
    OUTSIDE,
    /** Left out whatever the policy. */
    SKIP;

    static Fate of(AdapterProblem problem) {
      return problem.isDamage() ? DAMAGE : IN_BLOCK;
    }
  }

  private final AdapterPolicy policy;
  private final Map<String, Tensor> stored;
  private final Map<String, TensorEntry> entries = new HashMap<>();
  private final Set<Fate> refusals = EnumSet.noneOf(Fate.class);
  private boolean leftOutOfBlocks;
  private Optional<String> promise = Optional.empty();

  /**
   * @param policy decides about what is not applied
   * @param stored the tensors as the file has them
   */
  TensorAccount(AdapterPolicy policy, Map<String, Tensor> stored) {
    this.policy = policy;
    this.stored = stored;
  }

  /** One entry a tensor, in the order of the names. */
  List<TensorEntry> entries(Collection<String> names) {
    return names.stream().map(this::entry).toList();
  }

  private TensorEntry entry(String tensor) {
    TensorEntry entry = entries.get(tensor);
    if (entry == null) {
      throw new IllegalStateException("tensor '" + tensor + "' was not accounted for");
    }
    return entry;
  }

  boolean isSettled(FactorPair pair) {
    return entries.containsKey(pair.name());
  }

  /** Whether nothing was refused, and nothing left out of a block. */
  boolean isComplete() {
    return refusals.isEmpty() && !leftOutOfBlocks;
  }

  /** The config promises what the file lacks. */
  void breakPromise(String reason) {
    if (policy.inBlock() == Action.REFUSE) {
      refusals.add(Fate.IN_BLOCK);
      promise = Optional.of(reason);
    }
  }

  /** What the config promises and the file lacks, if that refuses the adapter. */
  Optional<String> brokenPromise() {
    return promise;
  }

  /** Which policy would load the adapter; empty if it is not refused. */
  String advice() {
    if (refusals.isEmpty()) {
      return "";
    }
    if (refusals.contains(Fate.DAMAGE)) {
      return "no policy loads what is damaged";
    }
    return refusals.contains(Fate.IN_BLOCK)
        ? "AdapterPolicy.LENIENT loads the rest, which is another model than was trained"
        : "AdapterPolicy.DEFAULT leaves that out, which does not change the MoE blocks";
  }

  /** Both factors of a pair are not applied. */
  void leaveOut(FactorPair pair, Fate fate, String reason) {
    pair.names().forEach(name -> leaveOut(name, fate, reason));
  }

  /** A tensor is not applied. */
  void leaveOut(String tensor, Fate fate, String reason) {
    boolean refused =
        switch (fate) {
          case DAMAGE -> true;
          case IN_BLOCK -> policy.inBlock() == Action.REFUSE;
          case OUTSIDE -> policy.outside() == Action.REFUSE;
          case SKIP -> false;
        };
    if (refused) {
      refusals.add(fate);
    }
    leftOutOfBlocks |= fate == Fate.IN_BLOCK;
    entries.put(
        tensor,
        new TensorEntry(
            tensor,
            described(tensor),
            refused ? Disposition.REFUSED : Disposition.SKIPPED,
            Optional.empty(),
            Set.of(),
            reason));
  }

  /** Both factors of a pair are applied. */
  void apply(FactorPair pair, List<Contribution> found) {
    Set<LoraTarget> targets = EnumSet.noneOf(LoraTarget.class);
    found.forEach(c -> targets.add(c.target()));
    Contribution first = found.getFirst();
    String how = "rank " + first.rank() + ", scale " + AdapterScales.text(first.scale());
    for (String name : pair.names()) {
      entries.put(
          name,
          new TensorEntry(
              name,
              described(name),
              Disposition.APPLIED,
              Optional.of(first.layer()),
              targets,
              how));
    }
  }

  /** A factor that was lent fares as the pairs it completes. */
  void lent(FactorPair lender) {
    List<TensorEntry> fates = lender.borrowers.stream().map(p -> entry(p.name())).toList();
    TensorEntry fate =
        fates.stream()
            .filter(e -> e.disposition() == Disposition.APPLIED)
            .findFirst()
            .orElse(fates.getFirst());
    Set<LoraTarget> targets = EnumSet.noneOf(LoraTarget.class);
    fates.forEach(e -> targets.addAll(e.targets()));
    entries.put(
        lender.name(),
        new TensorEntry(
            lender.name(),
            described(lender.name()),
            fate.disposition(),
            fate.layer(),
            targets,
            fate.reason() + ", shared by " + fates.size() + " modules"));
  }

  private String described(String tensor) {
    return stored.containsKey(tensor) ? String.valueOf(stored.get(tensor)) : "not read";
  }
}
