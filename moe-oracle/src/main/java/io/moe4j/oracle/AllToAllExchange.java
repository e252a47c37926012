package io.moe4j.oracle;

import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.ExpertPlacement;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.device.WorkspaceLayout;
import io.moe4j.api.device.WorkspaceLayout.Part;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExchangeInputs;
import io.moe4j.api.spi.ExchangedRows;
import io.moe4j.api.spi.ExpertExchange;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/**
 * A token goes to the ranks that compute one of its experts, once to each, with its ids, weights
 * and slot beside it; each sends back what its experts add, and the token's rank sums that in the
 * order of ranks. Ids of experts that another rank computes travel as -1, so of several copies of
 * an expert one is used. In host memory: the numbers of rows are read between calls.
 */
final class AllToAllExchange implements ExpertExchange {
  private static final ValueLayout.OfInt I32 =
      ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfFloat F32 =
      ValueLayout.JAVA_FLOAT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  private final MoeConfig config;
  private final Communicator communicator;
  private final LocalExchange local;
  private final ExpertPlacement placement;
  private final int ranks;
  private final int tpSize;

  /**
   * @param placement of the config's expert-parallel ranks
   */
  AllToAllExchange(
      MoeConfig config, Communicator communicator, LocalExchange local, ExpertPlacement placement) {
    this.config = config;
    this.communicator = communicator;
    this.local = local;
    this.placement = placement;
    this.ranks = communicator.size();
    this.tpSize = config.parallel().tpSize();
  }

  @Override
  public String name() {
    return "alltoall";
  }

  @Override
  public ActivationFormat activationFormat() {
    return config.activationFormat();
  }

  @Override
  public boolean outputIsReduced() {
    return true;
  }

  @Override
  public int maxRows(int maxTokens) {
    return Math.multiplyExact(maxTokens, ranks);
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    long most = Math.multiplyExact((long) maxTokens, ranks);
    return new Places(most, most, ScratchLayout.rowDtype(config)).layout.byteSize();
  }

  private boolean isBatched() {
    return config.activationFormat() == ActivationFormat.BATCHED;
  }

  /** A row as it travels: hidden state, ids, weights, slot. */
  private long rowBytes(DType dtype) {
    return dtype.byteSize(config.expertHiddenSize()) + (2L * config.topK() + 1) * Integer.BYTES;
  }

  /** What this rank sends and what it gets. The counts come first, wherever the rest ends. */
  private final class Places {
    final WorkspaceLayout layout = new WorkspaceLayout();
    final Part sendCounts = layout.reserve(DType.I32, ranks);
    final Part receiveCounts = layout.reserve(DType.I32, ranks);
    final Part tokens;
    final Part sent;
    final Part received;
    final Part hidden;
    final Part ids;
    final Part weights;
    final Part slots;
    final Part sums;
    final Part back;
    final Part inner;

    Places(long send, long receive, DType dtype) {
      long width = config.expertHiddenSize();
      tokens = layout.reserve(DType.I32, send);
      sent = layout.reserve(DType.U8, send, rowBytes(dtype));
      received = layout.reserve(DType.U8, receive, rowBytes(dtype));
      hidden = layout.reserve(dtype, receive, width);
      ids = layout.reserve(DType.I32, receive, config.topK());
      weights = layout.reserve(DType.F32, receive, config.topK());
      slots = layout.reserve(DType.I32, receive);
      sums = layout.reserve(DType.F32, isBatched() ? receive : 0, width);
      back = layout.reserve(DType.F32, send, width);
      inner = layout.reserve(DType.U8, local.workspaceBytes(Math.toIntExact(receive)));
    }
  }

  /** Rank of the communicator -> whether a token goes there, and with which ids. */
  private boolean goesTo(int rank, MemorySegment topkIds, long token) {
    for (int k = 0; k < config.topK(); k++) {
      if (isFor(rank, id(topkIds, token, k))) {
        return true;
      }
    }
    return false;
  }

  private int id(MemorySegment topkIds, long token, int k) {
    return topkIds.get(I32, (token * config.topK() + k) * Integer.BYTES);
  }

  private boolean isFor(int rank, int expert) {
    return placement.rank(expert, config.parallel().epRank()) == rank / tpSize;
  }

  @Override
  public ExchangedRows dispatch(ExchangeInputs inputs, Workspace workspace, DeviceStream stream) {
    DType dtype = inputs.hidden().dtype();
    MemorySegment topkIds = inputs.routing().topkIds().segment();
    long tokens = inputs.hidden().size(0);
    long[] send = new long[ranks];
    for (int r = 0; r < ranks; r++) {
      for (long t = 0; t < tokens; t++) {
        send[r] += goesTo(r, topkIds, t) ? 1 : 0;
      }
    }
    long[] receive = exchangeCounts(send, workspace, stream);
    long sending = Arrays.stream(send).sum();
    long receiving = Arrays.stream(receive).sum();
    Places at = new Places(sending, receiving, dtype);
    pack(inputs, at.sent.in(workspace).segment(), at.tokens.in(workspace).segment());
    communicator.allToAll(at.sent.in(workspace), send, at.received.in(workspace), receive, stream);
    unpack(at, workspace, dtype);
    requireMine(at.ids.in(workspace).segment(), receive);
    boolean lora = inputs.tokenLoraMapping() != null;
    return local.dispatch(
        received(at, workspace, inputs.routing().expertMap(), lora),
        Workspaces.part(workspace, at.inner),
        stream);
  }

