package io.moe4j.tck;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.device.Device;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.spi.ExpertExchange;
import io.moe4j.api.spi.ExpertExchangeProvider;
import io.moe4j.api.spi.Support;
import java.time.Duration;
import java.util.List;
import java.util.Objects;
import java.util.ServiceLoader;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestInstance;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * What an {@link ExpertExchange} has to hold: extend this class, say which provider. Each rank runs
 * on a thread of its own and computes its experts with the float64 reference; what comes back is
 * compared with one rank that has all experts and all tokens. Rules MOE-10.x of {@link
 * io.moe4j.api.spi}.
 *
 * <p>Sizes of groups, formats and dtypes that the provider refuses are skipped as {@code
 * unsupported}; it must support something.
 *
 * @since 0.2.0
 */
@TestInstance(TestInstance.Lifecycle.PER_CLASS)
public abstract class ExchangeConformanceTest {
  private final Skipped skipped = new Skipped();
  private @Nullable ExpertExchangeProvider opened;

  /** For subclasses. */
  protected ExchangeConformanceTest() {}

  /** {@return who makes the exchanges under test} */
  protected abstract ExpertExchangeProvider provider();

  /**
   * Makes a group; by default threads of this JVM over host memory.
   *
   * @param size its ranks
   * @param deadline how long a call may wait for the others
   * @return one entry a rank, in order; the kit closes them
   */
  protected List<KitRank> openGroup(int size, Duration deadline) {
    return Ranks.inProcess(size, deadline);
  }

  /** {@return the sizes of groups that are tried} */
  protected List<Integer> sizes() {
    return List.of(1, 2, 3, 4);
  }

  /**
   * {@return the operations that exchanges may use; by default those that a services file on the
   * class path names for the device, and the reference's for the host without any}
   *
   * @param device of a rank
   */
  protected BlockOpsProvider blockOps(Device device) {
    return ServiceLoader.load(BlockOpsProvider.class).stream()
        .map(ServiceLoader.Provider::get)
        .filter(p -> p.deviceType().equals(device.info().id().type()))
        .findFirst()
        .orElseGet(ExchangeRank::referenceBlockOps);
  }

  /** Asks for the provider. */
  @BeforeAll
  public final void openKit() {
    opened = provider();
  }

  /** Says what was skipped. */
  @AfterAll
  public final void closeKit() {
    if (opened != null) {
      skipped.print(opened.name());
    }
  }

  private ExpertExchangeProvider subject() {
    return Objects.requireNonNull(opened, "the provider is not open");
  }

  private Ranks open(int size, Duration deadline) {
    Ranks ranks = new Ranks(openGroup(size, deadline));
    if (ranks.size() != size) {
      ranks.close();
      Assumptions.abort("skipped: " + size + " ranks, the machine has room for " + ranks.size());
    }
    return ranks;
  }

  private Support ask(ExchangeCases.ExchangeCase c, int rank, @Nullable Communicator communicator) {
    try {
      return subject().isSupported(c.config(rank), communicator);
    } catch (RuntimeException | LinkageError e) {
      throw new AssertionError("MOE-10.1: isSupported threw for " + c, e);
    }
  }

  private void assumeSupported(ExchangeCases.ExchangeCase c, Ranks ranks) {
    Support support = ask(c, 0, ranks.all.getFirst().communicator());
    if (!support.isSupported()) {
      skipped.add(support.reasons().getFirst().code().toString(), support.toString());
      Assumptions.abort("unsupported: " + support);
    }
  }

  private void verify(String rule, ExchangeCases.ExchangeCase c) {
    if (!sizes().contains(c.ranks())) {
      skipped.add("RANKS", c.ranks() + " ranks");
      Assumptions.abort("unsupported: " + c.ranks() + " ranks, tried are " + sizes());
    }
    try (Ranks ranks = open(c.ranks(), Ranks.PATIENT)) {
      assumeSupported(c, ranks);
      ranks.runAll(
          rule,
          (rank, me) -> {
            try (ExchangeRank mine = rank(c, rank, me)) {
              mine.verify(rule);
            }
          });
    }
  }

