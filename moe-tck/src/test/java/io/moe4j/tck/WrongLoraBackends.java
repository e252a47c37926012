package io.moe4j.tck;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.reference.ReferenceMath;
import io.moe4j.reference.ReferenceMoe;
import java.util.EnumMap;
import java.util.List;
import java.util.Optional;
import java.util.function.IntUnaryOperator;
import java.util.function.UnaryOperator;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/** Backends that are right without adapters. */
final class WrongLoraBackends {
  private WrongLoraBackends() {}

  private static @Nullable MoeLoraContext mapped(
      @Nullable MoeLoraContext lora, IntUnaryOperator slot) {
    if (lora == null) {
      return null;
    }
    int[] slots = lora.tokenLoraMapping().toInts();
    for (int i = 0; i < slots.length; i++) {
      slots[i] = slot.applyAsInt(slots[i]);
    }
    Tensor mapping = Tensor.ofInts(slots, lora.tokenLoraMapping().shape());
    return new KitLoraContext(layers(lora, l -> l), mapping, true, lora.punicaWrapper());
  }

  private static List<Optional<LoraLayer>> layers(
      MoeLoraContext c, UnaryOperator<LoraLayer> change) {
    return IntStream.range(0, c.maxLoras())
        .mapToObj(s -> Optional.ofNullable(c.slot(s)).map(change))
        .toList();
  }

  private static @Nullable MoeLoraContext changed(
      @Nullable MoeLoraContext lora, UnaryOperator<LoraLayer> change) {
    return lora == null
        ? null
        : new KitLoraContext(
            layers(lora, change), lora.tokenLoraMapping(), lora.hasLora(), lora.punicaWrapper());
  }

  /** Accepts adapters and computes the base model. */
  public static final class LoraIgnored extends Altered {
    @Override
    @Nullable MoeLoraContext lora(@Nullable MoeLoraContext lora) {
      return null;
    }
  }

  /** Slot -1 is taken for slot 0. */
  public static final class LoraOnBaseTokens extends Altered {
    @Override
    @Nullable MoeLoraContext lora(@Nullable MoeLoraContext lora) {
      return mapped(lora, s -> Math.max(s, 0));
    }
  }

  /** One adapter for the batch. */
  public static final class LoraOfTheFirstSlot extends Altered {
    @Override
    @Nullable MoeLoraContext lora(@Nullable MoeLoraContext lora) {
      return mapped(lora, s -> Math.min(s, 0));
    }
  }

  /** A kernel for ranks up to 64 takes any. */
  public static final class LoraRankCut extends Altered {
    @Override
    @Nullable MoeLoraContext lora(@Nullable MoeLoraContext lora) {
      return changed(
          lora,
          layer -> {
            var cut = new EnumMap<LoraTarget, LoraFactors>(LoraTarget.class);
            layer
                .factors()
                .forEach((target, f) -> {
                  long r = Math.min(64, f.rank());
                  cut.put(target, new LoraFactors(f.a().narrow(1, 0, r), f.b().narrow(2, 0, r)));
                });
            return new LoraLayer(cut);
          });
    }
  }

  /** An adapter without all three projections is taken for none. */
  public static final class LoraNeedsAllProjections extends Altered {
    @Override
    @Nullable MoeLoraContext lora(@Nullable MoeLoraContext lora) {
      return changed(
          lora,
          layer ->
              layer.get(LoraTarget.UP) != null && layer.get(LoraTarget.DOWN) != null
                  ? layer
                  : LoraLayer.NONE);
    }
  }

  /** Every expert reads the factors of expert 0. */
  public static final class LoraOfTheFirstExpert extends Altered {
    @Override
    @Nullable MoeLoraContext lora(@Nullable MoeLoraContext lora) {
      return changed(
          lora,
          layer ->
              KitLoraContext.map(
                  layer, t -> t.size(0) == 1 ? t : t.select(0, 0).expand(t.size(0))));
    }
  }

