package com.example.plain;

import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import java.util.Optional;

/**
 * Pair by pair. Products are stored in f32 in the workspace, so that the punica wrapper can add its
 * deltas to all of them at once; sums run in f64.
 */
final class PlainExperts implements ModularExperts, LoraExperts {
  private final int hiddenSize;
  private final int intermediateSize;
  private final int topK;
  private final float[][] gate;
  private final float[][] up;
  private final float[][] down;

  /** Repacks the weights: whatever their dtype and strides, rows of floats. */
  PlainExperts(MoeConfig config, ExpertWeights weights) {
    hiddenSize = config.expertHiddenSize();
    intermediateSize = config.intermediateSize();
    topK = config.topK();
    int experts = weights.numExperts();
    gate = new float[experts][];
    up = new float[experts][];
    down = new float[experts][];
    for (int e = 0; e < experts; e++) {
      gate[e] = weights.expert(e).gate().plain().toFloats();
      up[e] = weights.expert(e).up().plain().toFloats();
      down[e] = weights.expert(e).down().plain().toFloats();
    }
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return w2Offset(maxTokens) + bytes(maxTokens, hiddenSize);
  }

  private long bytes(long tokens, long columns) {
    return Workspace.align(tokens * topK * columns * Float.BYTES);
  }

  private long activatedOffset(long tokens) {
    return bytes(tokens, 2L * intermediateSize);
  }

  private long w2Offset(long tokens) {
    return activatedOffset(tokens) + bytes(tokens, intermediateSize);
  }

  @Override
  public void apply(
      ExpertsInputs inputs,
      Optional<MoeLoraContext> lora,
      Workspace workspace,
      DeviceStream stream) {
    ExpertRouting routing = inputs.requireRouting();
    Tensor x = inputs.hidden();
    long tokens = x.size(0);
    Tensor w13 = workspace.tensor(0, DType.F32, tokens, topK, 2L * intermediateSize);
    Tensor activated =
        workspace.tensor(activatedOffset(tokens), DType.F32, tokens * topK, intermediateSize);
    Tensor w2 = workspace.tensor(w2Offset(tokens), DType.F32, tokens, topK, hiddenSize);

    for (long t = 0; t < tokens; t++) {
      for (long k = 0; k < topK; k++) {
        int e = localExpert(routing, t, k);
        for (int i = 0; e >= 0 && i < intermediateSize; i++) {
          double g = 0;
          double u = 0;
          for (int h = 0; h < hiddenSize; h++) {
            double v = x.get(t, h);
            g += gate[e][i * hiddenSize + h] * v;
            u += up[e][i * hiddenSize + h] * v;
          }
          w13.set(g, t, k, i);
          w13.set(u, t, k, intermediateSize + i);
        }
      }
    }
    lora.ifPresent(c -> applyW13Lora(PunicaWrapper.W13.of(c, w13, x, routing, true, GateUpLayout.HALVES), stream));

    for (long t = 0; t < tokens; t++) {
      for (long k = 0; k < topK; k++) {
        int e = localExpert(routing, t, k);
        if (e < 0) {
          continue;
        }
        long pair = t * topK + k;
        for (int i = 0; i < intermediateSize; i++) {
          double g = w13.get(t, k, i);
          activated.set(g / (1 + Math.exp(-g)) * w13.get(t, k, intermediateSize + i), pair, i);
        }
        for (int h = 0; h < hiddenSize; h++) {
          double sum = 0;
          for (int i = 0; i < intermediateSize; i++) {
            sum += down[e][h * intermediateSize + i] * activated.get(pair, i);
          }
          w2.set(sum, t, k, h);
        }
      }
    }
    lora.ifPresent(c -> applyW2Lora(PunicaWrapper.W2.of(c, w2, activated, routing), stream));

    for (long t = 0; t < tokens; t++) {
      for (int h = 0; h < hiddenSize; h++) {
        double sum = 0;
        for (long k = 0; k < topK; k++) {
          if (localExpert(routing, t, k) >= 0) {
            sum += routing.topkWeights().get(t, k) * w2.get(t, k, h);
          }
        }
        inputs.output().set(sum, t, h);
      }
    }
  }

  /** -1 for a pair that is to add nothing: no expert, an unknown one, or another rank's. */
  private int localExpert(ExpertRouting routing, long t, long k) {
    int e = (int) routing.topkIds().get(t, k);
    Tensor map = routing.expertMap();
    if (map != null) {
      e = e >= 0 && e < map.size(0) ? (int) map.get(e) : -1;
    }
    return e >= 0 && e < gate.length ? e : -1;
  }

  /** Arrays go with the object. */
  @Override
  public void close() {}
}
