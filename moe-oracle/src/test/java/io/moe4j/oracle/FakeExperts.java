package io.moe4j.oracle;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.Fact;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.spi.MonolithicExperts;
import io.moe4j.api.spi.MonolithicInputs;
import io.moe4j.api.tensor.Tensor;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * Local expert {@code e} multiplies by {@code e + 1}; a token with an adapter in slot {@code s}
 * gets {@code 100 * (s + 1)} more from each of its experts.
 */
final class FakeExperts {
  private FakeExperts() {}

  /** What tests look at or hold up. */
  interface Probe {
    default void inApply(Workspace workspace) {}

    default List<Fact> facts() {
      return List.of();
    }

    default long workspaceBytes(int maxTokens) {
      return 64L * maxTokens;
    }
  }

  static Experts modular(FakeDevice device) {
    return new Modular(device, new Probe() {});
  }

  static Experts lora(FakeDevice device) {
    return new WithLora(device, new Probe() {});
  }

  static Experts lora(FakeDevice device, Probe probe) {
    return new WithLora(device, probe);
  }

  static Experts monolithic(FakeDevice device) {
    return new Monolithic(device);
  }

  private static double delta(@Nullable MoeLoraContext lora, long... index) {
    if (lora == null) {
      return 0;
    }
    int slot = (int) lora.tokenLoraMapping().get(index);
    return 100.0 * (slot + 1);
  }

  private static class Modular implements ModularExperts {
    private final FakeDevice device;
    private final Probe probe;

    Modular(FakeDevice device, Probe probe) {
      this.device = device;
      this.probe = probe;
    }

    @Override
    public List<Fact> facts() {
      return probe.facts();
    }

    @Override
    public long workspaceBytes(int maxTokens) {
      return probe.workspaceBytes(maxTokens);
    }

    @Override
    public void apply(
        ExpertsInputs in, @Nullable MoeLoraContext lora, Workspace workspace, DeviceStream stream) {
      device.events.add(
          "apply "
              + in.hidden()
              + " -> "
              + in.output()
              + (lora != null ? " lora " + lora.tokenLoraMapping() : "")
              + " on "
              + stream);
      probe.inApply(workspace);
      if (!device.isHost()) {
        return;
      }
      if (in.expertNumTokens() != null) {
        batched(in, in.expertNumTokens(), lora);
      } else {
        standard(in, in.requireRouting(), lora);
      }
    }

    @Override
    public void applyRouted(
        ExpertsInputs in, @Nullable MoeLoraContext lora, Workspace workspace, DeviceStream stream) {
      device.events.add("beside the routing");
      apply(in, lora, workspace, stream);
    }

    @Override
    public boolean routeAndApply(
        Tensor logits, ExpertsInputs in, Workspace workspace, DeviceStream stream) {
      if (!device.routesInside) {
        return false;
      }
      device.events.add("routed inside");
      ExpertRouting to = in.requireRouting();
      FakeBlock.choose(logits, to.topkIds(), to.topkWeights());
      apply(in, null, workspace, stream);
      return true;
    }

    private static void standard(
        ExpertsInputs in, ExpertRouting routing, @Nullable MoeLoraContext lora) {
      for (long t = 0; t < in.hidden().size(0); t++) {
        for (long h = 0; h < in.hidden().size(1); h++) {
          double sum = 0;
          for (long k = 0; k < routing.topkIds().size(1); k++) {
            int e = FakeBlock.local(routing, (int) routing.topkIds().get(t, k));
            if (e >= 0) {
              double y = (e + 1) * in.hidden().get(t, h) + delta(lora, t);
              sum += routing.topkWeights().get(t, k) * y;
            }
          }
          in.output().set(sum, t, h);
        }
      }
    }

    private static void batched(ExpertsInputs in, Tensor counts, @Nullable MoeLoraContext lora) {
      for (long e = 0; e < in.hidden().size(0); e++) {
        for (long row = 0; row < (long) counts.get(e); row++) {
          for (long h = 0; h < in.hidden().size(2); h++) {
            in.output().set((e + 1) * in.hidden().get(e, row, h) + delta(lora, e, row), e, row, h);
          }
        }
      }
    }

    @Override
    public void close() {
      device.events.add("close experts");
    }
  }

  private static final class WithLora extends Modular implements LoraExperts {
    WithLora(FakeDevice device, Probe probe) {
      super(device, probe);
    }
  }

  /** Takes the best expert by itself, weight 1. */
  private record Monolithic(FakeDevice device) implements MonolithicExperts {
    @Override
    public long workspaceBytes(int maxTokens) {
      return 0;
    }

    @Override
    public void apply(
        MonolithicInputs inputs,
        @Nullable MoeLoraContext lora,
        Workspace workspace,
        DeviceStream stream) {
      Tensor hidden = inputs.hidden();
      Tensor routerLogits = inputs.routerLogits();
      Tensor output = inputs.output();
      device.events.add("monolithic " + hidden + " bias " + inputs.correctionBias());
      for (long t = 0; t < hidden.size(0); t++) {
        int best = 0;
        for (int e = 1; e < routerLogits.size(1); e++) {
          best = routerLogits.get(t, e) > routerLogits.get(t, best) ? e : best;
        }
        for (long h = 0; h < hidden.size(1); h++) {
          output.set((best + 1) * hidden.get(t, h), t, h);
        }
      }
    }

    @Override
    public void close() {
      device.events.add("close experts");
    }
  }
}