  /** Strides of factors are not looked at. */
  public static final class LoraStridesIgnored extends Altered {
    @Override
    @Nullable MoeLoraContext lora(@Nullable MoeLoraContext lora) {
      return changed(
          lora,
          layer ->
              KitLoraContext.map(
                  layer,
                  t -> {
                    if (t.isContiguous() || t.stride(0) == 0) {
                      return t;
                    }
                    long[] dense = {t.size(1) * t.size(2), t.size(2), 1};
                    long bytes = t.dtype().byteSize(t.elementCount());
                    return t.memory().byteSize() < t.byteOffset() + bytes
                        ? t
                        : Tensor.strided(t.dtype(), t.memory(), t.byteOffset(), t.shape(), dense);
                  }));
    }
  }

  /** Computes by itself, so that deltas can enter in the wrong place. */
  public abstract static class Own extends Altered {
    abstract double[] expert(
        MoeConfig config, ExpertWeights.Expert w, double[] x, LoraLayer lora, int e, double weight);

    @Override
    public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
      return new ModularLora() {
        @Override
        public long workspaceBytes(int maxTokens) {
          return 0;
        }

        @Override
        public void apply(
            ExpertsInputs in,
            @Nullable MoeLoraContext lora,
            Workspace workspace,
            DeviceStream stream) {
          ExpertRouting routing = in.requireRouting();
          for (int t = 0; t < in.hidden().size(0); t++) {
            LoraLayer layer = ReferenceMoe.adapter(lora, t);
            double[] sum = new double[Math.toIntExact(in.hidden().size(1))];
            for (int k = 0; k < config.topK(); k++) {
              int e = routing.localExpert(t, k, weights.numExperts());
              if (e >= 0) {
                double[] y =
                    expert(
                        config,
                        weights.expert(e),
                        in.hidden().select(0, t).toDoubles(),
                        layer == null ? LoraLayer.NONE : layer,
                        e,
                        routing.topkWeights().get(t, k));
                for (int h = 0; h < sum.length; h++) {
                  sum[h] += y[h];
                }
              }
            }
            for (int h = 0; h < sum.length; h++) {
              in.output().set(sum[h], t, h);
            }
          }
        }

        @Override
        public void close() {}
      };
    }
  }

  /** Up and gate deltas are added to the activation's result. */
  public static final class LoraBehindTheActivation extends Own {
    @Override
    double[] expert(
        MoeConfig config,
        ExpertWeights.Expert w,
        double[] x,
        LoraLayer lora,
        int e,
        double weight) {
      double[] up = ReferenceMoe.upProduct(w, x);
      double[] gate = w.gate() == null ? up : ReferenceMoe.gateProduct(w, x);
      double[] hidden = new double[up.length];
      for (int i = 0; i < hidden.length; i++) {
        hidden[i] = ReferenceMath.activate(config.activation(), gate[i], up[i]);
      }
      ReferenceMath.addLora(hidden, lora, LoraTarget.UP, e, x);
      ReferenceMath.addLora(hidden, lora, LoraTarget.GATE, e, x);
      double[] y = ReferenceMoe.downProduct(w, hidden);
      ReferenceMath.addLora(y, lora, LoraTarget.DOWN, e, hidden);
      return times(weight, y);
    }
  }

  /** The down delta joins after the weighting. */
  public static final class LoraUnweighted extends Own {
    @Override
    double[] expert(
        MoeConfig config,
        ExpertWeights.Expert w,
        double[] x,
        LoraLayer lora,
        int e,
        double weight) {
      double[] with = ReferenceMoe.expert(config.activation(), w, x, lora, e);
      var upper = new EnumMap<LoraTarget, LoraFactors>(LoraTarget.class);
      upper.putAll(lora.factors());
      upper.remove(LoraTarget.DOWN);
      double[] without = ReferenceMoe.expert(config.activation(), w, x, new LoraLayer(upper), e);
      double[] y = times(weight, without);
      for (int h = 0; h < y.length; h++) {
        y[h] += with[h] - without[h];
      }
      return y;
    }
  }

  private static double[] times(double weight, double[] y) {
    double[] result = new double[y.length];
    for (int h = 0; h < y.length; h++) {
      result[h] = weight * y[h];
    }
    return result;
  }

  /** Leaves LoRA to the default methods, but takes the stacked layout for the other one. */
  public static final class LoraIntoTheWrongHalf extends Altered {
    @Override
    public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
      return new DefaultMethods(config, weights, GateUpLayout.INTERLEAVED);
    }
  }

  /** Leaves LoRA to the default methods, rightly: must pass. */
  public static final class LoraByDefaultMethods extends Altered {
    @Override
    public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
      return new DefaultMethods(config, weights, GateUpLayout.HALVES);
    }
  }

  private record DefaultMethods(MoeConfig config, ExpertWeights weights, GateUpLayout layout)
      implements ModularExperts, LoraExperts {
    @Override
    public long workspaceBytes(int maxTokens) {
      return 0;
    }

    @Override
    public void apply(
        ExpertsInputs in, @Nullable MoeLoraContext lora, Workspace workspace, DeviceStream stream) {
      ExpertRouting routing = in.requireRouting();
      long tokens = in.hidden().size(0);
      int topK = config.topK();
      int i = config.intermediateSize();
      int h = config.expertHiddenSize();
      boolean gated = config.activation().isGated();
      int columns = gated ? 2 * i : i;
      Tensor w13 = Data.empty(DType.F32, tokens, topK, columns);
      Tensor x = Data.empty(DType.F32, tokens * topK, h);
      for (int t = 0; t < tokens; t++) {
        for (int k = 0; k < topK; k++) {
          int e = routing.localExpert(t, k, weights.numExperts());
          if (e < 0) {
            continue;
          }
          double factor = config.routerWeightOnInput() ? routing.topkWeights().get(t, k) : 1;
          double[] input = times(factor, in.hidden().select(0, t).toDoubles());
          put(x.select(0, (long) t * topK + k), input, 0);
          ExpertWeights.Expert w = weights.expert(e);
          double[] up = ReferenceMoe.upProduct(w, input);
          ReferenceMath.addBias(up, w.upBias());
          put(w13.select(0, t).select(0, k), up, columns - i);
          if (w.gate() != null) {
            double[] gate = ReferenceMoe.gateProduct(w, input);
            ReferenceMath.addBias(gate, w.gateBias());
            put(w13.select(0, t).select(0, k), gate, 0);
          }
        }
      }
      if (lora != null) {
        applyW13Lora(PunicaWrapper.W13.of(lora, w13, x, routing, gated, layout), stream);
      }
      Tensor hidden = Data.empty(DType.F32, tokens * topK, i);
      Tensor w2 = Data.empty(DType.F32, tokens, topK, h);
      for (int t = 0; t < tokens; t++) {
        for (int k = 0; k < topK; k++) {
          int e = routing.localExpert(t, k, weights.numExperts());
          if (e < 0) {
            continue;
          }
          double[] a = new double[i];
          for (int j = 0; j < i; j++) {
            a[j] =
                ReferenceMath.activate(
                    config.activation(), w13.get(t, k, j), w13.get(t, k, columns - i + j));
          }
          put(hidden.select(0, (long) t * topK + k), a, 0);
          double[] y = ReferenceMoe.downProduct(weights.expert(e), a);
          ReferenceMath.addBias(y, weights.expert(e).downBias());
          put(w2.select(0, t).select(0, k), y, 0);
        }
      }
      if (lora != null) {
        applyW2Lora(PunicaWrapper.W2.of(lora, w2, hidden, routing), stream);
      }
      for (int t = 0; t < tokens; t++) {
        for (int j = 0; j < h; j++) {
          double sum = 0;
          for (int k = 0; k < topK; k++) {
            double weight = config.routerWeightOnInput() ? 1 : routing.topkWeights().get(t, k);
            boolean here = routing.localExpert(t, k, weights.numExperts()) >= 0;
            sum += here ? weight * w2.get(t, k, j) : 0;
          }
          in.output().set(sum, t, j);
        }
      }
    }

    private static void put(Tensor row, double[] values, int from) {
      for (int i = 0; i < values.length; i++) {
        row.set(values[i], from + i);
      }
    }

    @Override
    public void close() {}
  }
}
