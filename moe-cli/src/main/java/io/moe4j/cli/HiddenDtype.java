package io.moe4j.cli;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.oracle.MoeOracle;
import java.lang.foreign.Arena;
import org.jspecify.annotations.Nullable;

/**
 * In which dtype a layer gets its hidden states. GPU backends multiply 16-bit weights with hidden
 * states of the same type, as the model was trained: where that is what keeps the layer off a GPU,
 * hidden states are rounded. Elsewhere they stay as the file has them.
 */
final class HiddenDtype {
  private HiddenDtype() {}

  /**
   * {@return {@code given}, or the dtype of the weights}
   *
   * @param oracle who chooses
   * @param config the layer, LoRA included
   * @param backend asked for by name, or null
   * @param given as in the file
   */
  static DType choose(MoeOracle oracle, MoeConfig config, @Nullable String backend, DType given) {
    DType weights = config.weightDtype();
    boolean narrower = given == DType.F32 && (weights == DType.BF16 || weights == DType.F16);
    Platform platform = oracle.catalog().detectPlatform();
    if (!narrower
        || platform.devices().stream().allMatch(d -> d.id().type().equals(DeviceType.CPU))) {
      return given;
    }
    return onHost(oracle, config, platform, backend, given)
            && !onHost(oracle, config, platform, backend, weights)
        ? weights
        : given;
  }

  private static boolean onHost(
      MoeOracle oracle,
      MoeConfig config,
      Platform platform,
      @Nullable String backend,
      DType dtype) {
    return oracle
        .evaluate(config.toBuilder().inputDtype(dtype).build(), platform, backend)
        .chosen()
        .map(c -> c.backend().deviceType().equals(DeviceType.CPU))
        .orElse(true);
  }

  /**
   * {@return the same values in another dtype, rounded to nearest even}
   *
   * @throws CliException if one is finite, but too large for the dtype
   */
  static Tensor convert(Tensor from, DType dtype, Arena arena) {
    if (from.dtype() == dtype) {
      return from;
    }
    long count = from.elementCount();
    Tensor to =
        Tensor.of(
            dtype,
            new HostMemory(arena.allocate(Math.max(1, dtype.byteSize(count)), 64)),
            from.shape());
    Tensor a = from.reshape(count);
    Tensor b = to.reshape(count);
    for (long i = 0; i < count; i++) {
      b.set(a.get(i), i);
      if (Double.isInfinite(b.get(i)) && Double.isFinite(a.get(i))) {
        throw CliException.badInput(
            "hidden states: token %d, feature %d is %s, too large for %s, in which this backend takes them; --backend cpu takes %s"
                .formatted(
                    i / from.size(1), i % from.size(1), (float) a.get(i), dtype, from.dtype()));
      }
    }
    return to;
  }
}
