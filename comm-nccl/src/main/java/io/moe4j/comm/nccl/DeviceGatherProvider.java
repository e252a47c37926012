package io.moe4j.comm.nccl;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.SystemSettings;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.ExpertExchange;
import io.moe4j.api.spi.ExpertExchangeProvider;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import io.moe4j.api.tensor.DType;
import java.util.Locale;
import java.util.Objects;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;

/**
 * The exchange {@code device-gather}: all rows to all ranks and the sums back, on the device, over
 * any communicator of CUDA memory. Takes any placement of experts, and tensor parallel ranks.
 *
 * <p>Sums travel as BF16 in a layer of BF16, in F32 otherwise; the system property {@value
 * #SUMS_PROPERTY} ({@code f32} or {@code bf16}, the same on every rank) decides for all layers.
 *
 * @since 0.2.0
 */
public final class DeviceGatherProvider implements ExpertExchangeProvider {
  /** The dtype in which sums travel. */
  public static final String SUMS_PROPERTY = "moe4j.exchange.sums";

  static final String NAME = "device-gather";

  private final Function<Device, ExchangeKernels> kernels;

  /** For {@link java.util.ServiceLoader}. */
  public DeviceGatherProvider() {
    this(ExchangeKernels::of);
  }

  DeviceGatherProvider(Function<Device, ExchangeKernels> kernels) {
    this.kernels = kernels;
  }

  @Override
  public String name() {
    return NAME;
  }

  @Override
  public int priority() {
    return 100;
  }

  @Override
  public Support isSupported(MoeConfig config, @Nullable Communicator communicator) {
    if (communicator == null) {
      return Support.checks()
          .require(false, Code.PARALLEL, () -> "no communicator, needs one")
          .result();
    }
    String sums = SystemSettings.fault(() -> sums(config));
    String direct = PeerRooms.fault();
    return Support.checks()
        .require(communicator.size() > 1, Code.PARALLEL, () -> "one rank, needs more")
        .require(
            communicator.deviceType().equals(DeviceType.CUDA),
            Code.DEVICE,
            () -> "a communicator of " + communicator.deviceType() + " memory, takes cuda")
        .require(sums == null, Code.OTHER, () -> String.valueOf(sums))
        .require(direct == null, Code.OTHER, () -> String.valueOf(direct))
        .result();
  }

  @Override
  public ExpertExchange open(
      MoeConfig config, @Nullable Communicator communicator, BlockOps block, Device device) {
    return new DeviceGather(
        config,
        Objects.requireNonNull(communicator, "communicator"),
        block,
        device,
        kernels.apply(device),
        sums(config));
  }

  private static DType sums(MoeConfig config) {
    return SystemSettings.oneOf(
        SUMS_PROPERTY,
        config.inputDtype() == DType.BF16 ? DType.BF16 : DType.F32,
        new DType[] {DType.F32, DType.BF16},
        type -> type.name().toLowerCase(Locale.ROOT));
  }
}
