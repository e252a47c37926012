package io.moe4j.tck;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.reference.ReferenceMath;
import java.lang.foreign.MemorySegment;
import org.jspecify.annotations.Nullable;

/**
 * Deltas in float64, for backends that leave LoRA to the wrapper of their context. Works for any
 * device: what is not on the host is fetched, changed there and sent back.
 */
final class KitPunicaWrapper implements PunicaWrapper {
  private final Device device;

  KitPunicaWrapper(Device device) {
    this.device = device;
  }

  @Override
  public void addLoraW13(PunicaWrapper.W13 call, DeviceStream stream) {
    long i = call.gated() ? call.y().size(2) / 2 : call.y().size(2);
    Tensor rows = fetch(call.y(), stream);
    forEachPair(
        call.context(),
        call.x(),
        call.routing(),
        stream,
        (t, k, lora, input, ids) -> {
          Tensor row = rows.select(0, t).select(0, k);
          if (!call.gated()) {
            add(row, lora, LoraTarget.UP, input, ids, 1, call.addInputs());
            return;
          }
          boolean halves = call.layout() == GateUpLayout.HALVES;
          Tensor gate = halves ? row.narrow(0, 0, i) : row.sliced(0, 0, i, 2);
          Tensor up = halves ? row.narrow(0, i, i) : row.sliced(0, 1, i, 2);
          add(gate, lora, LoraTarget.GATE, input, ids, 1, call.addInputs());
          add(up, lora, LoraTarget.UP, input, ids, 1, call.addInputs());
        });
    store(rows, call.y(), stream);
  }

  @Override
  public void addLoraW2(PunicaWrapper.W2 call, DeviceStream stream) {
    Tensor rows = fetch(call.y(), stream);
    Tensor weights = fetch(call.routing().topkWeights(), stream);
    forEachPair(
        call.context(),
        call.x(),
        call.routing(),
        stream,
        (t, k, lora, input, ids) ->
            add(
                rows.select(0, t).select(0, k),
                lora,
                LoraTarget.DOWN,
                input,
                ids,
                call.mulRoutedWeight() ? weights.get(t, k) : 1,
                call.addInputs()));
    store(rows, call.y(), stream);
  }

  @Override
  public void addLoraLinear(PunicaWrapper.Linear call, DeviceStream stream) {
    Tensor rows = fetch(call.y(), stream);
    Tensor inputs = fetch(call.x(), stream);
    Tensor mapping = mapping(call.context(), stream);
    for (int t = 0; t < rows.size(0); t++) {
      LoraLayer lora = slot(call.context(), mapping.get(t), stream);
      if (lora != null) {
        double[] input = inputs.select(0, t).toDoubles();
        add(rows.select(0, t), lora, call.target(), input, n -> 0, 1, call.addInputs());
      }
    }
    store(rows, call.y(), stream);
  }

  private interface PairVisitor {
    void visit(int token, int k, LoraLayer lora, double[] x, ExpertOf expert);
  }

  /** The pair's local expert, when the factors cover so many; -1 for none. */
  private interface ExpertOf {
    int among(int experts);
  }

  private void forEachPair(
      MoeLoraContext context,
      Tensor x,
      ExpertRouting routing,
      DeviceStream stream,
      PairVisitor visitor) {
    Tensor inputs = fetch(x, stream);
    Tensor mapping = mapping(context, stream);
    Tensor map = routing.expertMap();
    ExpertRouting host =
        new ExpertRouting(
            fetch(routing.topkIds(), stream),
            fetch(routing.topkWeights(), stream),
            map == null ? null : fetch(map, stream));
    int topK = Math.toIntExact(host.topkIds().size(1));
    for (int t = 0; t < host.topkIds().size(0); t++) {
      LoraLayer lora = slot(context, mapping.get(t), stream);
      if (lora == null) {
        continue;
      }
      for (int k = 0; k < topK; k++) {
        int token = t;
        int choice = k;
        boolean rowPerPair = inputs.size(0) != host.topkIds().size(0);
        double[] input = inputs.select(0, rowPerPair ? (long) t * topK + k : t).toDoubles();
        visitor.visit(
            t,
            k,
            lora,
            input,
            experts -> host.localExpert(token, choice, experts == 1 ? Integer.MAX_VALUE : experts));
      }
    }
  }

  private static void add(
      Tensor y,
      LoraLayer lora,
      LoraTarget target,
      double[] x,
      ExpertOf expertOf,
      double factor,
      boolean addInputs) {
    LoraFactors factors = lora.get(target);
    int expert = factors == null ? -1 : expertOf.among(factors.numExperts());
    if (factors == null || expert < 0) {
      return;
    }
    double[] delta =
        ReferenceMath.multiply(factors.b(expert), ReferenceMath.multiply(factors.a(expert), x));
    for (int o = 0; o < delta.length; o++) {
      y.set((addInputs ? y.get(o) : 0) + factor * delta[o], o);
    }
  }

  private @Nullable LoraLayer slot(MoeLoraContext context, double slot, DeviceStream stream) {
    if (!context.hasLora() || slot < 0 || slot >= context.maxLoras()) {
      return null;
    }
    LoraLayer layer = context.slot((int) slot);
    return layer == null ? null : KitLoraContext.map(layer, t -> fetch(t, stream));
  }

  /** BATCHED experts see one token a row: the same numbers, counted through. */
  private Tensor mapping(MoeLoraContext context, DeviceStream stream) {
    Tensor mapping = fetch(context.tokenLoraMapping(), stream);
    return mapping.reshape(mapping.elementCount());
  }

  /**
   * {@return the tensor itself if it is on the host, else a copy of all its memory, viewed alike}
   */
  private Tensor fetch(Tensor t, DeviceStream stream) {
    if (t.isHost()) {
      return t;
    }
    DeviceMemory memory = (DeviceMemory) t.memory();
    Memory host =
        new io.moe4j.api.tensor.HostMemory(
            MemorySegment.ofArray(new byte[Math.toIntExact(memory.byteSize())]));
    device.copy(
        Tensor.of(DType.U8, memory, memory.byteSize()),
        Tensor.of(DType.U8, host, memory.byteSize()),
        stream);
    stream.synchronize();
    long[] strides = new long[t.dims()];
    for (int d = 0; d < strides.length; d++) {
      strides[d] = t.stride(d);
    }
    return Tensor.strided(t.dtype(), host, t.byteOffset(), t.shape(), strides);
  }

  private void store(Tensor host, Tensor to, DeviceStream stream) {
    if (!to.isHost()) {
      device.copy(host, to, stream);
      stream.synchronize();
    }
  }
}
