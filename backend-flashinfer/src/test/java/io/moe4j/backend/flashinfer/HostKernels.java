package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.reference.ReferenceRouting;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** The kernels around FlashInfer's, on the memory of a {@link HostCuda}. */
final class HostKernels implements CardKernels {
  /** A stream with this handle records. */
  static final long RECORDING = 0xCA;

  private static final int MX_GROUP = 32;
  private static final int BLOCK = 128;
  private static final int NV_GROUP = 16;

  @Override
  public void cast(Tensor in, Tensor out, DeviceStream stream) {
    MemorySegment from = HostCuda.bytes(in);
    MemorySegment to = HostCuda.bytes(out);
    for (long i = 0; i < in.elementCount(); i++) {
      float v = read(from, in.dtype(), i);
      switch (out.dtype()) {
        case F32 -> to.setAtIndex(ValueLayout.JAVA_FLOAT_UNALIGNED, i, v);
        case BF16 -> to.setAtIndex(ValueLayout.JAVA_SHORT_UNALIGNED, i, Tensor.toBFloat16(v));
        case F16 -> to.setAtIndex(ValueLayout.JAVA_SHORT_UNALIGNED, i, Float.floatToFloat16(v));
        default -> throw new IllegalArgumentException("output is " + out);
      }
    }
  }

  @Override
  public void quantize(Tensor in, Tensor out, Tensor scale, boolean early, DeviceStream stream) {
    MemorySegment from = HostCuda.bytes(in);
    MemorySegment to = HostCuda.bytes(out);
    float s = read(HostCuda.bytes(scale), DType.F32, 0);
    for (long i = 0; i < in.elementCount(); i++) {
      to.set(ValueLayout.JAVA_BYTE, i, E4m3.of(read(from, in.dtype(), i) / s));
    }
  }

  @Override
  public void quantizeMx(Tensor in, Tensor out, Tensor scales, DeviceStream stream) {
    MemorySegment from = HostCuda.bytes(in);
    MemorySegment to = HostCuda.bytes(out);
    MemorySegment powers = HostCuda.bytes(scales);
    for (long g = 0; g < in.elementCount() / MX_GROUP; g++) {
      float most = 0;
      for (long i = g * MX_GROUP; i < (g + 1) * MX_GROUP; i++) {
        most = larger(most, read(from, in.dtype(), i));
      }
      float wanted = most / 448;
      int exponent = Math.getExponent(wanted);
      exponent += Math.scalb(1f, exponent) < wanted ? 1 : 0;
      powers.set(ValueLayout.JAVA_BYTE, g, (byte) (most == 0 ? 0 : exponent + 127));
      for (long i = g * MX_GROUP; i < (g + 1) * MX_GROUP; i++) {
        float v = read(from, in.dtype(), i);
        to.set(ValueLayout.JAVA_BYTE, i, E4m3.of(most == 0 ? v : Math.scalb(v, -exponent)));
      }
    }
  }

  /** The larger magnitude; a NaN is a code of its own and no magnitude. */
  private static float larger(float most, float v) {
    return Math.abs(v) > most ? Math.abs(v) : most;
  }

  @Override
  public void quantizeBlocks(Tensor in, Tensor out, Tensor scales, DeviceStream stream) {
    MemorySegment from = HostCuda.bytes(in);
    MemorySegment to = HostCuda.bytes(out);
    MemorySegment all = HostCuda.bytes(scales);
    long groups = in.size(1) / BLOCK;
    for (long g = 0; g < in.size(0) * groups; g++) {
      float most = 0;
      for (long i = g * BLOCK; i < (g + 1) * BLOCK; i++) {
        most = larger(most, read(from, in.dtype(), i));
      }
      float s = most == 0 ? 1 : most / 448;
      all.setAtIndex(ValueLayout.JAVA_FLOAT_UNALIGNED, g % groups * in.size(0) + g / groups, s);
      for (long i = g * BLOCK; i < (g + 1) * BLOCK; i++) {
        to.set(ValueLayout.JAVA_BYTE, i, E4m3.of(read(from, in.dtype(), i) / s));
      }
    }
  }

  @Override
  public void quantizeNv(Tensor in, Tensor out, Tensor scales, Tensor scale, DeviceStream stream) {
    MemorySegment from = HostCuda.bytes(in);
    MemorySegment to = HostCuda.bytes(out);
    float global = read(HostCuda.bytes(scale), DType.F32, 0);
    for (long g = 0; g < in.elementCount() / NV_GROUP; g++) {
      float most = 0;
      for (long i = g * NV_GROUP; i < (g + 1) * NV_GROUP; i++) {
        most = Math.max(most, Math.abs(read(from, in.dtype(), i)));
      }
      byte own = E4m3.of(most / 6 / global);
      HostCuda.bytes(scales).set(ValueLayout.JAVA_BYTE, g, own);
      float s = E4m3.value(own) * global;
      for (long i = g * NV_GROUP; i < (g + 1) * NV_GROUP; i += 2) {
        int low = s > 0 ? e2m1(read(from, in.dtype(), i) / s) : 0;
        int high = s > 0 ? e2m1(read(from, in.dtype(), i + 1) / s) : 0;
        to.set(ValueLayout.JAVA_BYTE, i / 2, (byte) (low | high << 4));
      }
    }
  }

