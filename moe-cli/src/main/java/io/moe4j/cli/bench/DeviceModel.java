package io.moe4j.cli.bench;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import org.jspecify.annotations.Nullable;

/**
 * Weights, adapters and tensors of a shape in the memory of a device, in bf16 or f16. Large tensors
 * repeat a block of normal numbers, each beginning at another place of it: quick to make, of full
 * size in memory, and no zeros among them.
 */
final class DeviceModel implements AutoCloseable {
  private static final int BLOCK = 1 << 23;
  private static final int UNIT_BLOCK = 1 << 20;
  private static final double SPREAD = 0.02;
  private static final float INPUT_SCALE = 0.02f;

  private final BenchShape shape;
  private final Device device;
  private final DType dtype;
  private final boolean gated;
  private final DeviceStream stream;
  private final SplittableRandom random = new SplittableRandom(20261122);
  private final List<Device.Buffer> buffers = new ArrayList<>();
  private final Tensor block;
  private final @Nullable DeviceModel parent;
  private @Nullable Tensor unit;

  DeviceModel(BenchShape shape, Device device) {
    this(shape, device, DType.BF16, true);
  }

  /**
   * @param shape sizes
   * @param device where
   * @param dtype of everything, 16 bits
   * @param gated whether experts have a gate
   */
  DeviceModel(BenchShape shape, Device device, DType dtype, boolean gated) {
    this.shape = shape;
    this.device = device;
    this.dtype = dtype;
    this.gated = gated;
    this.stream = device.defaultStream();
    this.parent = null;
    this.block = put(numbers(BLOCK, SPREAD));
  }

  /** Memory of its own for the same layer, given back earlier. */
  private DeviceModel(DeviceModel parent) {
    this.shape = parent.shape;
    this.device = parent.device;
    this.dtype = parent.dtype;
    this.gated = parent.gated;
    this.stream = parent.stream;
    this.parent = parent;
    this.block = parent.block;
  }

  /** {@return memory for more of the same layer, to be closed before this is} */
  DeviceModel more() {
    return new DeviceModel(parent == null ? this : parent);
  }

  private Tensor numbers(int count, double spread) {
    Tensor host = Tensor.of(dtype, MemorySegment.ofArray(new byte[2 * count]), count);
    for (int i = 0; i < count; i++) {
      host.set(random.nextGaussian(0, spread), i);
    }
    return host;
  }

  Tensor empty(DType dtype, long... sizes) {
    long count = 1;
    for (long s : sizes) {
      count = Math.multiplyExact(count, s);
    }
    Device.Buffer b = device.allocate(dtype.byteSize(count));
    buffers.add(b);
    return Tensor.of(dtype, b.memory(), sizes);
  }

  Tensor put(Tensor host) {
    Tensor there = empty(host.dtype(), host.shape());
    device.copy(host, there, stream);
    stream.synchronize();
    return there;
  }

  private Tensor normal(long... sizes) {
    return repeated(block, sizes);
  }

  private Tensor repeated(Tensor numbers, long... sizes) {
    Tensor t = empty(dtype, sizes);
    repeat(numbers, t.reshape(t.elementCount()));
    return t;
  }

  private void repeat(Tensor numbers, Tensor flat) {
    long length = numbers.size(0);
    long from = random.nextInt((int) length / 64) * 64L;
    for (long at = 0; at < flat.size(0); from = 0) {
      long n = Math.min(length - from, flat.size(0) - at);
      device.copy(numbers.narrow(0, from, n), flat.narrow(0, at, n), stream);
      at += n;
    }
    stream.synchronize();
  }

  MoeLayerWeights weights(BenchWeights kind) {
    return new MoeLayerWeights(
        kind == BenchWeights.BF16 ? experts() : experts(kind), null, null, null);
  }

  /** Random experts as a checkpoint has them quantised. */
  private ExpertWeights experts(BenchWeights kind) {
    byte[] bytes = new byte[2 * UNIT_BLOCK];
    random.nextBytes(bytes);
    if (kind.scheme().format() == QuantScheme.Format.FP8) {
      // From 0.5 to 2, of either sign; no NaN.
      for (int i = 0; i < bytes.length; i++) {
        bytes[i] = (byte) ((bytes[i] & 0x8F) | 0x30);
      }
    }
    Tensor codes = put(Tensor.of(DType.U8, MemorySegment.ofArray(bytes), bytes.length));
    Tensor scales = put(scales(kind));
    List<ExpertWeights.Expert> all = new ArrayList<>();
    int h = shape.hiddenSize();
    int i = shape.intermediateSize();
    for (int e = 0; e < shape.numExperts(); e++) {
      all.add(
          ExpertWeights.Expert.of(
              gated ? quantised(kind, "gate", codes, scales, i, h) : null,
              quantised(kind, "up", codes, scales, i, h),
              quantised(kind, "down", codes, scales, h, i)));
    }
    return new ExpertWeights(all);
  }

