package io.moe4j.comm.nccl;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.device.WorkspaceLayout;
import io.moe4j.api.device.WorkspaceLayout.Part;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.ExchangeInputs;
import io.moe4j.api.spi.ExchangedRows;
import io.moe4j.api.spi.ExpertExchange;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.ops.PeerLink;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * Every rank's tokens go to every rank in one step; each computes what its experts add, and one
 * ReduceScatter brings each token's sum home. All on the stream, with sizes that depend on {@link
 * ExchangeInputs#maxTokens} alone: nothing waits for the device, and a graph may record it. Hidden
 * states, ids, weights and slots are gathered side by side, so they arrive as the experts read
 * them.
 *
 * <p>Ranks that reach each other's memory write there themselves ({@link Direct}); the others go by
 * one grouped call of NCCL, in which a rank that has as many tokens as there is room for sends its
 * own tensors. Of two ranks both ways give the same bits. Of more, the direct one adds in f32 in
 * the order of ranks and rounds once, NCCL in its own order; either gives the same bits from run to
 * run.
 */
final class DeviceGather implements ExpertExchange {
  private final MoeConfig config;
  private final Communicator communicator;
  private final BlockOps block;
  private final Device device;
  private final ExchangeKernels kernels;
  private final DType sums;
  private final int ranks;

  /** How rows travel where ranks reach each other's memory; null where they do not. */
  private final @Nullable Direct direct;

  private final Owners owners;

  DeviceGather(
      MoeConfig config,
      Communicator communicator,
      BlockOps block,
      Device device,
      ExchangeKernels kernels,
      DType sums,
      boolean adds) {
    this.config = config;
    this.communicator = communicator;
    this.block = block;
    this.device = device;
    this.kernels = kernels;
    this.sums = sums;
    this.ranks = communicator.size();
    this.direct = Direct.of(communicator, device, config, adds);
    this.owners = new Owners(config, device);
  }