  /** The nearest of E2M1's numbers, of two as near the one with an even code. */
  static int e2m1(float v) {
    float[] values = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    float a = Math.min(Math.abs(v), 6);
    int best = 0;
    for (int code = 1; code < values.length; code++) {
      float better = Math.abs(a - values[best]) - Math.abs(a - values[code]);
      if (better > 0 || (better == 0 && code % 2 == 0)) {
        best = code;
      }
    }
    return best | Float.floatToRawIntBits(v) >>> 31 << 3;
  }

  @Override
  public void packRouting(Tensor ids, Tensor weights, Tensor out, DeviceStream stream) {
    for (long i = 0; i < ids.elementCount(); i++) {
      int id = HostCuda.bytes(ids).getAtIndex(ValueLayout.JAVA_INT_UNALIGNED, i);
      short w = Tensor.toBFloat16(read(HostCuda.bytes(weights), DType.F32, i));
      HostCuda.bytes(out)
          .setAtIndex(ValueLayout.JAVA_INT_UNALIGNED, i, id << 16 | Short.toUnsignedInt(w));
    }
  }

  @Override
  public void rows(Rows r, boolean early, DeviceStream stream) {
    MemorySegment to = HostCuda.bytes(r.out());
    int blocks = r.blocks();
    long outWidth = r.out().size(1) / blocks;
    Tensor in = r.in();
    Tensor map = r.map();
    long inWidth = in == null ? 0 : in.size(1) / blocks;
    for (long row = 0; row < r.out().size(0); row++) {
      long from = map == null ? row : HostCuda.bytes(map).getAtIndex(ValueLayout.JAVA_INT, row);
      for (int b = 0; b < blocks; b++) {
        for (long x = 0; x < outWidth; x++) {
          short v = 0;
          if (in != null && from >= 0 && x < inWidth) {
            int block = r.swapped() ? blocks - 1 - b : b;
            v =
                HostCuda.bytes(in)
                    .getAtIndex(
                        ValueLayout.JAVA_SHORT_UNALIGNED, (from * blocks + block) * inWidth + x);
          }
          to.setAtIndex(ValueLayout.JAVA_SHORT_UNALIGNED, (row * blocks + b) * outWidth + x, v);
        }
      }
    }
  }

  @Override
  public boolean isRecording(DeviceStream stream) {
    return stream.handle() == RECORDING;
  }

  @Override
  public Router router(RoutingConfig routing, int numExperts, int topK) {
    return (logits, bias, ids, weights, stream) -> {
      int[] chosen = new int[topK];
      double[] shares = new double[topK];
      Tensor all = HostCuda.onHost(logits);
      double[] correction = bias == null ? null : HostCuda.onHost(bias).toDoubles();
      for (long t = 0; t < logits.size(0); t++) {
        ReferenceRouting.route(routing, all.select(0, t).toDoubles(), correction, chosen, shares);
        for (int k = 0; k < topK; k++) {
          HostCuda.onHost(ids).set(chosen[k], t, k);
          HostCuda.onHost(weights).set(shares[k], t, k);
        }
      }
    };
  }

  @Override
  public boolean routesInOneLaunch(RoutingConfig routing, int numExperts, int topK) {
    return routing.numGroups() <= 1 && numExperts <= 128;
  }

  @Override
  public void routeAndQuantize(
      RoutingConfig routing,
      Tensor logits,
      ExpertRouting to,
      Tensor in,
      Tensor out,
      Tensor scale,
      DeviceStream stream) {
    router(routing, Math.toIntExact(logits.size(1)), Math.toIntExact(to.topkIds().size(1)))
        .route(logits, null, to.topkIds(), to.topkWeights(), stream);
    quantize(in, out, scale, false, stream);
  }

  @Override
  public void routeAndResize(
      RoutingConfig routing,
      Tensor logits,
      ExpertRouting to,
      Tensor in,
      Tensor out,
      DeviceStream stream) {
    router(routing, Math.toIntExact(logits.size(1)), Math.toIntExact(to.topkIds().size(1)))
        .route(logits, null, to.topkIds(), to.topkWeights(), stream);
    rows(Rows.resized(in, out), stream);
  }

  @Override
  public void combine(
      Tensor y, ExpertRouting routing, int experts, Tensor out, DeviceStream stream) {
    Tensor ids = HostCuda.onHost(routing.topkIds());
    Tensor weights = HostCuda.onHost(routing.topkWeights());
    Tensor map = routing.expertMap();
    MemorySegment rows = HostCuda.bytes(y);
    Tensor sums = HostCuda.onHost(out);
    long width = out.size(1);
    for (long t = 0; t < out.size(0); t++) {
      for (long h = 0; h < width; h++) {
        float sum = 0;
        for (long k = 0; k < ids.size(1); k++) {
          int id = (int) ids.get(t, k);
          long local = map == null ? id : HostCuda.bytes(map).getAtIndex(ValueLayout.JAVA_INT, id);
          if (local >= 0 && local < experts) {
            sum +=
                (float) weights.get(t, k)
                    * read(rows, y.dtype(), (t * ids.size(1) + k) * width + h);
          }
        }
        sums.set(sum, t, h);
      }
    }
  }

  private static float read(MemorySegment from, DType dtype, long i) {
    return switch (dtype) {
      case F32 -> from.getAtIndex(ValueLayout.JAVA_FLOAT_UNALIGNED, i);
      case BF16 -> Float.intBitsToFloat(from.getAtIndex(ValueLayout.JAVA_SHORT_UNALIGNED, i) << 16);
      case F16 -> Float.float16ToFloat(from.getAtIndex(ValueLayout.JAVA_SHORT_UNALIGNED, i));
      default -> throw new IllegalArgumentException("input is " + dtype);
    };
  }
}
