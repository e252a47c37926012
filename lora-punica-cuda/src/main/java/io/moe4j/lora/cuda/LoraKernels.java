package io.moe4j.lora.cuda;

import io.moe4j.api.tensor.DType;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.Kernel;
import io.moe4j.cuda.KernelLibrary;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/** This module's kernels, each loaded when it is first wanted. */
final class LoraKernels {
  private record Key(String name, int x, boolean y32, int rows, int tiles) {}

  private static final class Library {
    static final KernelLibrary IT = KernelLibrary.of(LoraKernels.class, "lora-punica-cuda");
  }

  private final CudaDevice device;
  private final ConcurrentHashMap<Key, Kernel> loaded = new ConcurrentHashMap<>();
  private final int sharedLimit;
  final Kernel any;
  final Kernel addDelta;
  final Kernel pack;
  final Kernel oneExpert;

  LoraKernels(CudaDevice device, int sharedLimit) {
    this.device = device;
    this.sharedLimit = sharedLimit;
    any = load("any", Map.of());
    addDelta = load("add_delta", Map.of());
    pack = load("pack", Map.of());
    oneExpert = load("one_expert", Map.of());
  }

  static KernelLibrary library() {
    return Library.IT;
  }

  /** The kernels' number of a float type, -1 for others. */
  static int code(DType type) {
    return switch (type) {
      case F32 -> 0;
      case BF16 -> 1;
      case F16 -> 2;
      default -> -1;
    };
  }

  /** The number of a pair of types: that of both, or one that no fast kernel serves. */
  static int code(DType a, DType b) {
    return a == b ? code(a) : MIXED + code(a) + 4 * code(b);
  }

  private Kernel load(String name, Map<String, String> constants) {
    return device.kernel(library(), library().select(device.info(), name, constants));
  }

  private Kernel get(String name, int x, boolean y32, int rows, int tiles) {
    Kernel known = loaded.get(new Key(name, x, y32, rows, tiles));
    return known != null ? known : find(new Key(name, x, y32, rows, tiles));
  }

  private Kernel find(Key key) {
    return loaded.computeIfAbsent(
        key,
        k -> {
          Map<String, String> constants = new java.util.HashMap<>();
          constants.put("x", k.x == 1 ? "bf16" : "f16");
          constants.put("rows", Integer.toString(k.rows));
          if (!k.name.equals("shrink")) {
            constants.put("y", k.y32 ? "f32" : "same");
          }
          if (!k.name.equals("expand")) {
            constants.put("tiles", Integer.toString(k.tiles));
          }
          Kernel kernel = load(k.name, constants);
          kernel.allowSharedBytes(sharedLimit - RESERVED);
          return kernel;
        });
  }

  private static final int MIXED = 16;

  /** Static shared memory of the kernels, and what the driver keeps of a block's. */
  static final int RESERVED = 2048;

  Kernel oneShot(int x, boolean y32, LaunchPlan plan) {
    return get("one_shot", x, y32, plan.tileRows(), plan.rankTiles());
  }

  Kernel shrink(int x, LaunchPlan plan) {
    return get("shrink", x, false, plan.tileRows(), plan.rankTiles());
  }

  Kernel expand(int x, boolean y32, LaunchPlan plan) {
    return get("expand", x, y32, plan.tileRows(), 0);
  }
}
