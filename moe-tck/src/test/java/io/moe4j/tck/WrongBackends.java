package io.moe4j.tck;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.Fact;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.backend.cpu.reference.BatchedCpuReferenceBackend;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.locks.LockSupport;
import java.util.function.DoubleUnaryOperator;
import java.util.function.IntUnaryOperator;
import java.util.function.UnaryOperator;
import org.jspecify.annotations.Nullable;

/** Backends with a mistake each, without LoRA's (see {@link WrongLoraBackends}). */
final class WrongBackends {
  private WrongBackends() {}

  private static ExpertsInputs routed(
      ExpertsInputs in, IntUnaryOperator id, DoubleUnaryOperator weight, boolean map) {
    ExpertRouting r = in.requireRouting();
    Tensor ids = Data.empty(DType.I32, r.topkIds().shape());
    Tensor weights = Data.empty(DType.F32, r.topkIds().shape());
    for (long t = 0; t < ids.size(0); t++) {
      for (long k = 0; k < ids.size(1); k++) {
        ids.set(id.applyAsInt((int) r.topkIds().get(t, k)), t, k);
        weights.set(weight.applyAsDouble(r.topkWeights().get(t, k)), t, k);
      }
    }
    return ExpertsInputs.standard(
        in.hidden(), new ExpertRouting(ids, weights, map ? r.expertMap() : null), in.output());
  }

  private static ExpertWeights each(
      ExpertWeights weights, UnaryOperator<ExpertWeights.Expert> change) {
    return new ExpertWeights(weights.experts().stream().map(change).toList());
  }

  private static MemorySegment segment(Memory memory) {
    return ((HostMemory) memory).segment();
  }

  /** The result does not depend on the router's weights. */
  public static final class WeightForgotten extends Altered {
    @Override
    ExpertsInputs inputs(MoeConfig config, ExpertsInputs in) {
      return routed(in, id -> id, w -> 1, true);
    }
  }

  /** In the second product and again in the sum. */
  public static final class WeightTwice extends Altered {
    @Override
    ExpertsInputs inputs(MoeConfig config, ExpertsInputs in) {
      return routed(in, id -> id, w -> w * w, true);
    }
  }

  /** Knows only weights on the output. */
  public static final class WeightOnInputIgnored extends Altered {
    @Override
    MoeConfig config(MoeConfig config) {
      return config.toBuilder().routerWeightOnInput(false).build();
    }
  }

  /** Global ids taken for local ones. */
  public static final class MapIgnored extends Altered {
    @Override
    ExpertsInputs inputs(MoeConfig config, ExpertsInputs in) {
      return routed(in, id -> id, w -> w, false);
    }
  }

  /** A clamp where a check belongs. */
  public static final class UnknownIdsClamped extends Altered {
    @Override
    ExpertsInputs inputs(MoeConfig config, ExpertsInputs in) {
      return routed(in, id -> Math.min(id, config.numExperts() - 1), w -> w, true);
    }
  }

  /** Padding is computed as if it were expert 0. */
  public static final class MinusOneIsExpertZero extends Altered {
    @Override
    ExpertsInputs inputs(MoeConfig config, ExpertsInputs in) {
      return routed(in, id -> id == -1 ? 0 : id, w -> w, true);
    }
  }

  /** Only what some expert touched is written. */
  public static final class LonelyTokensUnwritten extends Altered {
    @Override
    void after(MoeConfig config, ExpertsInputs in, Workspace workspace) {
      for (int t = 0; t < in.hidden().size(0); t++) {
        boolean lonely = true;
        for (int k = 0; k < config.topK(); k++) {
          lonely &= in.requireRouting().localExpert(t, k, config.numLocalExperts()) < 0;
        }
        if (lonely) {
          in.output().set(0.25, t, 0);
        }
      }
    }
  }

  /** An empty launch is an error. */
  public static final class ZeroTokensThrow extends Altered {
    @Override
    ExpertsInputs inputs(MoeConfig config, ExpertsInputs in) {
      if (in.hidden().size(0) == 0) {
        throw new IllegalArgumentException("grid of 0 blocks");
      }
      return in;
    }
  }

  /** Says yes to every activation and computes one. */
  public static final class OneActivationForAll extends Altered {
    @Override
    MoeConfig config(MoeConfig config) {
      return config.toBuilder()
          .activation(
              config.activation().isGated()
                  ? Activation.SILU
                  : Activation.plain(Activation.Kind.SILU_NO_MUL))
          .build();
    }
  }

