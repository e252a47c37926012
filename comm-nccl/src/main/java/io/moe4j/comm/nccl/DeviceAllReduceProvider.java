package io.moe4j.comm.nccl;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.ExpertExchange;
import io.moe4j.api.spi.ExpertExchangeProvider;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import java.util.Objects;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;

/**
 * The exchange {@code device-allreduce}, for ranks that all have the same tokens ({@link
 * io.moe4j.api.config.ParallelConfig#replicatedTokens}): no rows move, and one sum over the ranks
 * gives all of them the results. On the device, over any communicator of CUDA memory; any placement
 * of experts, and tensor parallel ranks.
 *
 * <p>Sums are made and travel as {@link DeviceGatherProvider} says, by the same properties.
 *
 * @since 0.2.0
 */
public final class DeviceAllReduceProvider implements ExpertExchangeProvider {
  static final String NAME = "device-allreduce";

  private final Function<Device, ExchangeKernels> kernels;

  /** For {@link java.util.ServiceLoader}. */
  public DeviceAllReduceProvider() {
    this(ExchangeKernels::of);
  }

  DeviceAllReduceProvider(Function<Device, ExchangeKernels> kernels) {
    this.kernels = kernels;
  }

  @Override
  public String name() {
    return NAME;
  }

  @Override
  public int priority() {
    return 200; // before device-gather, which would send every rank what it has
  }

  @Override
  public Support isSupported(MoeConfig config, @Nullable Communicator communicator) {
    return DeviceGatherProvider.checks(config, communicator)
        .require(
            config.parallel().replicatedTokens(),
            Code.PARALLEL,
            () ->
                "each rank has its own tokens, needs the same on all: ParallelConfig.replicated()")
        .result();
  }

  @Override
  public ExpertExchange open(
      MoeConfig config, @Nullable Communicator communicator, BlockOps block, Device device) {
    return new DeviceAllReduce(
        config,
        Objects.requireNonNull(communicator, "communicator"),
        block,
        device,
        kernels.apply(device),
        DeviceGatherProvider.sums(config),
        DeviceGatherProvider.adds());
  }
}