  /** The root mean square of a random code less its zero point, about. */
  private static double deviation(QuantScheme scheme) {
    return switch (scheme.format()) {
      case INT4 -> 4.6;
      case INT8 -> 74;
      case FP4 -> 3;
      default -> 1;
    };
  }

  private Tensor scales(BenchWeights kind) {
    double middle = SPREAD / deviation(kind.scheme());
    Tensor host =
        Tensor.of(
            kind.scales(),
            MemorySegment.ofArray(new byte[(int) kind.scales().byteSize(UNIT_BLOCK)]),
            UNIT_BLOCK);
    if (kind.scales() == DType.F8_E8M0) {
      host.segment().fill((byte) (127 + Math.getExponent(middle)));
      return host;
    }
    if (kind.scales() == DType.F8_E4M3) {
      host.segment().fill((byte) 0x38); // one: the rest is in the global scale
      return host;
    }
    for (int n = 0; n < UNIT_BLOCK; n++) {
      host.set(kind.quantizedActivations() ? middle : middle * (0.5 + random.nextDouble()), n);
    }
    return host;
  }

  private Weight quantised(
      BenchWeights kind, String name, Tensor codes, Tensor scales, long out, long in) {
    QuantScheme scheme = kind.scheme();
    boolean words =
        scheme.format() == QuantScheme.Format.INT4 || scheme.format() == QuantScheme.Format.INT8;
    Packing packing = words ? Packing.WORDS_ALONG_IN : Packing.DENSE;
    DType type =
        words ? DType.I32 : scheme.format() == QuantScheme.Format.FP8 ? DType.F8_E4M3 : DType.F4;
    Tensor own = empty(kind.scales(), scheme.scaleRowCount(out), scheme.scaleColumnCount(in));
    repeat(scales, own.reshape(own.elementCount()));
    Weight.Builder b =
        Weight.builder(
                name,
                scheme,
                out,
                in,
                codes(codes, type, packing.shape(out, in, scheme.bits())),
                packing)
            .scales(own);
    if (kind.scales() == DType.F8_E4M3) {
      float global = (float) (SPREAD / deviation(scheme));
      b.globalScale(put(Tensor.ofFloats(new float[] {global}, 1)), false);
    }
    if (kind.quantizedActivations()) {
      // Hidden states of mean square 1, and what an activation makes of them, fit in 448 of these.
      b.inputScale(put(Tensor.ofFloats(new float[] {INPUT_SCALE}, 1)));
    }
    if (!scheme.symmetric()) {
      long[] shape = Packing.WORDS_ALONG_OUT.shape(out, own.size(1), scheme.bits());
      b.zeroPoints(codes(codes, DType.I32, shape), Packing.WORDS_ALONG_OUT, 0);
    }
    return b.build();
  }

  private Tensor codes(Tensor random, DType type, long... shape) {
    Tensor values = empty(type, shape);
    repeat(random, Tensor.of(DType.U8, values.memory(), type.byteSize(values.elementCount())));
    return values;
  }

  /** Random experts. */
  ExpertWeights experts() {
    long e = shape.numExperts();
    long h = shape.hiddenSize();
    long i = shape.intermediateSize();
    return ExpertWeights.ofStacked(
        normal(e, gated ? 2 * i : i, h), normal(e, h, i), null, null, gated, GateUpLayout.HALVES);
  }

  /** Gate (where there is one), up and down of every expert, each with an A of its own. */
  LoraLayer adapter(int rank) {
    int h = shape.hiddenSize();
    int i = shape.intermediateSize();
    Map<LoraTarget, LoraFactors> all = new EnumMap<>(LoraTarget.class);
    if (gated) {
      all.put(LoraTarget.GATE, factors(rank, h, i));
    }
    all.put(LoraTarget.UP, factors(rank, h, i));
    all.put(LoraTarget.DOWN, factors(rank, i, h));
    return new LoraLayer(all);
  }

  private LoraFactors factors(int rank, int in, int out) {
    return new LoraFactors(
        normal(shape.numExperts(), rank, in), normal(shape.numExperts(), out, rank));
  }

  /** Hidden states. */
  Tensor hidden(int tokens) {
    return normal(tokens, shape.hiddenSize());
  }

  /** Hidden states of mean square 1, as a model's norms leave them: no bias drowns the weights. */
  Tensor unitHidden(int tokens) {
    DeviceModel owner = parent == null ? this : parent;
    Tensor numbers = owner.unit;
    if (numbers == null) {
      numbers = owner.put(owner.numbers(UNIT_BLOCK, 1));
      owner.unit = numbers;
    }
    return repeated(numbers, tokens, shape.hiddenSize());
  }

  @Override
  public void close() {
    stream.synchronize();
    buffers.forEach(Device.Buffer::close);
    buffers.clear();
  }
}
