package io.moe4j.oracle;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.device.WorkspaceLayout;
import io.moe4j.api.device.WorkspaceLayout.Part;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.Experts;
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
  private final Part routed;
  private final Part batchIn;
  private final Part batchOut;
  private final Part counts;
  private final Part mapping;
  private final long bytes;

  ScratchLayout(MoeConfig config, BlockOps block, Experts experts, int capacity) {
    this.config = config;
    this.capacity = capacity;
    this.workspaceBytes =
        Workspace.align(Math.max(block.workspaceBytes(capacity), experts.workspaceBytes(capacity)));
    long width = config.expertHiddenSize();
    long rows = batched() ? Math.multiplyExact((long) config.numLocalExperts(), capacity) : 0;
    WorkspaceLayout layout = new WorkspaceLayout();
    layout.reserve(workspaceBytes);
    logits = layout.reserve(DType.F32, capacity, config.numExperts());
    ids = layout.reserve(DType.I32, capacity, config.topK());
    weights = layout.reserve(DType.F32, capacity, config.topK());
    latent = layout.reserve(DType.F32, config.latentSize() > 0 ? capacity : 0, width);
    routed = layout.reserve(DType.F32, needsRouted() ? capacity : 0, width);
    batchIn = layout.reserve(batchDtype(), rows, width);
    batchOut = layout.reserve(DType.F32, rows, width);
    counts = layout.reserve(DType.I32, batched() ? config.numLocalExperts() : 0);
    mapping = layout.reserve(DType.I32, config.lora().isPresent() ? rows : 0);
    bytes = layout.byteSize();
  }

  private boolean batched() {
    return config.activationFormat() == ActivationFormat.BATCHED;
  }

  private boolean needsRouted() {
    return batched() || needsFinish(config);
  }

  /** Whether something is to be done to the sum of the experts before it is the block's output. */
  static boolean needsFinish(MoeConfig config) {
    return config.sharedExpert().isPresent() || config.latentSize() > 0;
  }

  private DType batchDtype() {
    return config.latentSize() > 0 ? DType.F32 : config.inputDtype();
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
   * @param workspace what any one call may use
   * @param logits F32 {@code [T, E]}
   * @param topkIds int32 {@code [T, K]}
   * @param topkWeights F32 {@code [T, K]}
   * @param latent F32 {@code [T, D]} or null
   * @param routed F32 {@code [T, H or D]} or null
   * @param batch for BATCHED experts, else null
   */
  record Views(
      Workspace workspace,
      Tensor logits,
      Tensor topkIds,
      Tensor topkWeights,
      @Nullable Tensor latent,
      @Nullable Tensor routed,
      @Nullable Batch batch) {}

  /**
   * What BATCHED experts read and write.
   *
   * @param in {@code [E_local, T, H or D]}
   * @param out F32, the same shape
   * @param counts int32 {@code [E_local]}
   * @param loraMapping int32 {@code [E_local, T]}, null where LoRA is off
   */
  record Batch(Tensor in, Tensor out, Tensor counts, @Nullable Tensor loraMapping) {}

  Views views(Memory memory, int tokens) {
    Workspace all = new Workspace(memory);
    long width = config.expertHiddenSize();
    Batch batch = null;
    if (batched()) {
      long local = config.numLocalExperts();
      batch =
          new Batch(
              batchIn.in(all, local, tokens, width),
              batchOut.in(all, local, tokens, width),
              counts.in(all),
              config.lora().isPresent() ? mapping.in(all, local, tokens) : null);
    }
    return new Views(
        new Workspace(head(memory, workspaceBytes)),
        logits.in(all, tokens, config.numExperts()),
        ids.in(all, tokens, config.topK()),
        weights.in(all, tokens, config.topK()),
        config.latentSize() > 0 ? latent.in(all, tokens, width) : null,
        needsRouted() ? routed.in(all, tokens, width) : null,
        batch);
  }

  private static Memory head(Memory memory, long size) {
    return switch (memory) {
      case HostMemory m -> new HostMemory(m.segment().asSlice(0, size));
      case DeviceMemory m -> new DeviceMemory(m.device(), m.address(), size);
    };
  }
}
