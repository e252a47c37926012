package io.moe4j.tck;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assertions.fail;

import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.function.UnaryOperator;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestInstance;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * What a {@link Communicator} has to hold: extend this class, say how a group is made. Each rank
 * runs on a thread of its own. Rules MOE-9.x of {@link io.moe4j.api.spi}; results are compared bit
 * by bit, for the order of sums is part of the contract.
 *
 * @since 0.2.0
 */
@TestInstance(TestInstance.Lifecycle.PER_CLASS)
public abstract class CommunicatorConformanceTest {
  private static final int WIDTH = 5;

  /** For subclasses. */
  protected CommunicatorConformanceTest() {}

  /**
   * Makes a group.
   *
   * @param size its ranks
   * @param deadline how long a call may wait for the others
   * @return one entry a rank, in order; the kit closes them. A smaller list (or an aborted
   *     assumption) where the machine has no room for so many
   */
  protected abstract List<KitRank> openGroup(int size, Duration deadline);

  /** {@return the sizes of groups that are tried} */
  protected List<Integer> sizes() {
    return List.of(1, 2, 3, 4);
  }

  private Ranks open(int size, Duration deadline) {
    Ranks ranks = new Ranks(openGroup(size, deadline));
    if (ranks.size() != size) {
      ranks.close();
      Assumptions.abort("skipped: " + size + " ranks, the machine has room for " + ranks.size());
    }
    return ranks;
  }

  private static Tensor contribution(int rank, DType dtype, long... shape) {
    Tensor t = Data.empty(dtype, shape);
    Tensor flat = t.reshape(t.elementCount());
    Data data = new Data(100 + rank);
    for (long i = 0; i < flat.size(0); i++) {
      // magnitudes so far apart that sums in another order, or rounded in between, differ
      double v = data.gaussian() * Math.pow(2, data.below(24) - 8);
      flat.set(dtype.isFloating() ? v : (rank + 1) * 1000.0 + i, i);
    }
    return t;
  }

  private static Tensor sum(int size, DType dtype, UnaryOperator<Tensor> part, long... shape) {
    float[] total = null;
    for (int r = 0; r < size; r++) {
      float[] values = part.apply(contribution(r, dtype, shape)).toFloats();
      if (total == null) {
        total = new float[values.length];
      }
      for (int i = 0; i < values.length; i++) {
        total[i] += values[i];
      }
    }
    float[] sums = total == null ? new float[0] : total;
    Tensor rounded = Data.empty(dtype, sums.length);
    for (int i = 0; i < sums.length; i++) {
      rounded.set(sums[i], i);
    }
    return rounded;
  }

  /** What no partial sum exceeds. */
  private static double[] magnitudes(
      int size, DType dtype, UnaryOperator<Tensor> part, long... shape) {
    double[] total = new double[0];
    for (int r = 0; r < size; r++) {
      float[] values = part.apply(contribution(r, dtype, shape)).toFloats();
      total = r == 0 ? new double[values.length] : total;
      for (int i = 0; i < values.length; i++) {
        total[i] += Math.abs(values[i]);
      }
    }
    return total;
  }

  private static int roundedBits(DType dtype) {
    return dtype == DType.F32 ? 24 : dtype == DType.BF16 ? 8 : 11;
  }

  private static void requireEqual(String what, Tensor expected, Tensor got) {
    assertArrayEquals(
        expected.reshape(expected.elementCount()).toDoubles(),
        got.reshape(got.elementCount()).toDoubles(),
        () -> "MOE-9.1: " + what);
  }

  static List<DType> floats() {
    return List.of(DType.F32, DType.BF16, DType.F16);
  }

  /** Rank, size, words. */
  @Test
  public final void required_MOE_9_1_describesItself() {
    for (int size : sizes()) {
      try (Ranks ranks = open(size, Ranks.PATIENT)) {
        ranks.runAll(
            "MOE-9.1",
            (rank, me) -> {
              Communicator c = me.communicator();
              assertEquals(rank, c.rank(), "MOE-9.1: rank");
              assertEquals(size, c.size(), "MOE-9.1: size");
              assertTrue(!c.description().isBlank(), "MOE-9.1: description");
              assertEquals(me.device().info().id().type(), c.deviceType(), "MOE-9.1: deviceType");
            });
      }
    }
  }

  /** Rows of rank 0 first; any dtype; no rows at all. */
  @Test
  public final void required_MOE_9_1_allGather() {
    for (int size : sizes()) {
      try (Ranks ranks = open(size, Ranks.PATIENT)) {
        ranks.runAll(
            "MOE-9.1",
            (rank, me) -> {
              for (DType dtype : List.of(DType.F32, DType.BF16, DType.F16, DType.I32)) {
                for (int n : new int[] {0, 1, 7}) {
                  allGather(size, rank, me, dtype, n);
                }
              }
            });
      }
    }
  }

