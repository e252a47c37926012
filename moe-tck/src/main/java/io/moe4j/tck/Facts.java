package io.moe4j.tck;

import static org.junit.jupiter.api.Assertions.assertEquals;

import io.moe4j.api.spi.Fact;
import java.util.List;
import java.util.Set;
import java.util.function.Supplier;
import java.util.stream.Collectors;

/** What {@code facts()} of experts and of a block have to hold. */
final class Facts {
  /** What {@link Fact} says that experts say. */
  private static final Set<String> OF_EXPERTS = Set.of("kernels", "weights", "threads");

  private Facts() {}

  /**
   * Fails unless the facts are the same before and after a call, each name once.
   *
   * @return them
   */
  static List<Fact> requireSame(Supplier<List<Fact>> facts, Runnable call) {
    List<Fact> before = ask(facts);
    call.run();
    assertEquals(before, ask(facts), "MOE-1.4: facts before and after a call");
    long names = before.stream().map(Fact::name).distinct().count();
    assertEquals(before.size(), names, () -> "MOE-1.4: names of " + before + " are not distinct");
    return before;
  }

  /** Fails if a block's facts stand where those of experts do. */
  static void requireNoneOfExperts(List<Fact> block) {
    List<String> taken =
        block.stream().map(Fact::name).filter(OF_EXPERTS::contains).collect(Collectors.toList());
    assertEquals(List.of(), taken, "MOE-1.4: a block's facts with names that experts use");
  }

  private static List<Fact> ask(Supplier<List<Fact>> facts) {
    try {
      return List.copyOf(facts.get());
    } catch (RuntimeException | Error e) {
      throw new AssertionError("MOE-1.4: facts() failed", e);
    }
  }
}
