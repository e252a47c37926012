package io.moe4j.oracle;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.device.WorkspaceLayout;
import io.moe4j.api.device.WorkspaceLayout.Part;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.ExchangeInputs;
import io.moe4j.api.spi.ExchangedRows;
import io.moe4j.api.spi.ExpertExchange;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;

/**
 * Tokens stay where they are. STANDARD experts read the layer's own tensors; for BATCHED ones the
 * device's {@link BlockOps#dispatch} and {@link BlockOps#combine} do the work: those are kernels of
 * a device, which exchanges between ranks use as well.
 */
final class LocalExchange implements ExpertExchange {
  private final MoeConfig config;
  private final BlockOps block;
  private final Device device;
  private final boolean batched;

  LocalExchange(MoeConfig config, BlockOps block, Device device) {
    this.config = config;
    this.block = block;
    this.device = device;
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
    return batched ? new Places(maxTokens, ScratchLayout.rowDtype(config)).layout.byteSize() : 0;
  }

  /** Rows, counts and slots of the experts, and scratch of the device's operations. */
  private final class Places {
    final WorkspaceLayout layout = new WorkspaceLayout();
    final Part rows;
    final Part counts;
    final Part slots;
    final Part scratch;

    Places(long tokens, DType dtype) {
      long experts = config.numLocalExperts();
      rows = layout.reserve(dtype, experts, tokens, config.expertHiddenSize());
      counts = layout.reserve(DType.I32, experts);
      slots = layout.reserve(DType.I32, config.lora().isPresent() ? experts : 0, tokens);
      scratch = layout.reserve(DType.U8, block.workspaceBytes(Math.toIntExact(tokens)));
    }
  }

  @Override
  public ExchangedRows dispatch(ExchangeInputs inputs, Workspace workspace, DeviceStream stream) {
    Tensor given = inputs.tokenLoraMapping();
    if (!batched) {
      return new ExchangedRows(inputs.hidden(), inputs.routing(), null, given);
    }
    Places at = new Places(inputs.hidden().size(0), inputs.hidden().dtype());
    Tensor in = at.rows.in(workspace);
    Tensor counts = at.counts.in(workspace);
    Tensor slots = given == null ? null : at.slots.in(workspace);
    block.dispatch(
        inputs.hidden(),
        inputs.routing(),
        given,
        in,
        counts,
        slots,
        Workspaces.part(workspace, at.scratch),
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
      if (!output.equals(routed)) { // a layer lets the experts write where the result is wanted
        device.copy(output, routed, stream);
      }
      return;
    }
    Places at = new Places(inputs.hidden().size(0), inputs.hidden().dtype());
    block.combine(output, inputs.routing(), routed, Workspaces.part(workspace, at.scratch), stream);
  }

  @Override
  public void close() {}
}
