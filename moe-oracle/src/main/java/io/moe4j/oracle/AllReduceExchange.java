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
import org.jspecify.annotations.Nullable;

/**
 * Every rank has all tokens: no row moves, each computes what its experts add, and one sum over the
 * ranks gives all of them the result, through host memory.
 */
final class AllReduceExchange implements ExpertExchange {
  private static final ValueLayout.OfInt I32 =
      ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  private final MoeConfig config;
  private final Communicator communicator;
  private final LocalExchange local;

  /** Where an expert is on several ranks; null where none is. */
  private final @Nullable ExpertPlacement redundant;

  AllReduceExchange(MoeConfig config, Communicator communicator, LocalExchange local) {
    this.config = config;
    this.communicator = communicator;
    this.local = local;
    this.redundant = config.placement().filter(ExpertPlacement::isRedundant).orElse(null);
  }

  @Override
  public String name() {
    return "allreduce";
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
    return maxTokens;
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return new Places(maxTokens).layout.byteSize();
  }

  /** Scratch for {@code n} tokens. */
  private final class Places {
    final WorkspaceLayout layout = new WorkspaceLayout();
    final Part ids;
    final Part inner;

    Places(long n) {
      ids = layout.reserve(DType.I32, redundant == null ? 0 : n, config.topK());
      inner = layout.reserve(DType.U8, local.workspaceBytes(Math.toIntExact(n)));
    }
  }

  /** The tokens with the pairs of this rank, where it shares experts with others. */
  private ExchangeInputs mine(ExchangeInputs inputs, Places at, Workspace workspace) {
    if (redundant == null) {
      return inputs;
    }
    ExpertRouting r = inputs.routing();
    return new ExchangeInputs(
        inputs.hidden(),
        new ExpertRouting(at.ids.in(workspace), r.topkWeights(), r.expertMap()),
        inputs.tokenLoraMapping());
  }

  @Override
  public ExchangedRows dispatch(ExchangeInputs inputs, Workspace workspace, DeviceStream stream) {
    Places at = new Places(inputs.hidden().size(0));
    if (redundant != null) {
      Tensor ids = at.ids.in(workspace);
      ids.segment().copyFrom(inputs.routing().topkIds().segment());
      leaveToOneCopy(ids, redundant);
    }
    return local.dispatch(
        mine(inputs, at, workspace), Workspaces.part(workspace, at.inner), stream);
  }

  /** Copies of an expert share its tokens: the first of them go to the first copy, and so on. */
  private void leaveToOneCopy(Tensor all, ExpertPlacement placement) {
    MemorySegment ids = all.segment();
    long pairs = all.elementCount();
    long together = Math.ceilDiv(all.size(0), (long) placement.ranks()) * config.topK();
    for (long pair = 0; pair < pairs; pair++) {
      int expert = ids.get(I32, pair * Integer.BYTES);
      if (placement.rank(expert, (int) (pair / together)) != config.parallel().epRank()) {
        ids.set(I32, pair * Integer.BYTES, -1);
      }
    }
  }

  @Override
  public void combine(
      Tensor output,
      ExchangedRows rows,
      ExchangeInputs inputs,
      Tensor routed,
      Workspace workspace,
      DeviceStream stream) {
    Places at = new Places(inputs.hidden().size(0));
    local.combine(
        output,
        rows,
        mine(inputs, at, workspace),
        routed,
        Workspaces.part(workspace, at.inner),
        stream);
    communicator.allReduce(routed, stream);
  }

  @Override
  public void close() {}
}
