package io.moe4j.backend.marlin;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.DeviceWeights;
import io.moe4j.cuda.ops.ExpertBiases;
import io.moe4j.cuda.ops.PaddedSizes;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * A layer's experts packed on the device. Beside them it takes memory for the tensors of one weight
 * while it is made.
 *
 * <p>With act-order a product reads x in the order of its weights' groups. Gate and up of an expert
 * nearly always share one order; where they do not, the product gets the inputs twice, once in
 * either order, and each matrix is zero where the other's inputs are.
 */
final class MarlinWeights implements AutoCloseable {
  private final DeviceWeights memory;
  private final PackedMatrices first;
  private final PackedMatrices second;
  private final ExpertBiases biases;

  MarlinWeights(CudaDevice device, MarlinKernels kernels, MoeConfig config, ExpertWeights weights) {
    memory = new DeviceWeights(device);
    try (Repacker repacker = new Repacker(device, kernels, memory)) {
      first = firstMatrices(repacker, config.uniformW13Scheme().orElseThrow(), weights);
      second = secondMatrices(repacker, config.uniformW2Scheme().orElseThrow(), weights);
      biases = ExpertBiases.of(memory, config, weights, PaddedSizes.of(config));
    } catch (RuntimeException | Error e) {
      memory.close();
      throw e;
    }
  }

  private record Planned(Weight weight, RepackPlan plan) {}

  private static Planned planned(Weight given, QuantScheme scheme) {
    if (!given.scheme().weightOnly().equals(scheme)) {
      throw new IllegalArgumentException(given + ": the product's scheme is " + scheme);
    }
    Weight weight = bytesOfZeroPoints(given);
    RepackPlan plan = RepackPlan.of(weight);
    // The products read rows of x by whole vectors, and those are as long as the order.
    boolean vectors = plan.permutation() == null || weight.in() % PaddedSizes.VECTOR == 0;
    return new Planned(weight, vectors ? plan : plan.between(0, plan.layout().wholeInputs()));
  }

  /** Whether ratios of a weight's scales may have more bits than a BF16 has. */
  private static boolean isFine(Weight w) {
    boolean groups = w.scheme().scaleColumns() != QuantScheme.ALL;
    return groups
        && w.scales().map(s -> s.dtype() == DType.F32 || s.dtype() == DType.F16).orElse(false);
  }

  /**
   * Dense zero points as {@code repack.cu} reads them: bytes of the codes' own kind. Beside codes
   * in words, which are unsigned, signed numbers (compressed-tensors' before it packed them) are
   * stored with what is to be added to them.
   */
  static Weight bytesOfZeroPoints(Weight w) {
    Tensor zeros = w.zeroPoints().orElse(null);
    boolean signedCodes = w.packing() == Packing.DENSE;
    if (zeros == null
        || w.zeroPacking() != Packing.DENSE
        || zeros.dtype() == (signedCodes ? DType.I8 : DType.U8)) {
      return w;
    }
    double[] values = zeros.toDoubles();
    boolean negative = Arrays.stream(values).anyMatch(v -> v < 0);
    int added = negative && !signedCodes ? w.zeroOffset() : 0;
    int least = signedCodes ? Byte.MIN_VALUE : 0;
    int most = signedCodes ? Byte.MAX_VALUE : 0xFF;
    byte[] bytes = new byte[values.length];
    for (int i = 0; i < bytes.length; i++) {
      double v = values[i] + added;
      if (v < least || v > most) {
        throw new IllegalArgumentException(
            w.name()
                + " zero points hold "
                + (long) values[i]
                + (added == 0 ? "" : ", to which " + added + " is added")
                + "; must be "
                + least
                + ".."
                + most
                + " beside these codes");
      }
      bytes[i] = (byte) (int) v;
    }
    DType type = signedCodes ? DType.I8 : DType.U8;
    Tensor as = Tensor.of(type, MemorySegment.ofArray(bytes), zeros.shape());
    Weight.Builder b =
        Weight.builder(w.name(), w.scheme(), w.out(), w.in(), w.values(), w.packing())
            .scales(w.scales().orElseThrow())
            .zeroPoints(as, Packing.DENSE, w.zeroOffset() - added);
    w.groupIndex().ifPresent(b::groupIndex);
    return b.build();
  }

  private PackedMatrices firstMatrices(
      Repacker repacker, QuantScheme scheme, ExpertWeights weights) {
    List<List<Planned>> all = new ArrayList<>();
    boolean apart = false;
    for (ExpertWeights.Expert x : weights.experts()) {
      Weight gate = x.gate();
      Planned up = planned(x.up(), scheme);
      List<Planned> own = gate == null ? List.of(up) : List.of(planned(gate, scheme), up);
      apart |=
          !Arrays.equals(own.getFirst().plan().permutation(), own.getLast().plan().permutation());
      all.add(own);
    }
    PackedLayout each = all.getFirst().getFirst().plan().layout();
    long half = each.wholeInputs();
    PackedLayout layout = apart ? each.widened(2 * half) : each;
    PackedMatrices to =
        PackedMatrices.allocate(
            memory,
            layout,
            all.size(),
            all.getFirst().size(),
            all.stream().flatMap(List::stream).anyMatch(p -> isFine(p.weight())),
            scheme.actOrder());
    for (int e = 0; e < all.size(); e++) {
      List<Planned> own = all.get(e);
      for (int m = 0; m < own.size(); m++) {
        RepackPlan plan = own.get(m).plan();
        repacker.run(
            own.get(m).weight(), apart ? plan.between(m * half, 2 * half) : plan, to, e, m);
      }
      int @Nullable [] order = own.getFirst().plan().permutation();
      if (apart) {
        order = joined(own, Math.toIntExact(half));
      }
      upload(to, e, order);
    }
    return to;
  }

  /** The orders of gate and up behind each other. */
  private static int[] joined(List<Planned> own, int half) {
    int[] order = new int[2 * half];
    Arrays.fill(order, -1);
    for (int m = 0; m < 2; m++) {
      int[] part = own.get(m).plan().permutation();
      if (part != null) {
        System.arraycopy(part, 0, order, m * half, part.length);
      }
    }
    return order;
  }

  private PackedMatrices secondMatrices(
      Repacker repacker, QuantScheme scheme, ExpertWeights weights) {
    PackedMatrices to = null;
    for (int e = 0; e < weights.numExperts(); e++) {
      Planned down = planned(weights.expert(e).down(), scheme);
      if (to == null) {
        to =
            PackedMatrices.allocate(
                memory,
                down.plan().layout(),
                weights.numExperts(),
                1,
                weights.experts().stream().anyMatch(x -> isFine(x.down())),
                scheme.actOrder());
      }
      repacker.run(down.weight(), down.plan(), to, e, 0);
      upload(to, e, down.plan().permutation());
    }
    return java.util.Objects.requireNonNull(to, "an ExpertWeights is not empty");
  }

  private void upload(PackedMatrices to, int expert, int @Nullable [] order) {
    if (to.orders() != null && order != null) {
      memory.upload(Tensor.ofInts(order, order.length), to.orders().select(0, expert));
    }
  }

  PackedMatrices first() {
    return first;
  }

  PackedMatrices second() {
    return second;
  }

  ExpertBiases biases() {
    return biases;
  }

  /** {@return bytes on the device: codes, ratios, zero points, orders, biases} */
  long byteSize() {
    return memory.byteSize();
  }

  @Override
  public void close() {
    memory.close();
  }
}