  /** The clamp of SwiGLU variants is dropped. */
  public static final class LimitIgnored extends Altered {
    @Override
    MoeConfig config(MoeConfig config) {
      return config.toBuilder()
          .activation(config.activation().withLimit(Float.POSITIVE_INFINITY))
          .build();
    }
  }

  /** All biases. */
  public static final class BiasForgotten extends Altered {
    @Override
    ExpertWeights weights(ExpertWeights weights) {
      return each(weights, x -> ExpertWeights.Expert.of(x.gate(), x.up(), x.down()));
    }
  }

  /** Up first. */
  public static final class GateAndUpSwapped extends Altered {
    @Override
    ExpertWeights weights(ExpertWeights weights) {
      return each(
          weights,
          x ->
              x.gate() == null
                  ? x
                  : ExpertWeights.Expert.of(x.up(), x.gate(), x.down())
                      .withBias(x.upBias(), x.gateBias(), x.downBias()));
    }
  }

  /** Every matrix is read as if it were dense. */
  public static final class StridesIgnored extends Altered {
    @Override
    ExpertWeights weights(ExpertWeights weights) {
      return each(
          weights,
          x ->
              ExpertWeights.Expert.plain(
                      x.gate() == null ? null : dense(x.gate().values()),
                      dense(x.up().values()),
                      dense(x.down().values()))
                  .withBias(x.gateBias(), x.upBias(), x.downBias()));
    }

    private static Tensor dense(Tensor t) {
      long[] strides = {t.size(1), 1};
      long bytes = t.dtype().byteSize(t.elementCount());
      long offset = Math.min(t.byteOffset(), t.memory().byteSize() - bytes);
      return Tensor.strided(t.dtype(), t.memory(), offset, t.shape(), strides);
    }
  }

  /** The rest of a division by the vector length. */
  public static final class TailForgotten extends Altered {
    @Override
    void after(MoeConfig config, ExpertsInputs in, Workspace workspace) {
      long h = in.output().size(1);
      for (int t = 0; t < in.output().size(0); t++) {
        for (long i = h - h % 8; i < h; i++) {
          in.output().set(0, t, i);
        }
      }
    }
  }

  /** bf16 between the steps, whatever the dtype of the hidden states. */
  public static final class ShortAccumulator extends Altered {
    @Override
    void after(MoeConfig config, ExpertsInputs in, Workspace workspace) {
      for (int t = 0; t < in.output().size(0); t++) {
        for (int i = 0; i < in.output().size(1); i++) {
          float v = (float) in.output().get(t, i);
          in.output().set(Float.intBitsToFloat(Tensor.toBFloat16(v) << 16), t, i);
        }
      }
    }
  }

  /** 0 times NaN of a neighbour in the same tile. */
  public static final class FaultsSpread extends Altered {
    @Override
    void after(MoeConfig config, ExpertsInputs in, Workspace workspace) {
      for (double v : in.output().toDoubles()) {
        if (Double.isNaN(v)) {
          in.output().set(Double.NaN, 0, 0);
        }
      }
    }
  }

  /** A maximum that prefers numbers. */
  public static final class FaultsVanish extends Altered {
    @Override
    void after(MoeConfig config, ExpertsInputs in, Workspace workspace) {
      for (int t = 0; t < in.output().size(0); t++) {
        for (int i = 0; i < in.output().size(1); i++) {
          if (!Double.isFinite(in.output().get(t, i))) {
            in.output().set(0, t, i);
          }
        }
      }
    }
  }

  /** Whole vectors are stored. */
  public static final class WritesPastOutput extends Altered {
    @Override
    void after(MoeConfig config, ExpertsInputs in, Workspace workspace) {
      Tensor out = in.output();
      long end = out.byteOffset() + out.dtype().byteSize(out.elementCount());
      segment(out.memory()).set(ValueLayout.JAVA_BYTE, end, (byte) 1);
    }
  }

  /** One row early. */
  public static final class WritesBeforeOutput extends Altered {
    @Override
    void after(MoeConfig config, ExpertsInputs in, Workspace workspace) {
      Tensor out = in.output();
      segment(out.memory()).set(ValueLayout.JAVA_BYTE, out.byteOffset() - 1, (byte) 1);
    }
  }

  /** Asks for less scratch than it uses, in native code. */
  public static final class WritesPastWorkspace extends Altered {
    @Override
    long workspaceBytes(int maxTokens) {
      return 64;
    }

    @Override
    @SuppressWarnings("restricted")
    void after(MoeConfig config, ExpertsInputs in, Workspace workspace) {
      MemorySegment.ofAddress(segment(workspace.memory()).address())
          .reinterpret(128)
          .set(ValueLayout.JAVA_BYTE, 64, (byte) 1);
    }
  }

