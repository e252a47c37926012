package io.moe4j.oracle;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.ExchangeInputs;
import io.moe4j.api.spi.ExchangedRows;
import io.moe4j.api.spi.ExpertExchange;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * Tokens stay where they are. STANDARD experts read the layer's own tensors; for BATCHED ones the
 * device's {@link BlockOps#dispatch} and {@link BlockOps#combine} do the work: those are kernels of a
 * device, which exchanges between ranks use as well.
 */
final class LocalExchange implements ExpertExchange {
  private final MoeConfig config;
  private final BlockOps block;
  private final boolean batched;

  LocalExchange(MoeConfig config, BlockOps block) {
    this.config = config;
    this.block = block;
    this.batched = config.activationFormat() == ActivationFormat.BATCHED;
  }

  @Override
  public String name() {
    return "local";
  }

  @Override
  public ActivationFormat activationFormat() {
    return config.activationFormat();
  }

  @Override
  public boolean outputIsReduced() {
    return config.parallel().worldSize() == 1;
  }

  @Override
  public int maxRows(int maxTokens) {
    return maxTokens;
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return batched ? new Places(maxTokens, DType.F32).end : 0;
  }

  /** Where the parts begin: rows, counts, slots, and scratch of the device's operations. */
  private final class Places {
    final long counts;
    final long slots;
    final long scratch;
    final long end;

    Places(long rows, DType dtype) {
      long all = Math.multiplyExact((long) config.numLocalExperts(), rows);
      counts = Workspace.align(dtype.byteSize(Math.multiplyExact(all, config.expertHiddenSize())));
      slots = counts + Workspace.align(DType.I32.byteSize(config.numLocalExperts()));
      scratch = slots + (config.lora().isPresent() ? Workspace.align(DType.I32.byteSize(all)) : 0);
      end = scratch + Workspace.align(block.workspaceBytes(Math.toIntExact(rows)));
    }
  }

  @Override
  public ExchangedRows dispatch(ExchangeInputs inputs, Workspace workspace, DeviceStream stream) {
    Tensor given = inputs.tokenLoraMapping();
    if (!batched) {
      return new ExchangedRows(inputs.hidden(), inputs.routing(), null, given);
    }
    long experts = config.numLocalExperts();
    long rows = inputs.hidden().size(0);
    Places at = new Places(rows, DType.F32);
    Tensor in =
        workspace.tensor(0, inputs.hidden().dtype(), experts, rows, config.expertHiddenSize());
    Tensor counts = workspace.tensor(at.counts, DType.I32, experts);
    @Nullable Tensor slots =
        given == null ? null : workspace.tensor(at.slots, DType.I32, experts, rows);
    block.dispatch(
        inputs.hidden(),
        inputs.routing(),
        Optional.ofNullable(given),
        in,
        counts,
        Optional.ofNullable(slots),
        scratch(workspace, at, rows),
        stream);
    return new ExchangedRows(in, null, counts, slots);
  }

  @Override
  public void combine(
      Tensor output,
      ExchangedRows rows,
      ExchangeInputs inputs,
      Tensor routed,
      Workspace workspace,
      DeviceStream stream) {
    if (!batched) {
      return; // the experts wrote where the result is wanted
    }
    long count = inputs.hidden().size(0);
    block.combine(
        output,
        inputs.routing(),
        routed,
        scratch(workspace, new Places(count, DType.F32), count),
        stream);
  }

  private Workspace scratch(Workspace workspace, Places at, long rows) {
    return new Workspace(
        workspace
            .tensor(at.scratch, DType.U8, Math.max(0, at.end - at.scratch))
            .memory());
  }

  @Override
  public void close() {}
}