  @Override
  public String name() {
    return DeviceGatherProvider.NAME;
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
  public DType outputDtype() {
    return sums();
  }

  @Override
  public int maxRows(int maxTokens) {
    return Math.multiplyExact(maxTokens, ranks);
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return new Places(maxTokens, DType.F32).layout.byteSize();
  }

  private boolean isBatched() {
    return config.activationFormat() == ActivationFormat.BATCHED;
  }

  /** What a rank sends and what all of them sent, {@code n} rows a rank. */
  private final class Places {
    final WorkspaceLayout layout = new WorkspaceLayout();
    final Part hidden;
    final Part ids;
    final Part weights;
    final Part slots;
    final Part allHidden;
    final Part allIds;
    final Part allWeights;
    final Part allSlots;
    final Part sum;
    final Part batched;
    final Part counts;
    final Part batchedSlots;
    final Part allSums;
    final Part block;

    Places(long n, DType dtype) {
      long all = Math.multiplyExact(n, ranks);
      long width = config.expertHiddenSize();
      int k = config.topK();
      hidden = layout.reserve(dtype, n, width);
      ids = layout.reserve(DType.I32, n, k);
      weights = layout.reserve(DType.F32, n, k);
      slots = layout.reserve(DType.I32, n);
      allHidden = layout.reserve(dtype, all, width);
      allIds = layout.reserve(DType.I32, all, k);
      allWeights = layout.reserve(DType.F32, all, k);
      allSlots = layout.reserve(DType.I32, all);
      sum = layout.reserve(DType.F32, n, width);
      long experts = isBatched() ? config.numLocalExperts() : 0;
      batched = layout.reserve(dtype, experts, all, width);
      counts = layout.reserve(DType.I32, experts);
      batchedSlots = layout.reserve(DType.I32, experts, all);
      allSums = layout.reserve(DType.F32, isBatched() ? all : 0, width);
      long scratch = isBatched() ? DeviceGather.this.block.workspaceBytes(Math.toIntExact(all)) : 0;
      block = layout.reserve(DType.U8, scratch);
    }
  }

  @Override
  public ExchangedRows dispatch(ExchangeInputs inputs, Workspace workspace, DeviceStream stream) {
    Places at = new Places(inputs.maxTokens(), inputs.hidden().dtype());
    Tensor mapping = inputs.tokenLoraMapping();
    ExchangeKernels.Rows all =
        direct == null ? null : direct.gather(inputs, at.hidden.in(workspace), sums(), stream);
    if (all == null) {
      all = gather(at, inputs, workspace, stream);
    }
    Tensor owner = owners.table();
    if (owner != null) {
      int tp = config.parallel().tpSize();
      kernels.own(
          all.ids(), owner, inputs.maxTokens() * (long) tp, config.parallel().epRank(), stream);
    }
    ExpertRouting routing = routing(all, inputs);
    if (!isBatched()) {
      SumLink link = direct == null ? null : direct.link(sums());
      return new ExchangedRows(all.hidden(), routing, null, all.slots(), link);
    }
    Tensor batched = at.batched.in(workspace);
    Tensor counts = at.counts.in(workspace);
    Tensor batchedSlots = mapping == null ? null : at.batchedSlots.in(workspace);
    block.dispatch(
        all.hidden(),
        routing,
        all.slots(),
        batched,
        counts,
        batchedSlots,
        part(workspace, at.block),
        stream);
    return new ExchangedRows(batched, null, counts, batchedSlots);
  }

  /** {@return the dtype in which sums travel} */
  private DType sums() {
    return isBatched() ? DType.F32 : sums;
  }

  /** By NCCL. */
  private ExchangeKernels.Rows gather(
      Places at, ExchangeInputs inputs, Workspace workspace, DeviceStream stream) {
    Tensor mapping = inputs.tokenLoraMapping();
    ExchangeKernels.Rows mine;
    if (inputs.hidden().size(0) == inputs.maxTokens()) {
      ExpertRouting r = inputs.routing();
      mine = new ExchangeKernels.Rows(inputs.hidden(), r.topkIds(), r.topkWeights(), mapping);
    } else {
      mine =
          new ExchangeKernels.Rows(
              at.hidden.in(workspace),
              at.ids.in(workspace),
              at.weights.in(workspace),
              mapping == null ? null : at.slots.in(workspace));
      kernels.pad(inputs, mine, stream);
    }
    ExchangeKernels.Rows all = all(at, workspace, mapping != null);
    List<Tensor> send = new ArrayList<>(List.of(mine.hidden(), mine.ids(), mine.weights()));
    List<Tensor> receive = new ArrayList<>(List.of(all.hidden(), all.ids(), all.weights()));
    if (mine.slots() != null && all.slots() != null) {
      send.add(mine.slots());
      receive.add(all.slots());
    }
    communicator.allGather(send, receive, stream);
    return all;
  }

  private static ExchangeKernels.Rows all(Places at, Workspace workspace, boolean slots) {
    return new ExchangeKernels.Rows(
        at.allHidden.in(workspace),
        at.allIds.in(workspace),
        at.allWeights.in(workspace),
        slots ? at.allSlots.in(workspace) : null);
  }

  private static ExpertRouting routing(ExchangeKernels.Rows all, ExchangeInputs inputs) {
    return new ExpertRouting(all.ids(), all.weights(), inputs.routing().expertMap());
  }

  private Workspace part(Workspace workspace, Part part) {
    return new Workspace(
        new DeviceMemory(device.info().id(), part.in(workspace).deviceAddress(), part.byteSize()));
  }

  @Override
  public void combine(
      Tensor output,
      ExchangedRows rows,
      ExchangeInputs inputs,
      Tensor routed,
      Workspace workspace,
      DeviceStream stream) {
    Places at = new Places(inputs.maxTokens(), inputs.hidden().dtype());
    Tensor mapping = inputs.tokenLoraMapping();
    ExchangeKernels.Rows all = direct == null ? null : direct.gathered(inputs);
    PeerLink.PairRows left = rows.link() instanceof SumLink link ? link.rows() : null;
    if (direct != null && left != null) {
      direct.combine(left, inputs, routed, part(workspace, at.sum).memory(), stream);
      return;
    }
    Tensor mine = output;
    if (isBatched()) {
      mine = at.allSums.in(workspace);
      ExchangeKernels.Rows gathered = all == null ? all(at, workspace, mapping != null) : all;
      block.combine(output, routing(gathered, inputs), mine, part(workspace, at.block), stream);
    }
    if (direct != null && all != null) {
      direct.sum(mine, routed, part(workspace, at.sum).memory(), inputs.maxTokens(), stream);
      return;
    }
    long tokens = routed.size(0);
    if (tokens == inputs.maxTokens() && routed.dtype() == mine.dtype()) {
      communicator.reduceScatter(mine, routed, stream);
      return;
    }
    Tensor sum =
        Tensor.of(
            mine.dtype(),
            part(workspace, at.sum).memory(),
            inputs.maxTokens(),
            config.expertHiddenSize());
    communicator.reduceScatter(mine, sum, stream);
    if (tokens == 0) {
      return;
    }
    Tensor own = sum.narrow(0, 0, tokens);
    if (routed.dtype() == own.dtype()) {
      device.copy(own, routed, stream);
    } else {
      kernels.cast(own, routed, stream);
    }
  }

  @Override
  public void close() {
    owners.close();
  }
}