  /** Loads a whole vector and sums all of it. */
  public static final class ReadsPastInput extends Altered {
    @Override
    void after(MoeConfig config, ExpertsInputs in, Workspace workspace) {
      Tensor hidden = in.hidden();
      if (hidden.elementCount() > 0) {
        long h = hidden.size(1);
        Tensor longer =
            Tensor.strided(
                hidden.dtype(),
                hidden.memory(),
                hidden.byteOffset(),
                new long[] {hidden.elementCount() + 1},
                new long[] {1});
        double beyond = longer.get(hidden.elementCount());
        long last = hidden.size(0) - 1;
        in.output().set(in.output().get(last, h - 1) + beyond, last, h - 1);
      }
    }
  }

  /** Multiplies the weight into the caller's hidden states. */
  public static final class WritesInput extends Altered {
    @Override
    void after(MoeConfig config, ExpertsInputs in, Workspace workspace) {
      if (in.hidden().elementCount() > 0) {
        in.hidden().set(in.hidden().get(0, 0) + 1, 0, 0);
      }
    }
  }

  /** Repacks in place. */
  public static final class WritesWeights extends Altered {
    private @Nullable ExpertWeights given;

    @Override
    ExpertWeights weights(ExpertWeights weights) {
      given = weights;
      return weights;
    }

    @Override
    void after(MoeConfig config, ExpertsInputs in, Workspace workspace) {
      Objects.requireNonNull(given).expert(0).down().values().set(123, 0, 0);
    }
  }

  /** One scratch row for all callers. */
  public static final class SharedScratch extends Altered {
    private double[] scratch = {};

    @Override
    void after(MoeConfig config, ExpertsInputs in, Workspace workspace) {
      for (int t = 0; t < in.output().size(0); t++) {
        scratch = in.output().select(0, t).toDoubles();
        LockSupport.parkNanos(1000);
        double[] mine = scratch;
        for (int i = 0; i < mine.length; i++) {
          in.output().set(mine[i], t, i);
        }
      }
    }
  }