  private long[] exchangeCounts(long[] send, Workspace workspace, DeviceStream stream) {
    Places small = new Places(0, 0, DType.F32);
    Tensor mine = small.sendCounts.in(workspace);
    Tensor theirs = small.receiveCounts.in(workspace);
    for (int r = 0; r < ranks; r++) {
      mine.set((double) send[r], r);
    }
    long[] one = new long[ranks];
    Arrays.fill(one, 1);
    communicator.allToAll(mine, one, theirs, one, stream);
    return Arrays.stream(theirs.toInts()).asLongStream().toArray();
  }

  private void pack(ExchangeInputs inputs, MemorySegment rows, MemorySegment order) {
    Tensor hidden = inputs.hidden();
    MemorySegment states = hidden.segment();
    MemorySegment topkIds = inputs.routing().topkIds().segment();
    MemorySegment topkWeights = inputs.routing().topkWeights().segment();
    Tensor mapping = inputs.tokenLoraMapping();
    MemorySegment slots = mapping == null ? null : mapping.segment();
    long width = hidden.dtype().byteSize(config.expertHiddenSize());
    int choices = config.topK() * Integer.BYTES;
    long row = 0;
    for (int r = 0; r < ranks; r++) {
      for (long t = 0; t < hidden.size(0); t++) {
        if (!goesTo(r, topkIds, t)) {
          continue;
        }
        long to = row * rowBytes(hidden.dtype());
        MemorySegment.copy(states, t * width, rows, to, width);
        to += width;
        for (int k = 0; k < config.topK(); k++) {
          int expert = id(topkIds, t, k);
          rows.set(I32, to + (long) k * Integer.BYTES, isFor(r, expert) ? expert : -1);
        }
        MemorySegment.copy(topkWeights, t * choices, rows, to + choices, choices);
        rows.set(I32, to + 2L * choices, slots == null ? -1 : slots.get(I32, t * Integer.BYTES));
        order.set(I32, row * Integer.BYTES, Math.toIntExact(t));
        row++;
      }
    }
  }

  private void unpack(Places at, Workspace workspace, DType dtype) {
    Tensor received = at.received.in(workspace);
    MemorySegment rows = received.segment();
    MemorySegment hidden = at.hidden.in(workspace).segment();
    MemorySegment ids = at.ids.in(workspace).segment();
    MemorySegment weights = at.weights.in(workspace).segment();
    MemorySegment slots = at.slots.in(workspace).segment();
    long width = dtype.byteSize(config.expertHiddenSize());
    long choices = (long) config.topK() * Integer.BYTES;
    for (long n = 0; n < received.size(0); n++) {
      long from = n * rowBytes(dtype);
      MemorySegment.copy(rows, from, hidden, n * width, width);
      MemorySegment.copy(rows, from + width, ids, n * choices, choices);
      MemorySegment.copy(rows, from + width + choices, weights, n * choices, choices);
      MemorySegment.copy(rows, from + width + 2 * choices, slots, n * Integer.BYTES, Integer.BYTES);
    }
  }

  /** What another rank takes this one to have and it has not would be lost without a word. */
  private void requireMine(MemorySegment ids, long[] receive) {
    ExpertMap mine = placement.map(config.parallel().epRank());
    long n = 0;
    for (int r = 0; r < ranks; r++) {
      for (long end = n + receive[r] * config.topK(); n < end; n++) {
        int expert = ids.get(I32, n * Integer.BYTES);
        if (expert >= 0 && (expert >= mine.numGlobalExperts() || mine.local(expert) < 0)) {
          throw new CommException(
              r,
              "rank "
                  + r
                  + " of "
                  + ranks
                  + " sends a token to expert "
                  + expert
                  + ", which rank "
                  + communicator.rank()
                  + " does not have: their configs place experts differently",
              null);
        }
      }
    }
  }

  /** The rows that came, as a layer would bring them. */
  private static ExchangeInputs received(
      Places at, Workspace workspace, @Nullable Tensor expertMap, boolean lora) {
    return new ExchangeInputs(
        at.hidden.in(workspace),
        new ExpertRouting(at.ids.in(workspace), at.weights.in(workspace), expertMap),
        lora ? at.slots.in(workspace) : null);
  }

  @Override
  public void combine(
      Tensor output,
      ExchangedRows rows,
      ExchangeInputs inputs,
      Tensor routed,
      Workspace workspace,
      DeviceStream stream) {
    Places small = new Places(0, 0, DType.F32);
    long[] send = counts(small.sendCounts.in(workspace));
    long[] receive = counts(small.receiveCounts.in(workspace));
    long sending = Arrays.stream(send).sum();
    Places at = new Places(sending, Arrays.stream(receive).sum(), inputs.hidden().dtype());
    Tensor mine = output;
    if (isBatched()) {
      mine = at.sums.in(workspace);
      ExchangeInputs came = received(at, workspace, inputs.routing().expertMap(), false);
      local.combine(output, rows, came, mine, Workspaces.part(workspace, at.inner), stream);
    }
    Tensor back = at.back.in(workspace);
    communicator.allToAll(mine, receive, back, send, stream);
    sum(back.segment(), at.tokens.in(workspace).segment(), sending, routed);
  }

  private static long[] counts(Tensor of) {
    return Arrays.stream(of.toInts()).asLongStream().toArray();
  }

  /** Rows lie in the order of ranks, so a token's parts are added in that order. */
  private void sum(MemorySegment back, MemorySegment order, long count, Tensor routed) {
    MemorySegment out = routed.segment();
    out.fill((byte) 0);
    long width = config.expertHiddenSize();
    for (long n = 0; n < count; n++) {
      long to = order.get(I32, n * Integer.BYTES) * width;
      for (long h = 0; h < width; h++) {
        long at = (to + h) * Float.BYTES;
        out.set(F32, at, out.get(F32, at) + back.get(F32, (n * width + h) * Float.BYTES));
      }
    }
  }

  @Override
  public void close() {}
}
