package io.moe4j.oracle;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.ActivationFormat;
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
 * Every rank's tokens go to every rank; each computes what its experts add, and the sums come back
 * to the rank that had the token. Right for any placement of experts; moves every row to every
 * rank, so it suits few ranks. In host memory: the numbers of tokens are read between calls.
 */
final class GatherExchange implements ExpertExchange {
  private static final ValueLayout.OfInt I32 =
      ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  private final MoeConfig config;
  private final Communicator communicator;
  private final LocalExchange local;

  GatherExchange(MoeConfig config, Communicator communicator, LocalExchange local) {
    this.config = config;
    this.communicator = communicator;
    this.local = local;
  }

  @Override
  public String name() {
    return "gather";
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
    return Math.multiplyExact(maxTokens, communicator.size());
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return new Places(maxTokens, ScratchLayout.rowDtype(config)).layout.byteSize();
  }

  /** What a rank sends and what all of them sent, {@code n} rows a rank. */
  private final class Places {
    final WorkspaceLayout layout = new WorkspaceLayout();
    final Part count = layout.reserve(DType.I32, 1);
    final Part counts = layout.reserve(DType.I32, communicator.size());
    final Part hidden;
    final Part ids;
    final Part weights;
    final Part slots;
    final Part allHidden;
    final Part allIds;
    final Part allWeights;
    final Part allSlots;
    final Part sums;
    final Part allSums;
    final Part inner;

    Places(long n, DType dtype) {
      long all = Math.multiplyExact(n, communicator.size());
      long width = config.expertHiddenSize();
      hidden = layout.reserve(dtype, n, width);
      ids = layout.reserve(DType.I32, n, config.topK());
      weights = layout.reserve(DType.F32, n, config.topK());
      slots = layout.reserve(DType.I32, n);
      allHidden = layout.reserve(dtype, all, width);
      allIds = layout.reserve(DType.I32, all, config.topK());
      allWeights = layout.reserve(DType.F32, all, config.topK());
      allSlots = layout.reserve(DType.I32, all);
      sums = layout.reserve(DType.F32, n, width);
      allSums = layout.reserve(DType.F32, isBatched() ? all : 0, width);
      inner = layout.reserve(DType.U8, local.workspaceBytes(Math.toIntExact(all)));
    }
  }

  private boolean isBatched() {
    return config.activationFormat() == ActivationFormat.BATCHED;
  }

  @Override
  public ExchangedRows dispatch(ExchangeInputs inputs, Workspace workspace, DeviceStream stream) {
    long tokens = inputs.hidden().size(0);
    DType dtype = inputs.hidden().dtype();
    Places small = new Places(0, dtype);
    Tensor count = small.count.in(workspace);
    Tensor counts = small.counts.in(workspace);
    count.set((double) tokens, 0);
    communicator.allGather(count, counts, stream);
    long n = Arrays.stream(counts.toInts()).max().orElse(0);

    Places at = new Places(n, dtype);
    // Rows that only fill up have no expert and no adapter: all bits set is -1.
    Tensor hidden = padded(at.hidden.in(workspace), inputs.hidden(), 0);
    Tensor ids = padded(at.ids.in(workspace), inputs.routing().topkIds(), 0xff);
    Tensor weights = padded(at.weights.in(workspace), inputs.routing().topkWeights(), 0);
    communicator.allGather(hidden, at.allHidden.in(workspace), stream);
    communicator.allGather(ids, at.allIds.in(workspace), stream);
    communicator.allGather(weights, at.allWeights.in(workspace), stream);
    leaveToOneCopy(at.allIds.in(workspace), n);
    Tensor given = inputs.tokenLoraMapping();
    if (given != null) {
      Tensor slots = padded(at.slots.in(workspace), given, 0xff);
      communicator.allGather(slots, at.allSlots.in(workspace), stream);
    }
    return local.dispatch(
        all(at, workspace, inputs.routing().expertMap(), given != null),
        Workspaces.part(workspace, at.inner),
        stream);
  }

  /** Of several ranks that have an expert, all but the one that computes it forget the pair. */
  private void leaveToOneCopy(Tensor allIds, long rowsPerRank) {
    ExpertPlacement placement =
        config.placement().filter(ExpertPlacement::isRedundant).orElse(null);
    if (placement == null) {
      return;
    }
    MemorySegment ids = allIds.segment();
    long pairsPerRank = rowsPerRank * config.topK();
    for (long pair = 0; pair < allIds.elementCount(); pair++) {
      int expert = ids.get(I32, pair * Integer.BYTES);
      int tokenRank = (int) (pair / pairsPerRank) / config.parallel().tpSize();
      if (placement.rank(expert, tokenRank) != config.parallel().epRank()) {
        ids.set(I32, pair * Integer.BYTES, -1);
      }
    }
  }

  private static Tensor padded(Tensor to, Tensor from, int fill) {
    to.segment().fill((byte) fill);
    to.narrow(0, 0, from.size(0)).segment().copyFrom(from.segment());
    return to;
  }

  /** All ranks' tokens, as they were gathered. */
  private static ExchangeInputs all(
      Places at, Workspace workspace, @Nullable Tensor expertMap, boolean lora) {
    return new ExchangeInputs(
        at.allHidden.in(workspace),
        new ExpertRouting(at.allIds.in(workspace), at.allWeights.in(workspace), expertMap),
        lora ? at.allSlots.in(workspace) : null);
  }

  @Override
  public void combine(
      Tensor output,
      ExchangedRows rows,
      ExchangeInputs inputs,
      Tensor routed,
      Workspace workspace,
      DeviceStream stream) {
    long n = rows.hidden().size(isBatched() ? 1 : 0) / communicator.size();
    Places at = new Places(n, inputs.hidden().dtype());
    Tensor mine = output;
    if (isBatched()) {
      mine = at.allSums.in(workspace);
      ExchangeInputs all = all(at, workspace, inputs.routing().expertMap(), false);
      local.combine(output, rows, all, mine, Workspaces.part(workspace, at.inner), stream);
    }
    Tensor sums = at.sums.in(workspace);
    communicator.reduceScatter(mine, sums, stream);
    routed.segment().copyFrom(sums.narrow(0, 0, routed.size(0)).segment());
  }

  @Override
  public void close() {}
}
