package io.moe4j.cuda.ops;

import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.Kernel;
import io.moe4j.cuda.KernelLaunch;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * Router logits to topk ids and weights by every method of {@link RoutingConfig}, in f32; see
 * {@code routing.cu}. A NaN is chosen last, so that the ids of a token are always distinct. Safe
 * for several threads.
 */
public final class TopkKernel {
  /** Tokens a block serves: one a warp. */
  static final int TOKENS_PER_BLOCK = 4;

  private static final int LANES = 32;

  /** Scores a lane that {@code topk_flat} is compiled for. */
  private static final int[] PER_LANE = {1, 4, 8, 16};

  private final Kernel kernel;
  private final RoutingConfig routing;
  private final int numExperts;
  private final int topK;
  private final int sharedBytes;
  private final boolean flat;

  /**
   * Loads the kernel for a layer.
   *
   * @param device where to run
   * @param routing the method
   * @param numExperts {@code E}, global
   * @param topK {@code K}
   * @throws io.moe4j.api.DeviceException if {@code E} scores do not fit the device's shared memory
   */
  public TopkKernel(CudaDevice device, RoutingConfig routing, int numExperts, int topK) {
    int perLane = perLane(routing, numExperts, topK);
    this.flat = perLane > 0;
    this.kernel =
        flat
            ? SharedKernels.load(device, "topk_flat", Map.of("lanes", Integer.toString(perLane)))
            : SharedKernels.load(device, "topk");
    this.routing = routing;
    this.numExperts = numExperts;
    this.topK = topK;
    this.sharedBytes = flat ? 0 : sharedBytes(numExperts, topK, routing.numGroups());
    kernel.allowSharedBytes(sharedBytes);
  }

  /**
   * {@return registers a lane that hold all scores, where the kernel that keeps them there can; 0 =
   * the general one}
   */
  static int perLane(RoutingConfig routing, int numExperts, int topK) {
    if (routing.numGroups() > 1
        || routing.scoring() == RoutingConfig.Scoring.SPARSE_MIXER
        || topK > LANES) {
      return 0;
    }
    for (int n : PER_LANE) {
      if (numExperts <= LANES * n) {
        return n;
      }
    }
    return 0;
  }

  /**
   * {@return whether {@code topk_token} of {@code topk.cuh} routes so, in a kernel that is compiled
   * for {@code perLane} scores a lane}
   *
   * @param routing the method
   * @param numExperts {@code E}, global
   * @param topK {@code K}
   * @param perLane scores a lane
   */
  public static boolean fitsToken(RoutingConfig routing, int numExperts, int topK, int perLane) {
    int needed = perLane(routing, numExperts, topK);
    return needed > 0
        && needed <= perLane
        && routing.sumFloor() == 0
        && !routing.expertScale()
        && !routing.byTokenId();
  }

  /**
   * Adds the method's parameters, in the order of {@code topk_token}: scoring, renormalisation,
   * epsilon, factor.
   *
   * @param launch of a kernel that routes
   * @param routing the method
   * @return the launch
   */
  public static KernelLaunch addMethod(KernelLaunch launch, RoutingConfig routing) {
    return launch
        .i32(code(routing.scoring()))
        .i32(routing.renormalize() ? 1 : 0)
        .f32(routing.epsilon())
        .f32(routing.scalingFactor());
  }

  /** Per token: a score and a key for each expert, weight and id of the chosen, a key per group. */
  static int sharedBytes(int numExperts, int topK, int groups) {
    return Math.toIntExact(
        Math.multiplyExact(4L * TOKENS_PER_BLOCK, 2L * numExperts + 2L * topK + groups));
  }

  /** The kernel's number for a method; the order is that of {@code routing.cu}. */
  static int code(RoutingConfig.Scoring scoring) {
    return switch (scoring) {
      case SOFTMAX -> 0;
      case SOFTMAX_TOPK -> 1;
      case SIGMOID -> 2;
      case SQRT_SOFTPLUS -> 3;
      case SPARSE_MIXER -> 4;
    };
  }

  /**
   * Routes.
   *
   * @param logits F32 {@code [T, E]}
   * @param correctionBias F32 {@code [E]}, or null
   * @param topkIds int32 {@code [T, K]}, overwritten
   * @param topkWeights F32 {@code [T, K]}, overwritten
   * @param stream where to run
   */
  public void run(
      Tensor logits,
      @Nullable Tensor correctionBias,
      Tensor topkIds,
      Tensor topkWeights,
      DeviceStream stream) {
    int tokens = SharedKernels.size("T", logits.size(0));
    require("logits", logits, DType.F32, tokens, numExperts);
    require("topkIds", topkIds, DType.I32, tokens, topK);
    require("topkWeights", topkWeights, DType.F32, tokens, topK);
    KernelLaunch l =
        addMethod(
            kernel
                .begin()
                .pointer(logits)
                .pointer(correctionBias)
                .pointer(topkIds)
                .pointer(topkWeights)
                .i32(tokens)
                .i32(numExperts)
                .i32(topK),
            routing);
    if (!flat) {
      l.i32(routing.numGroups())
          .i32(routing.topkGroups())
          .i32(routing.groupScore() == RoutingConfig.GroupScore.SUM_OF_TOP2 ? 1 : 0)
          .f32(routing.jitter())
          .sharedBytes(sharedBytes);
    }
    l.launch(stream, Math.ceilDiv(tokens, TOKENS_PER_BLOCK));
  }

  private static void require(String name, Tensor t, DType dtype, long rows, long columns) {
    if (t.dtype() != dtype
        || t.dims() != 2
        || t.size(0) != rows
        || t.size(1) != columns
        || !t.isContiguous()) {
      throw new IllegalArgumentException(
          name
              + " is "
              + t
              + ", must be a contiguous "
              + dtype
              + "["
              + rows
              + ", "
              + columns
              + "]");
    }
  }
}