  private ExchangeRank rank(ExchangeCases.ExchangeCase c, int rank, KitRank me) {
    return new ExchangeRank(
        c, rank, me.communicator(), me.device(), subject(), blockOps(me.device()));
  }

  /** Name, and the same answer twice, for every group and for none. */
  @Test
  public final void required_MOE_10_1_describesItselfAndAnswers() {
    assertTrue(
        subject().name().matches("[a-z][a-z0-9-]*"),
        "MOE-10.1: the name is \"" + subject().name() + "\", must be lower-case");
    boolean any = false;
    for (int size : sizes()) {
      try (Ranks ranks = open(size, Ranks.PATIENT)) {
        for (ExchangeCases.ExchangeCase c :
            Stream.concat(ExchangeCases.placements(), ExchangeCases.replicated()).toList()) {
          if (c.ranks() == size) {
            Communicator group = ranks.all.getFirst().communicator();
            Support first = ask(c, 0, group);
            assertEquals(first, ask(c, 0, group), "MOE-10.1: two answers for " + c);
            assertNotNull(ask(c, 0, null), "MOE-10.1: no answer without a communicator");
            any |= first.isSupported();
          }
        }
      }
    }
    assertTrue(any, "MOE-10.1: the provider refuses every case of the kit: nothing was tested");
  }

  /**
   * Uneven numbers of tokens, none on some ranks or on all; any placement of experts; adapters.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.ExchangeCases#placements")
  public final void required_MOE_10_2_everyTokenGetsTheSumOfItsExperts(Object c) {
    verify("MOE-10.2", (ExchangeCases.ExchangeCase) c);
  }

  /**
   * All tokens on one rank's experts, ids -1, weights that are not scores.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.ExchangeCases#routings")
  public final void required_MOE_10_2_anyRouting(Object c) {
    verify("MOE-10.2", (ExchangeCases.ExchangeCase) c);
  }

  /**
   * Experts on several ranks: one of them adds its part.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.ExchangeCases#redundant")
  public final void required_MOE_10_8_oneCopyOfAnExpertIsUsed(Object c) {
    verify("MOE-10.8", (ExchangeCases.ExchangeCase) c);
  }

  /**
   * Adapters of several tokens, tokens without, on ranks that have others.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.ExchangeCases#adapters")
  public final void required_MOE_10_3_adapterSlotsTravelWithTheRows(Object c) {
    verify("MOE-10.3", (ExchangeCases.ExchangeCase) c);
  }

  /**
   * Each weight once, on the input or on the output.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.ExchangeCases#weights")
  public final void required_MOE_10_4_weightsAreAppliedOnce(Object c) {
    verify("MOE-10.4", (ExchangeCases.ExchangeCase) c);
  }

  /**
   * Every rank has all tokens: all get the sums, each expert's part once, and the same bits.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.ExchangeCases#replicated")
  public final void required_MOE_10_9_ranksMayHaveTheSameTokens(Object c) {
    var exchange = (ExchangeCases.ExchangeCase) c;
    verify("MOE-10.9", exchange);
    byte[][] results = new byte[exchange.ranks()][];
    try (Ranks ranks = open(exchange.ranks(), Ranks.PATIENT)) {
      ranks.runAll(
          "MOE-10.9",
          (rank, me) -> {
            try (ExchangeRank mine = rank(exchange, rank, me)) {
              results[rank] = mine.run();
              assertArrayEquals(results[rank], mine.run(), "MOE-10.9: equal calls differ");
            }
          });
    }
    for (byte[] result : results) {
      assertArrayEquals(results[0], result, "MOE-10.9: ranks got different bits");
    }
  }

  /**
   * Two calls, the same bits on every rank.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.ExchangeCases#adapters")
  public final void required_MOE_10_5_equalCallsGiveEqualBits(Object c) {
    var exchange = (ExchangeCases.ExchangeCase) c;
    if (!sizes().contains(exchange.ranks())) {
      Assumptions.abort("unsupported: " + exchange.ranks() + " ranks");
    }
    try (Ranks ranks = open(exchange.ranks(), Ranks.PATIENT)) {
      assumeSupported(exchange, ranks);
      ranks.runAll(
          "MOE-10.5",
          (rank, me) -> {
            try (ExchangeRank mine = rank(exchange, rank, me)) {
              byte[] first = mine.run();
              for (int n = 0; n < 3; n++) {
                assertArrayEquals(first, mine.run(), "MOE-10.5: equal calls differ");
              }
            }
          });
    }
  }

  /** A rank that aborts: the others get its cause, in {@code dispatch} or in {@code combine}. */
  @Test
  public final void required_MOE_10_6_aRankThatAbortsEndsTheCall() {
    failure(
        Ranks.PATIENT,
        communicator -> communicator.abort(new IllegalStateException("out of paper")),
        "out of paper");
  }