  private static void allGather(int size, int rank, KitRank me, DType dtype, int n) {
    try (Bench bench = new Bench(me.device())) {
      Tensor receive = bench.output(dtype, (long) size * n, WIDTH);
      me.communicator()
          .allGather(bench.input(contribution(rank, dtype, n, WIDTH)), receive, bench.stream);
      bench.stream.synchronize();
      Tensor got = bench.read(receive);
      for (int r = 0; r < size; r++) {
        requireEqual(
            "allGather of " + size + " ranks, " + dtype + ", rows of rank " + r,
            contribution(r, dtype, n, WIDTH),
            got.narrow(0, (long) r * n, n));
      }
      bench.requireNothingElseWritten();
    }
  }

  /**
   * Each rank's part of the sum, in the order of ranks, in f32, rounded once; or, where a library
   * decides, no further from it than rounding at each step allows.
   *
   * @param dtype of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("floats")
  public final void required_MOE_9_2_reduceScatter(DType dtype) {
    for (int size : sizes()) {
      try (Ranks ranks = open(size, Ranks.PATIENT)) {
        ranks.runAll(
            "MOE-9.2",
            (rank, me) -> {
              for (int n : new int[] {0, 1, 7}) {
                long rows = (long) size * n;
                try (Bench bench = new Bench(me.device())) {
                  Tensor receive = bench.output(dtype, n, WIDTH);
                  me.communicator()
                      .reduceScatter(
                          bench.input(contribution(rank, dtype, rows, WIDTH)),
                          receive,
                          bench.stream);
                  bench.stream.synchronize();
                  long from = (long) rank * n;
                  UnaryOperator<Tensor> mine = t -> t.narrow(0, from, n);
                  requireSum(
                      "reduceScatter",
                      me.communicator(),
                      sum(size, dtype, mine, rows, WIDTH),
                      magnitudes(size, dtype, mine, rows, WIDTH),
                      bench.read(receive));
                  bench.requireNothingElseWritten();
                }
              }
            });
      }
    }
  }

  /**
   * The same sum everywhere.
   *
   * @param dtype of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("floats")
  public final void required_MOE_9_2_allReduce(DType dtype) {
    for (int size : sizes()) {
      try (Ranks ranks = open(size, Ranks.PATIENT)) {
        ranks.runAll(
            "MOE-9.2",
            (rank, me) -> {
              for (int n : new int[] {0, 1, 7}) {
                try (Bench bench = new Bench(me.device())) {
                  Tensor both = bench.inout(contribution(rank, dtype, n, WIDTH));
                  me.communicator().allReduce(both, bench.stream);
                  bench.stream.synchronize();
                  requireSum(
                      "allReduce",
                      me.communicator(),
                      sum(size, dtype, t -> t, n, WIDTH),
                      magnitudes(size, dtype, t -> t, n, WIDTH),
                      bench.read(both));
                  bench.requireNothingElseWritten();
                }
              }
            });
      }
    }
  }

  private static void requireSum(
      String what, Communicator c, Tensor expected, double[] magnitudes, Tensor got) {
    int size = c.size();
    double[] sums = expected.reshape(expected.elementCount()).toDoubles();
    double[] given = got.reshape(got.elementCount()).toDoubles();
    if (!c.sumsInRankOrder()) {
      // Rounded at each of size - 1 steps and once more, by no more than the largest partial sum.
      double step = Math.pow(2, -roundedBits(got.dtype())) * size;
      for (int i = 0; i < sums.length; i++) {
        assertEquals(
            sums[i], given[i], magnitudes[i] * step, "MOE-9.2: " + what + " of " + size + " ranks");
      }
      return;
    }
    assertArrayEquals(
        sums,
        given,
        () ->
            "MOE-9.2: "
                + what
                + " of "
                + size
                + " ranks in "
                + got.dtype()
                + "; sums are made in f32 in the order of ranks and rounded once");
  }

  /** Uneven rows, none among them, and more room than is needed. */
  @Test
  public final void required_MOE_9_1_allToAll() {
    for (int size : sizes()) {
      try (Ranks ranks = open(size, Ranks.PATIENT)) {
        ranks.runAll(
            "MOE-9.1",
            (rank, me) -> {
              for (int round = 0; round < 3; round++) {
                allToAll(size, rank, me, round);
              }
            });
      }
    }
  }

  /** Rows that one rank sends to another; differs by direction, and is 0 for some. */
  private static long rows(int from, int to, int round) {
    return (from * 3L + to * 5L + round * 2L) % 4;
  }

  private static void allToAll(int size, int rank, KitRank me, int round) {
    long[] send = new long[size];
    long[] receive = new long[size];
    for (int r = 0; r < size; r++) {
      send[r] = rows(rank, r, round);
      receive[r] = rows(r, rank, round);
    }
    long sent = Arrays.stream(send).sum();
    long received = Arrays.stream(receive).sum();
    try (Bench bench = new Bench(me.device())) {
      Tensor into = bench.output(DType.F32, received + 2, WIDTH);
      me.communicator()
          .allToAll(
              bench.input(contribution(rank, DType.F32, sent, WIDTH)),
              send,
              into,
              receive,
              bench.stream);
      bench.stream.synchronize();
      Tensor got = bench.read(into);
      long at = 0;
      for (int r = 0; r < size; r++) {
        long theirs = 0;
        long from = 0;
        for (int to = 0; to < size; to++) {
          from += to < rank ? rows(r, to, round) : 0;
          theirs += rows(r, to, round);
        }
        requireEqual(
            "allToAll of " + size + " ranks, rows from rank " + r,
            contribution(r, DType.F32, theirs, WIDTH).narrow(0, from, receive[r]),
            got.narrow(0, at, receive[r]));
        at += receive[r];
      }
      bench.requireNothingElseWritten();
    }
  }

