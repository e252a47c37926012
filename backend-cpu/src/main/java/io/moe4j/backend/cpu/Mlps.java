package io.moe4j.backend.cpu;

import io.moe4j.api.config.Activation;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.backend.cpu.ffi.HugeMemory;
import io.moe4j.backend.cpu.ffi.NativeKernels;
import io.moe4j.backend.cpu.kernel.KernelSelection;
import io.moe4j.backend.cpu.kernel.Kernels;
import java.lang.foreign.Arena;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Which kernels compute MLPs, and with which threads.
 *
 * @param java the Vector API's, or scalar ones
 * @param c those in C, null where there are none
 * @param whyNotC one line; empty if there are some
 * @param pack whether weights may be laid out for them
 * @param team threads
 * @param activations whether they may be quantised
 */
record Mlps(
    Kernels java,
    @Nullable NativeKernels c,
    String whyNotC,
    PackPolicy pack,
    ThreadTeam team,
    ActivationPolicy activations) {
  private static final Logger LOG = LoggerFactory.getLogger(Mlps.class);

  /** With unquantised activations. */
  Mlps(Kernels java, @Nullable NativeKernels c, String whyNotC, PackPolicy pack, ThreadTeam team) {
    this(java, c, whyNotC, pack, team, ActivationPolicy.UNQUANTISED);
  }

  /** {@return what this JVM uses} */
  static Mlps chosen() {
    if (KernelSelection.scalarAskedFor()) {
      return new Mlps(
          KernelSelection.kernels(),
          null,
          "-D" + KernelSelection.SCALAR_PROPERTY + "=true",
          PackPolicy.NEVER,
          ThreadTeam.shared(),
          ActivationPolicy.configured());
    }
    NativeKernels.Choice choice = NativeKernels.choice();
    return new Mlps(
        KernelSelection.kernels(),
        choice.kernels(),
        choice.reason(),
        PackPolicy.configured(),
        ThreadTeam.shared(),
        ActivationPolicy.configured());
  }

  /** Packs into the layer's arena, or leaves nothing in it. */
  private boolean packed(PackedWeights packed, MlpWeights plain, NativeKernels c, Arena arena) {
    Arena own = Arena.ofShared();
    boolean done = false;
    try {
      done = packed.pack(plain, c, team, own);
      if (done) {
        HugeMemory.closeWith(arena, own);
      }
      return done;
    } finally {
      if (!done) {
        own.close();
      }
    }
  }

  /** {@return what is wrong with a property; empty if they can be used} */
  static String problem() {
    try {
      chosen();
      return "";
    } catch (IllegalArgumentException e) {
      return String.valueOf(e.getMessage());
    }
  }

  /** {@return which kernels this JVM uses and, if none in C, why; or what a property lacks} */
  static String describe() {
    try {
      Mlps m = chosen();
      String kernels =
          m.c == null
              ? m.java.description() + " (no kernels in C: " + m.whyNotC + ")"
              : m.c.description();
      return kernels + m.activations.describe(m.int8());
    } catch (IllegalArgumentException e) {
      return String.valueOf(e.getMessage());
    }
  }

  /** {@return whether rows that meet int4 or int8 weights become int8} */
  private boolean int8() {
    return activations == ActivationPolicy.INT8 && c != null && c.multipliesInt8();
  }

  /**
   * Prepares some MLPs.
   *
   * @param activation between the products
   * @param experts of one shape
   * @param arena where copies go
   * @param shared whether LoRA targets are those of the shared expert
   * @param options what they have in common
   */
  Mlp of(
      Activation activation,
      List<ExpertWeights.Expert> experts,
      Arena arena,
      boolean shared,
      Mlp.Options options) {
    if (c != null) {
      try (Arena copies = Arena.ofShared()) {
        MlpWeights plain = new MlpWeights(activation, experts, copies, shared);
        PackedWeights packed = new PackedWeights(plain, int8());
        String refusal = packed.refusal();
        if (refusal.isEmpty()) {
          refusal = pack.refusal(packed.bytes());
        }
        if (refusal.isEmpty()) {
          if (packed(packed, plain, c, arena)) {
            return new NativeMlp(packed, c, team, options);
          }
          refusal = "a code or a scale is not a number";
        }
        LOG.info("The CPU backend uses weights in place with {}: {}.", java.description(), refusal);
      }
    }
    return new GroupedMlp(
        new MlpSpec(
            new MlpWeights(activation, experts, arena, shared),
            java,
            team,
            options.topK(),
            options.weightOnInput(),
            options.maxLoras(),
            options.maxRank(),
            options.batchInvariant()));
  }
}