  /** Takes device memory and keeps it. */
  public static final class LeaksDeviceMemory extends Altered {
    @Override
    public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
      var _ = device.allocate(100);
      return super.prepare(config, weights, device);
    }
  }

  /** Frees twice. */
  public static final class SecondCloseThrows extends Altered {
    @Override
    void close(int times) {
      if (times > 1) {
        throw new IllegalStateException("already freed");
      }
    }
  }

  /** What it says of the layer depends on when it is asked. */
  public static final class FactsChange extends Altered {
    private int asked;

    @Override
    List<Fact> facts() {
      return List.of(new Fact("weights", "packed", ++asked));
    }
  }

  /** Two things of one name, of which a tool would keep one. */
  public static final class FactTwice extends Altered {
    @Override
    List<Fact> facts() {
      return List.of(Fact.of("weights", "packed"), Fact.of("weights", "in place"));
    }
  }

  /** Asks for something that it has given back. */
  public static final class FactsThrow extends Altered {
    @Override
    List<Fact> facts() {
      throw new IllegalStateException("already freed");
    }
  }

  /** The last bit depends on the call, as with atomic adds. */
  public static final class LastBitVaries extends Altered {
    private int calls;

    @Override
    void after(MoeConfig config, ExpertsInputs in, Workspace workspace) {
      if (calls++ % 2 == 1 && in.output().elementCount() > 0) {
        in.output().set(Math.nextUp((float) in.output().get(0, 0)), 0, 0);
      }
    }
  }

  /** Another kernel, another order of summation, for larger batches. */
  public static final class BatchSizeShows extends Altered {
    @Override
    void after(MoeConfig config, ExpertsInputs in, Workspace workspace) {
      if (in.output().size(0) > 16) {
        in.output().set(Math.nextUp((float) in.output().get(3, 0)), 3, 0);
      }
    }
  }

  /** Rows that are not in use still count. */
  public static final class BatchedReadsPastCount extends Altered {
    public BatchedReadsPastCount() {
      super(new BatchedCpuReferenceBackend());
    }

    @Override
    void after(MoeConfig config, ExpertsInputs in, Workspace workspace) {
      for (int e = 0; e < in.output().size(0); e++) {
        int count = (int) Objects.requireNonNull(in.expertNumTokens()).get(e);
        if (count > 0) {
          double next = in.hidden().get(e, count, 0);
          in.output().set(in.output().get(e, 0, 0) + next, e, 0, 0);
        }
      }
    }
  }

  /** Not in the service file. */
  public static final class Unregistered extends Altered {}

  /** A name that no command line can take. */
  public static final class ShoutingName extends Altered {
    @Override
    public String name() {
      return "My Backend";
    }
  }

  /** A switch without default. */
  public static final class SupportQueryThrows extends Altered {
    @Override
    public Support isSupportedConfig(MoeConfig config, Platform platform) {
      if (config.weightDtype() == DType.F16) {
        throw new UnsupportedOperationException("F16");
      }
      return super.isSupportedConfig(config, platform);
    }
  }

  /** Asks for the first device of the machine. */
  public static final class NeedsItsDeviceToAnswer extends Altered {
    @Override
    public Support isSupportedConfig(MoeConfig config, Platform platform) {
      var _ = platform.device(deviceType()).orElseThrow();
      return super.isSupportedConfig(config, platform);
    }
  }

  /** Says no without saying why. */
  public static final class RefusesWithoutValues extends Altered {
    @Override
    public Support isSupportedConfig(MoeConfig config, Platform platform) {
      return config.expertBias()
          ? Support.no(Support.Code.OTHER, "this is not supported")
          : super.isSupportedConfig(config, platform);
    }
  }

  /** Of the right kind, but says no more than that something was wrong. */
  public static final class SaysBadArgument extends Altered {
    @Override
    public Support isSupportedConfig(MoeConfig config, Platform platform) {
      return config.activation().kind() == Activation.Kind.SILU
          ? super.isSupportedConfig(config, platform)
          : Support.no(Support.Code.ACTIVATION, "bad argument");
    }
  }

  /** A number that is in every config somewhere. */
  public static final class SaysAnErrorsNumber extends Altered {
    @Override
    public Support isSupportedConfig(MoeConfig config, Platform platform) {
      return config.activation().kind() == Activation.Kind.SILU
          ? super.isSupportedConfig(config, platform)
          : Support.no(
              Support.Code.OTHER,
              "error " + config.topK() + ": there was a bad argument, see the manual");
    }
  }

  /** Names a value, but not of what the refusal is about. */
  public static final class NamesSomethingElse extends Altered {
    @Override
    public Support isSupportedConfig(MoeConfig config, Platform platform) {
      return config.inputDtype() == DType.F32
          ? super.isSupportedConfig(config, platform)
          : Support.no(
              Support.Code.DTYPE,
              "a layer of hidden size " + config.hiddenSize() + " cannot be computed");
    }
  }

  /** The switch's name, and not a word on what would be taken. */
  public static final class NamesTheSwitchOnly extends Altered {
    @Override
    public Support isSupportedConfig(MoeConfig config, Platform platform) {
      return config.expertBias()
          ? Support.no(Support.Code.BIAS, "bad bias")
          : super.isSupportedConfig(config, platform);
    }
  }

  /** Returns at the first check that fails. */
  public static final class FirstReasonOnly extends Altered {
    @Override
    public Support isSupportedConfig(MoeConfig config, Platform platform) {
      if (config.expertBias()) {
        return Support.no(Support.Code.BIAS, "expert biases, accepted: none");
      }
      if (config.weightDtype() != DType.F32) {
        return Support.no(
            Support.Code.DTYPE, "weights " + config.weightDtype() + ", accepted: F32");
      }
      return super.isSupportedConfig(config, platform);
    }
  }

  /** Safe. */
  public static final class RefusesEverything extends Altered {
    @Override
    public Support isSupportedConfig(MoeConfig config, Platform platform) {
      return Support.no(
          Support.Code.SIZE, "hidden size " + config.hiddenSize() + ", accepted: none");
    }
  }

  /** Finds out too late. */
  public static final class PrepareThrows extends Altered {
    @Override
    public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
      if (config.expertBias()) {
        throw new UnsupportedOperationException("bias");
      }
      return super.prepare(config, weights, device);
    }
  }

  /** Says it takes LoRA; what it prepares cannot. */
  public static final class ClaimsLora extends Altered {
    @Override
    public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
      return new Plain((ModularExperts) super.prepare(config, weights, device));
    }
  }

  /** The other way round. */
  public static final class HidesLora extends Altered {
    @Override
    public boolean supportsLora() {
      return false;
    }
  }

  private record Plain(ModularExperts experts) implements ModularExperts {
    @Override
    public long workspaceBytes(int maxTokens) {
      return 0;
    }

    @Override
    public void apply(
        ExpertsInputs inputs,
        @Nullable MoeLoraContext lora,
        Workspace workspace,
        DeviceStream stream) {
      experts.apply(inputs, null, workspace, stream);
    }

    @Override
    public void close() {}
  }
}