  /** A rank that does not come is named when the deadline has passed. */
  @Test
  public final void required_MOE_10_6_aRankThatDoesNotComeIsNamed() {
    failure(Ranks.IMPATIENT, communicator -> {}, "");
  }

  private interface Absence {
    void of(Communicator communicator);
  }

  private void failure(Duration deadline, Absence absence, String cause) {
    boolean tried = false;
    for (ActivationFormat format : ActivationFormat.values()) {
      for (int size : sizes()) {
        if (size == 1) {
          continue;
        }
        try (Ranks ranks = open(size, deadline)) {
          Communicator group = ranks.all.getFirst().communicator();
          ExchangeCases.ExchangeCase own = ExchangeCases.plain(size, format);
          ExchangeCases.ExchangeCase c = ask(own, 0, group).isSupported() ? own : own.onEveryRank();
          if (!ask(c, 0, group).isSupported()) {
            continue;
          }
          tried = true;
          int bad = size - 1;
          @Nullable Throwable[] failures =
              ranks.run(
                  "MOE-10.6",
                  (rank, me) -> {
                    if (rank == bad) {
                      absence.of(me.communicator());
                      return;
                    }
                    try (ExchangeRank mine = rank(c, rank, me)) {
                      mine.run();
                    }
                  });
          for (int r = 0; r < bad; r++) {
            CommException e =
                CommunicatorConformanceTest.requireCommException(
                    "MOE-10.6", "rank " + r, failures[r]);
            CommunicatorConformanceTest.requireNamed("MOE-10.6", e, bad);
            assertTrue(
                String.valueOf(e.getMessage()).contains(cause),
                () -> "MOE-10.6: the cause is missing in \"" + e.getMessage() + "\"");
          }
        }
      }
    }
    if (!tried) {
      Assumptions.abort("unsupported: " + subject().name() + " takes no group of several ranks");
    }
  }

  /** {@code close()} twice. */
  @Test
  public final void required_MOE_10_7_closeMayBeCalledTwice() {
    int size = sizes().getLast();
    ExchangeCases.ExchangeCase own = ExchangeCases.plain(size, ActivationFormat.STANDARD);
    try (Ranks ranks = open(size, Ranks.PATIENT)) {
      boolean takesOwn = ask(own, 0, ranks.all.getFirst().communicator()).isSupported();
      ExchangeCases.ExchangeCase c = takesOwn || size == 1 ? own : own.onEveryRank();
      assumeSupported(c, ranks);
      ranks.runAll(
          "MOE-10.7",
          (rank, me) -> {
            ExchangeRank mine = rank(c, rank, me);
            mine.run();
            mine.close();
            try {
              mine.close();
            } catch (RuntimeException e) {
              throw new AssertionError("MOE-10.7: the second close() threw", e);
            }
          });
    }
  }
}
