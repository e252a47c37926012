package io.moe4j.oracle;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.device.WorkspaceLayout;
import io.moe4j.api.device.WorkspaceLayout.Part;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.ExpertExchange;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * Where everything between input and output stands in one piece of scratch memory, for up to so
 * many tokens. Router, dispatch, experts and combine run one after the other, so they share one
 * workspace.
 */
final class ScratchLayout {
  private final MoeConfig config;
  private final int capacity;
  private final long workspaceBytes;
  private final Part logits;
  private final Part ids;
  private final Part weights;
  private final Part latent;
  private final Part routerInput;
  private final Part routed;
  private final Part exchanged;
  private final Part expertsOut;
  private final boolean direct;
  private final Part expertIds;
  private final Part zeroWeights;
  private final long bytes;

  /**
   * @param forExperts bytes that the experts ask for, for the rows of so many tokens
   * @param direct whether experts read and write the layer's own tensors, because no row moves
   */
  ScratchLayout(
      MoeConfig config,
      BlockOps block,
      long forExperts,
      ExpertExchange exchange,
      boolean direct,
      int capacity) {
    this.config = config;
    this.capacity = capacity;
    this.workspaceBytes = Workspace.align(Math.max(block.workspaceBytes(capacity), forExperts));
    this.direct = direct;
    long width = config.expertHiddenSize();
    long rows = direct ? 0 : exchange.maxRows(capacity);
    WorkspaceLayout layout = new WorkspaceLayout();
    layout.reserve(workspaceBytes);
    logits = layout.reserve(DType.F32, capacity, config.numChoices());
    ids = layout.reserve(DType.I32, capacity, config.topK());
    weights = layout.reserve(DType.F32, capacity, config.topK());
    latent = layout.reserve(DType.F32, hasOwnInput() ? capacity : 0, width);
    routerInput = layout.reserve(DType.F32, needsRouterInput() ? capacity : 0, config.hiddenSize());
    routed = layout.reserve(DType.F32, needsRouted() ? capacity : 0, width);
    exchanged = layout.reserve(DType.U8, direct ? 0 : exchange.workspaceBytes(capacity));
    expertsOut =
        layout.reserve(
            exchange.outputDtype(), batched() ? config.numLocalExperts() : 1, rows, width);
    int zeros = config.zeroExperts() > 0 ? capacity : 0;
    expertIds = layout.reserve(DType.I32, zeros, config.topK());
    zeroWeights = layout.reserve(DType.F32, zeros);
    bytes = layout.byteSize();
  }

  private boolean batched() {
    return config.activationFormat() == ActivationFormat.BATCHED;
  }

  private boolean needsRouted() {
    return !direct || needsOutput(config) || config.zeroExperts() > 0;
  }

  /** Whether something is to be done to the sum of the experts before it is the block's output. */
  static boolean needsOutput(MoeConfig config) {
    return config.sharedExpert().isPresent() || config.latentSize() > 0 || config.outputBias();
  }

  /** Whether the experts read something else than the block's input: F32 in scratch. */
  private boolean hasOwnInput() {
    return config.latentSize() > 0 || config.inputNorm().isPresent();
  }

  /** Whether adapters read what the router has made of the block's input. */
  private boolean needsRouterInput() {
    return config.routing().inputNorm().isPresent()
        && config.lora().map(LoraConfig::router).orElse(false);
  }

  /** {@return the dtype of the rows that experts read} */
  static DType rowDtype(MoeConfig config) {
    boolean made = config.latentSize() > 0 || config.inputNorm().isPresent();
    return made ? DType.F32 : config.inputDtype();
  }

  /** {@return the largest T} */
  int capacity() {
    return capacity;
  }

  /** {@return what to take from the device} */
  long bytes() {
    return bytes;
  }

  /**
   * The parts for one T.
   *
   * @param all the whole scratch
   * @param workspace what any one call may use
   * @param logits F32 {@code [T, E]}
   * @param topkIds int32 {@code [T, K]}
   * @param topkWeights F32 {@code [T, K]}
   * @param expertIds int32 {@code [T, K]}, the same ids without zero experts; null where the layer
   *     has none
   * @param zeroWeights F32 {@code [T]}, likewise
   * @param latent F32 {@code [T, H or D]}, what the experts read instead of the block's input, or
   *     null
   * @param routerInput F32 {@code [T, H]}, what adapters on the router read instead of the block's
   *     input, or null
   * @param routed F32 {@code [T, H or D]} or null
   * @param exchanged scratch of the exchange, null where no row moves
   */
  record Views(
      Workspace all,
      Workspace workspace,
      Tensor logits,
      Tensor topkIds,
      Tensor topkWeights,
      @Nullable Tensor expertIds,
      @Nullable Tensor zeroWeights,
      @Nullable Tensor latent,
      @Nullable Tensor routerInput,
      @Nullable Tensor routed,
      @Nullable Workspace exchanged) {}

  /**
   * {@return where experts write what an exchange brought them, in the dtype it wants}
   *
   * @param views of this layout
   * @param shape of the rows that came
   */
  Tensor expertsOut(Views views, long[] shape) {
    return expertsOut.in(views.all(), shape);
  }

  Views views(Memory memory, int tokens) {
    Workspace all = new Workspace(memory);
    long width = config.expertHiddenSize();
    return new Views(
        all,
        new Workspace(head(memory, workspaceBytes)),
        logits.in(all, tokens, config.numChoices()),
        ids.in(all, tokens, config.topK()),
        weights.in(all, tokens, config.topK()),
        config.zeroExperts() > 0 ? expertIds.in(all, tokens, config.topK()) : null,
        config.zeroExperts() > 0 ? zeroWeights.in(all, tokens) : null,
        hasOwnInput() ? latent.in(all, tokens, width) : null,
        needsRouterInput() ? routerInput.in(all, tokens, config.hiddenSize()) : null,
        needsRouted() ? routed.in(all, tokens, width) : null,
        direct ? null : Workspaces.part(all, exchanged));
  }

  private static Memory head(Memory memory, long size) {
    if (memory instanceof DeviceMemory m) {
      return new DeviceMemory(m.device(), m.address(), size);
    }
    return new HostMemory(((HostMemory) memory).segment().asSlice(0, size));
  }
}
