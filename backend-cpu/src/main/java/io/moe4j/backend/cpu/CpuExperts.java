package io.moe4j.backend.cpu;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.Fact;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.List;
import org.jspecify.annotations.Nullable;

/** Prepared experts of one layer. LoRA is fused: the context's punica wrapper is not called. */
final class CpuExperts implements ModularExperts, LoraExperts {
  private final MoeConfig config;
  private final Arena arena = Arena.ofShared();
  private final Mlp mlp;

  CpuExperts(MoeConfig config, ExpertWeights weights, Mlps mlps) {
    this.config = config;
    boolean done = false;
    try {
      mlp =
          mlps.of(
              config.activation(),
              weights.experts(),
              arena,
              false,
              new Mlp.Options(
                  config.topK(),
                  config.routerWeightOnInput(),
                  config.lora().map(LoraConfig::maxLoras).orElse(0),
                  config.lora().map(LoraConfig::maxRank).orElse(0),
                  config.batchInvariant()));
      done = true;
    } finally {
      if (!done) {
        close();
      }
    }
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return mlp.workspaceBytes(maxTokens);
  }

  @Override
  public List<Fact> facts() {
    return mlp.facts();
  }

  @Override
  public void apply(
      ExpertsInputs inputs,
      @Nullable MoeLoraContext lora,
      Workspace workspace,
      DeviceStream stream) {
    if (!arena.scope().isAlive()) {
      throw new IllegalStateException("the experts are closed");
    }
    Tensor hidden = inputs.hidden();
    Tensor output = inputs.output();
    ExpertRouting routing = inputs.requireRouting();
    Tensor map = routing.expertMap();
    int tokens = Math.toIntExact(hidden.size(0));
    if (hidden.size(1) != mlp.hidden()) {
      throw new IllegalArgumentException(
          "hidden is " + hidden + ", the experts read width " + mlp.hidden());
    }
    if (routing.topkIds().size(1) != config.topK()) {
      throw new IllegalArgumentException(
          "topkIds is " + routing.topkIds() + ", the config has topK " + config.topK());
    }
    if (lora != null && lora.hasLora() && lora.tokenLoraMapping().elementCount() != tokens) {
      throw new IllegalArgumentException(
          "tokenLoraMapping is " + lora.tokenLoraMapping() + " for " + tokens + " tokens");
    }
    MemorySegment results = FileMemory.standIn(output.segment());
    mlp.run(
        new MlpCall(
            FileMemory.read(hidden),
            Rows.requireFloat("hidden", hidden),
            tokens,
            config.topK(),
            routing.topkIds().segment(),
            FileMemory.read(routing.topkWeights()),
            map == null ? null : map.segment(),
            lora,
            results,
            Rows.requireFloat("output", output)),
        memory(workspace, mlp.workspaceBytes(tokens)));
    FileMemory.writeBack(results, output.segment());
  }

  /** The workspace's segment, checked for size. */
  static MemorySegment memory(Workspace workspace, long needed) {
    if (!(workspace.memory() instanceof HostMemory host)) {
      throw new IllegalArgumentException("the workspace is not in host memory");
    }
    if (host.segment().byteSize() < needed) {
      throw new IllegalArgumentException(
          "the workspace has " + host.segment().byteSize() + " bytes, this call needs " + needed);
    }
    return host.segment();
  }

  @Override
  public void close() {
    if (arena.scope().isAlive()) {
      arena.close();
    }
  }
}
