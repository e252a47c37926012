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
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.ops.PeerLink;
import org.jspecify.annotations.Nullable;

/**
 * Every rank has all tokens: no row moves, each computes what its experts add, and one sum over the
 * ranks gives all of them the result. All on the stream; nothing waits for the device, and a graph
 * may record it.
 *
 * <p>Ranks that reach each other's memory add in f32 in the order of ranks and round once ({@link
 * DirectSums}); the others go by NCCL's AllReduce. Either way all ranks have the same bits, from
 * run to run.
 */
final class DeviceAllReduce implements ExpertExchange {
  private final MoeConfig config;
  private final Communicator communicator;
  private final BlockOps block;
  private final Device device;
  private final ExchangeKernels kernels;
  private final DType sums;

  /** Whether experts may leave their sum over k to the exchange. */
  private final boolean adds;

  private final @Nullable DirectSums direct;
  private final Owners owners;

  DeviceAllReduce(
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
    this.sums = isBatched() ? DType.F32 : sums;
    this.adds = adds && this.sums == DType.BF16;
    this.direct = DirectSums.of(communicator, device);
    this.owners = new Owners(config, device);
  }

  @Override
  public String name() {
    return DeviceAllReduceProvider.NAME;
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
    return sums;
  }

  @Override
  public int maxRows(int maxTokens) {
    return maxTokens;
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return new Places(maxTokens, DType.F32).layout.byteSize();
  }

  private boolean isBatched() {
    return config.activationFormat() == ActivationFormat.BATCHED;
  }

  /** Scratch for {@code n} tokens. */
  private final class Places {
    final WorkspaceLayout layout = new WorkspaceLayout();
    final Part ids;
    final Part sum;
    final Part spare;
    final Part batched;
    final Part counts;
    final Part slots;
    final Part block;

    Places(long n, DType dtype) {
      long width = config.expertHiddenSize();
      long experts = isBatched() ? config.numLocalExperts() : 0;
      ids = layout.reserve(DType.I32, owners.table() == null ? 0 : n, config.topK());
      sum = layout.reserve(DType.F32, isBatched() ? n : 0, width);
      spare = layout.reserve(DType.F32, n, width);
      batched = layout.reserve(dtype, experts, n, width);
      counts = layout.reserve(DType.I32, experts);
      slots = layout.reserve(DType.I32, experts, n);
      long scratch =
          isBatched() ? DeviceAllReduce.this.block.workspaceBytes(Math.toIntExact(n)) : 0;
      block = layout.reserve(DType.U8, scratch);
    }
  }

  private Places places(ExchangeInputs inputs) {
    return new Places(inputs.hidden().size(0), inputs.hidden().dtype());
  }

  @Override
  public ExchangedRows dispatch(ExchangeInputs inputs, Workspace workspace, DeviceStream stream) {
    Places at = places(inputs);
    Tensor mapping = inputs.tokenLoraMapping();
    ExpertRouting routing = inputs.routing();
    long tokens = inputs.hidden().size(0);
    boolean begun = direct != null && direct.begin(tokens, config.expertHiddenSize(), sums, stream);
    Tensor owner = owners.table();
    if (owner != null) {
      device.copy(routing.topkIds(), at.ids.in(workspace), stream);
      routing = owned(at, inputs, workspace);
      // Copies of an expert share its tokens: the first of them go to the first copy, and so on.
      long rows = Math.ceilDiv(tokens, owner.size(0));
      kernels.own(routing.topkIds(), owner, rows, config.parallel().epRank(), stream);
    }
    if (!isBatched()) {
      SumLink link = begun && adds ? new SumLink(config.expertHiddenSize()) : null;
      return new ExchangedRows(inputs.hidden(), routing, null, mapping, link);
    }
    Tensor batched = at.batched.in(workspace);
    Tensor counts = at.counts.in(workspace);
    Tensor slots = mapping == null ? null : at.slots.in(workspace);
    block.dispatch(
        inputs.hidden(),
        routing,
        mapping,
        batched,
        counts,
        slots,
        part(workspace, at.block),
        stream);
    return new ExchangedRows(batched, null, counts, slots);
  }

  /** The routing with the pairs of this rank alone, where some experts are on several. */
  private ExpertRouting owned(Places at, ExchangeInputs inputs, Workspace workspace) {
    ExpertRouting r = inputs.routing();
    return owners.table() == null
        ? r
        : new ExpertRouting(at.ids.in(workspace), r.topkWeights(), r.expertMap());
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
    Places at = places(inputs);
    ExpertRouting routing = owned(at, inputs, workspace);
    Memory spare = part(workspace, at.spare).memory();
    boolean begun = direct != null && direct.isBegun();
    PeerLink.PairRows left = rows.link() instanceof SumLink link ? link.rows() : null;
    if (direct != null && begun && left != null) {
      direct.sumRows(left, routing, routed, spare, stream);
      return;
    }
    Tensor mine = output;
    if (isBatched()) {
      mine = at.sum.in(workspace);
      block.combine(output, routing, mine, part(workspace, at.block), stream);
    }
    if (direct != null && begun) {
      direct.sum(mine, routed, spare, stream);
      return;
    }
    communicator.allReduce(mine, stream);
    if (routed.size(0) == 0) {
      return;
    }
    if (routed.dtype() == mine.dtype()) {
      device.copy(mine, routed, stream);
    } else {
      kernels.cast(mine, routed, stream);
    }
  }

  @Override
  public void close() {
    owners.close();
  }
}