  /** A rank that aborts ends the call of those that wait, and every later one. */
  @Test
  public final void required_MOE_9_3_abortEndsTheGroupWithItsCause() {
    for (int size : sizes()) {
      if (size == 1) {
        continue;
      }
      int bad = size - 1;
      try (Ranks ranks = open(size, Ranks.PATIENT)) {
        for (int attempt = 0; attempt < 2; attempt++) {
          boolean first = attempt == 0;
          @Nullable Throwable[] failures =
              ranks.run(
                  "MOE-9.3",
                  (rank, me) -> {
                    if (rank == bad && first) {
                      me.communicator().abort(new IllegalStateException("disk on fire"));
                    } else {
                      gatherOne(size, me);
                    }
                  });
          for (int r = 0; r < size; r++) {
            if (r != bad) {
              CommException e = requireCommException("MOE-9.3", "rank " + r, failures[r]);
              requireNamed("MOE-9.3", e, bad);
              assertTrue(
                  String.valueOf(e.getMessage()).contains("disk on fire"),
                  () -> "MOE-9.3: the cause is missing in \"" + e.getMessage() + "\"");
            }
          }
        }
      }
    }
  }

  /** A rank that does not come is named when the deadline has passed. */
  @Test
  public final void required_MOE_9_3_aMissingRankIsNamedAfterTheDeadline() {
    for (int size : sizes()) {
      if (size == 1) {
        continue;
      }
      int missing = size - 1;
      try (Ranks ranks = open(size, Ranks.IMPATIENT)) {
        @Nullable Throwable[] failures =
            ranks.run(
                "MOE-9.3",
                (rank, me) -> {
                  if (rank != missing) {
                    gatherOne(size, me);
                  }
                });
        for (int r = 0; r < size; r++) {
          if (r != missing) {
            requireNamed(
                "MOE-9.3", requireCommException("MOE-9.3", "rank " + r, failures[r]), missing);
          }
        }
      }
    }
  }

  /** Ranks that make different calls: nobody gets a result, nobody waits for ever. */
  @Test
  public final void required_MOE_9_3_ranksThatDisagreeEndTheGroup() {
    for (int size : sizes()) {
      if (size == 1) {
        continue;
      }
      try (Ranks ranks = open(size, Ranks.IMPATIENT)) {
        @Nullable Throwable[] failures =
            ranks.run(
                "MOE-9.3",
                (rank, me) -> {
                  try (Bench bench = new Bench(me.device())) {
                    int n = rank == 0 ? 2 : 3;
                    Tensor receive = bench.output(DType.F32, (long) size * n, WIDTH);
                    me.communicator()
                        .allGather(
                            bench.input(contribution(rank, DType.F32, n, WIDTH)),
                            receive,
                            bench.stream);
                    bench.stream.synchronize();
                  }
                });
        for (int r = 0; r < size; r++) {
          requireCommException("MOE-9.3", "rank " + r + " of ranks that disagree", failures[r]);
        }
      }
    }
  }

  /** {@code close()} twice, on every rank. */
  @Test
  public final void required_MOE_9_4_closeMayBeCalledTwice() {
    for (int size : sizes()) {
      try (Ranks ranks = open(size, Ranks.PATIENT)) {
        ranks.runAll(
            "MOE-9.4",
            (rank, me) -> {
              gatherOne(size, me);
              me.communicator().close();
              me.communicator().close();
            });
      }
    }
  }

  private static void gatherOne(int size, KitRank me) {
    try (Bench bench = new Bench(me.device())) {
      Tensor receive = bench.output(DType.F32, size, WIDTH);
      me.communicator()
          .allGather(
              bench.input(contribution(me.communicator().rank(), DType.F32, 1, WIDTH)),
              receive,
              bench.stream);
      bench.stream.synchronize();
    }
  }

  static CommException requireCommException(String rule, String who, @Nullable Throwable t) {
    if (t instanceof AssertionError e) {
      throw e;
    }
    if (t instanceof CommException e) {
      return e;
    }
    return fail(rule + ": " + who + " got " + t + ", must get a CommException");
  }

  static void requireNamed(String rule, CommException e, int rank) {
    assertNotNull(e.getMessage(), rule + ": no message");
    assertEquals(rank, e.rank(), () -> rule + ": the rank that is to blame, by " + e);
    assertTrue(
        String.valueOf(e.getMessage()).contains("rank " + rank),
        () -> rule + ": rank " + rank + " is missing in \"" + e.getMessage() + "\"");
  }
}
