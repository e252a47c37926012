package io.moe4j.oracle;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Workspace;
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
  private final long logitsAt;
  private final long idsAt;
  private final long weightsAt;
  private final long latentAt;
  private final long routedAt;
  private final long batchInAt;
  private final long batchOutAt;
  private final long countsAt;
  private final long mappingAt;
  private final long bytes;

  ScratchLayout(MoeConfig config, BlockOps block, Experts experts, int capacity) {
    this.config = config;
    this.capacity = capacity;
    this.workspaceBytes =
        Workspace.align(Math.max(block.workspaceBytes(capacity), experts.workspaceBytes(capacity)));
    long width = config.expertHiddenSize();
    long rows = batched() ? Math.multiplyExact((long) config.numLocalExperts(), capacity) : 0;
    long at = workspaceBytes;
    logitsAt = at;
    at = after(at, DType.F32, (long) capacity * config.numExperts());
    idsAt = at;
    at = after(at, DType.I32, (long) capacity * config.topK());
    weightsAt = at;
    at = after(at, DType.F32, (long) capacity * config.topK());
    latentAt = at;
    at = after(at, DType.F32, config.latentSize() > 0 ? capacity * width : 0);
    routedAt = at;
    at = after(at, DType.F32, needsRouted() ? capacity * width : 0);
    batchInAt = at;
    at = after(at, batchDtype(), Math.multiplyExact(rows, width));
    batchOutAt = at;
    at = after(at, DType.F32, Math.multiplyExact(rows, width));
    countsAt = at;
    at = after(at, DType.I32, batched() ? config.numLocalExperts() : 0);
    mappingAt = at;
    at = after(at, DType.I32, config.lora().isPresent() ? rows : 0);
    bytes = at;
  }

  private static long after(long at, DType dtype, long count) {
    return Workspace.align(Math.addExact(at, dtype.byteSize(count)));
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
              all.tensor(batchInAt, batchDtype(), local, tokens, width),
              all.tensor(batchOutAt, DType.F32, local, tokens, width),
              all.tensor(countsAt, DType.I32, local),
              config.lora().isPresent() ? all.tensor(mappingAt, DType.I32, local, tokens) : null);
    }
    return new Views(
        new Workspace(head(memory, workspaceBytes)),
        all.tensor(logitsAt, DType.F32, tokens, config.numExperts()),
        all.tensor(idsAt, DType.I32, tokens, config.topK()),
        all.tensor(weightsAt, DType.F32, tokens, config.topK()),
        config.latentSize() > 0 ? all.tensor(latentAt, DType.F32, tokens, width) : null,
        needsRouted() ? all.tensor(routedAt, DType.F32, tokens, width) : null,
        batch);
  }

  private static Memory head(Memory memory, long size) {
    return switch (memory) {
      case HostMemory m -> new HostMemory(m.segment().asSlice(0, size));
      case DeviceMemory m -> new DeviceMemory(m.device(), m.address(), size);
    };
  }
}
