package io.moe4j.backend.triton.launch;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.DeviceBuffer;
import io.moe4j.cuda.DeviceWeights;
import io.moe4j.cuda.ops.ExpertBiases;
import io.moe4j.cuda.ops.PaddedSizes;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * A layer's experts stacked on the device: w13 {@code [E, 2I, H]} with gate rows before up rows
 * ({@code [E, I, H]} without gate), w2 {@code [E, H, I]}, biases in f32. MXFP4 stays in 4 bits: the
 * matrices are F4, and beside them lie exponents for 32 columns each. What else is quantised is
 * unpacked to the weights' dtype, one projection of one expert at a time.
 */
public final class ExpertMatrices implements AutoCloseable {
  private final DeviceWeights memory;
  private final Tensor w13;
  private final Tensor w2;
  private final @Nullable Tensor scales13;
  private final @Nullable Tensor scales2;
  private final ExpertBiases biases;

  ExpertMatrices(CudaDevice device, MoeConfig config, ExpertWeights weights) {
    int experts = weights.numExperts();
    PaddedSizes sizes = PaddedSizes.of(config);
    long hidden = sizes.hidden();
    long inter = sizes.intermediate();
    boolean gated = config.activation().isGated();
    memory = new DeviceWeights(device);
    try (Put put = new Put(device, memory, config)) {
      w13 = put.room(experts, gated ? 2 * inter : inter, hidden);
      w2 = put.room(experts, hidden, inter);
      for (int e = 0; e < experts; e++) {
        ExpertWeights.Expert x = weights.expert(e);
        Tensor rows = w13.select(0, e);
        if (x.gate() != null) {
          put.in(x.gate(), rows.narrow(0, 0, inter));
        }
        put.in(x.up(), gated ? rows.narrow(0, inter, inter) : rows);
        put.in(x.down(), w2.select(0, e));
      }
      boolean mxfp4 = isMxfp4(config);
      int group = QuantScheme.MXFP4.scaleColumns();
      scales13 =
          mxfp4
              ? memory.allocate(DType.F8_E8M0, experts, gated ? 2 * inter : inter, hidden / group)
              : null;
      scales2 = mxfp4 ? memory.allocate(DType.F8_E8M0, experts, hidden, inter / group) : null;
      if (scales13 != null && scales2 != null) {
        for (int e = 0; e < experts; e++) {
          scales(weights.expert(e), scales13.select(0, e), scales2.select(0, e));
        }
      }
      biases = ExpertBiases.of(memory, config, weights, sizes);
    } catch (RuntimeException e) {
      memory.close();
      throw e;
    }
  }

  /**
   * {@return whether all weights are MXFP4, computed with unquantised activations}
   *
   * @param config of the layer
   */
  public static boolean isMxfp4(MoeConfig config) {
    return config.uniformScheme().equals(Optional.of(QuantScheme.MXFP4));
  }

  private void scales(ExpertWeights.Expert x, Tensor first, Tensor second) {
    long inter = x.up().out();
    Weight gate = x.gate();
    if (gate != null) {
      memory.upload(gate.scales().orElseThrow(), first.narrow(0, 0, inter));
    }
    memory.upload(
        x.up().scales().orElseThrow(), gate == null ? first : first.narrow(0, inter, inter));
    memory.upload(x.down().scales().orElseThrow(), second);
  }

  /** Brings matrices to their place, with zeros around them where that is larger. */
  private static final class Put implements AutoCloseable {
    private final CudaDevice device;
    private final DeviceWeights memory;
    private final DType type;
    private final @Nullable DeviceBuffer dense;

    Put(CudaDevice device, DeviceWeights memory, MoeConfig config) {
      this.device = device;
      this.memory = memory;
      this.type = isMxfp4(config) ? DType.F4 : config.weightDtype();
      long hidden = config.expertHiddenSize();
      long inter = config.intermediateSize();
      boolean fits = PaddedSizes.isExact(config);
      this.dense = fits ? null : device.allocate(type.byteSize(hidden * inter));
    }

    Tensor room(long... shape) {
      Tensor t = memory.allocate(type, shape);
      if (dense != null) {
        device.fill(t, 0, device.defaultStream());
      }
      return t;
    }

    void in(Weight weight, Tensor to) {
      Tensor from =
          type == DType.F4 || weight.isPlain() ? weight.values() : weight.toPlain(type).plain();
      if (from.dtype() != type) {
        throw new IllegalArgumentException(
            "expert weights are " + from + ", the config asks for " + type);
      }
      DeviceStream stream = device.defaultStream();
      if (dense != null) {
        Tensor there = from;
        if (from.isHost()) {
          there = dense.tensor(type, from.shape());
          memory.upload(from, there);
        }
        device.copyRows(there, to.narrow(0, 0, from.size(0)).narrow(1, 0, from.size(1)), stream);
        stream.synchronize();
      } else if (from.isHost()) {
        memory.upload(from, to);
      } else {
        device.copy(from, to, stream);
        stream.synchronize();
      }
    }

    @Override
    public void close() {
      if (dense != null) {
        dense.close();
      }
    }
  }

  Tensor w13() {
    return w13;
  }

  Tensor w2() {
    return w2;
  }

  /** {@return exponents of w13, {@code [E, 2I, H / 32]}, null unless the weights are MXFP4} */
  @Nullable Tensor scales13() {
    return scales13;
  }

  /** {@return exponents of w2, {@code [E, H, I / 32]}, null unless the weights are MXFP4} */
  @Nullable Tensor scales2() {
    return scales2;
  }

  @Nullable Tensor bias13() {
    return biases.first();
  }

  @Nullable Tensor bias2() {
    return biases.second();
  }

  /** {@return bytes on the device: matrices, scales, biases} */
  long byteSize() {
    return memory.byteSize();
  }

  @Override
  public void close() {
    memory.close();
  }
}
