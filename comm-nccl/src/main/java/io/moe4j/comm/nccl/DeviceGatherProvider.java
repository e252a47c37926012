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
import java.util.List;
import java.util.Locale;
import java.util.Objects;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;

/**
 * The exchange {@code device-gather}: all rows to all ranks and the sums back, on the device, over
 * any communicator of CUDA memory. Takes any placement of experts, and tensor parallel ranks.
 *
 * <p>Sums travel as BF16 in a layer of BF16, in F32 otherwise; the system property {@value
 * #SUMS_PROPERTY} ({@code f32} or {@code bf16}, the same on every rank) decides for all layers but
 * those of BATCHED experts, whose sums are F32. Where ranks write into each other's memory, the
 * kernel that sends the sums also makes them of the experts' rows, unless {@value #ADDS_PROPERTY}
 * is {@code off}, the same on every rank.
 *
 * @since 0.2.0
 */
public final class DeviceGatherProvider implements ExpertExchangeProvider {
  /** The dtype in which sums travel. */
  public static final String SUMS_PROPERTY = "moe4j.exchange.sums";

  /** Whether rows of experts are added where their sums are sent. */
  public static final String ADDS_PROPERTY = "moe4j.exchange.adds";

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
    return checks(config, communicator)
        .require(
            !config.parallel().replicatedTokens(),
            Code.PARALLEL,
            () -> "every rank has all tokens, moves each rank's own")
        .result();
  }

  /** What exchanges between GPUs need, whatever they move. */
  static Support.Checks checks(MoeConfig config, @Nullable Communicator communicator) {
    if (communicator == null) {
      return Support.checks().require(false, Code.PARALLEL, () -> "no communicator, needs one");
    }
    String fault = SystemSettings.fault(() -> List.of(sums(config), adds()));
    String direct = PeerRooms.fault();
    return Support.checks()
        .require(communicator.size() > 1, Code.PARALLEL, () -> "one rank, needs more")
        .require(
            communicator.deviceType().equals(DeviceType.CUDA),
            Code.DEVICE,
            () -> "a communicator of " + communicator.deviceType() + " memory, takes cuda")
        .require(fault == null, Code.OTHER, () -> String.valueOf(fault))
        .require(direct == null, Code.OTHER, () -> String.valueOf(direct));
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
        sums(config),
        adds());
  }

  static boolean adds() {
    return SystemSettings.oneOf(
        ADDS_PROPERTY, true, new Boolean[] {true, false}, b -> b ? "on" : "off");
  }

  static DType sums(MoeConfig config) {
    return SystemSettings.oneOf(
        SUMS_PROPERTY,
        config.inputDtype() == DType.BF16 ? DType.BF16 : DType.F32,
        new DType[] {DType.F32, DType.BF16},
        type -> type.name().toLowerCase(Locale.ROOT));
  }
}
