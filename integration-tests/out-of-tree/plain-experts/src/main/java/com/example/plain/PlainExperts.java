package com.example.plain;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper.W13;
import io.moe4j.api.lora.PunicaWrapper.W2;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;

/** Products of all pairs are kept, so that the punica wrapper adds all deltas at once. */
record PlainExperts(MoeConfig config, ExpertWeights weights) implements ModularExperts, LoraExperts {
  @Override
  public long workspaceBytes(int maxTokens) {
    return 0; // an example to read: scratch is on the heap
  }

  @Override
  public void apply(
      ExpertsInputs in, MoeLoraContext lora, Workspace workspace, DeviceStream stream) {
    ExpertRouting routing = in.requireRouting();
    int tokens = (int) in.hidden().size(0);
    int i = config.intermediateSize();
    int pairs = tokens * config.topK();
    int h = config.expertHiddenSize();
    int experts = weights.numExperts();
    Tensor w13 = Tensor.ofFloats(new float[pairs * 2 * i], tokens, config.topK(), 2 * i);
    Tensor act = Tensor.ofFloats(new float[pairs * i], pairs, i);
    Tensor w2 = Tensor.ofFloats(new float[pairs * h], tokens, config.topK(), h);
    routing.forEachLocalPair(experts, (t, k, e) -> {
      Tensor x = in.hidden().select(0, t);
      Tensor y = w13.select(0, t).select(0, k);
      multiply(weights.expert(e).gate(), x, y.narrow(0, 0, i));
      multiply(weights.expert(e).up(), x, y.narrow(0, i, i));
    });
    if (lora != null) {
      applyW13Lora(W13.of(lora, w13, in.hidden(), routing, true, GateUpLayout.HALVES), stream);
    }
    routing.forEachLocalPair(experts, (t, k, e) -> {
      Tensor x = act.select(0, t * config.topK() + k);
      for (int c = 0; c < i; c++) {
        double gate = w13.get(t, k, c);
        x.set(gate / (1 + Math.exp(-gate)) * w13.get(t, k, i + c), c);
      }
      multiply(weights.expert(e).down(), x, w2.select(0, t).select(0, k));
    });
    if (lora != null) {
      applyW2Lora(W2.of(lora, w2, act, routing), stream);
    }
    double[][] sums = new double[tokens][h];
    routing.forEachLocalPair(experts, (t, k, e) -> {
      for (int c = 0; c < h; c++) {
        sums[t][c] += routing.topkWeights().get(t, k) * w2.get(t, k, c);
      }
    });
    for (int t = 0; t < tokens; t++) {
      for (int c = 0; c < h; c++) {
        in.output().set(sums[t][c], t, c);
      }
    }
  }

  private static void multiply(Weight weight, Tensor x, Tensor y) {
    double[] in = x.toDoubles();
    for (int o = 0; o < weight.out(); o++) {
      double sum = 0;
      for (int i = 0; i < in.length; i++) {
        sum += weight.plain().get(o, i) * in[i];
      }
      y.set(sum, o);
    }
  }

  @Override
  public void close() {}
}
