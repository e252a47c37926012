package io.moe4j.backend.cpu;

import io.moe4j.api.config.Activation;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.backend.cpu.ffi.HugeMemory;
import io.moe4j.backend.cpu.ffi.NativeKernels;
import io.moe4j.backend.cpu.kernel.Kernels;
import io.moe4j.backend.cpu.options.ActivationPolicy;
import io.moe4j.backend.cpu.options.CpuOptions;
import io.moe4j.backend.cpu.options.CpuProperties;
import io.moe4j.backend.cpu.options.PackPolicy;
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

  /** {@return what a layer with such options uses; starts threads} */
  static Mlps of(CpuOptions options) {
    KernelChoice kernels = KernelChoice.of(options);
    return new Mlps(
        kernels.java(),
        kernels.c(),
        kernels.whyNotC(),
        options.pack(),
        ThreadTeam.of(options),
        options.activations());
  }

  /** {@return which kernels layers without options of their own use, or what a property lacks} */
  static String describe(CpuProperties properties) {
    String fault = properties.fault();
    CpuOptions options = properties.defaults();
    return fault != null ? fault : KernelChoice.of(options).description(options.activations());
  }

  private KernelChoice kernels() {
    return new KernelChoice(java, c, whyNotC);
  }

  /** {@return what computes the parts of a block around its experts} */
  BlockKernels block() {
    return new BlockKernels(java, c == null ? null : c.block(), team);
  }

  /** {@return whether rows that meet int4 or int8 weights become int8} */
  private boolean int8() {
    return activations == ActivationPolicy.INT8 && kernels().multipliesInt8();
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
    String refusal = whyNotC;
    if (c != null) {
      try (Arena copies = Arena.ofShared()) {
        MlpWeights plain = new MlpWeights(activation, experts, copies, shared);
        PackedWeights packed = new PackedWeights(plain, int8());
        refusal = packed.refusal();
        if (refusal.isEmpty()) {
          refusal = MemoryRoom.refusal(pack, packed.bytes());
        }
        if (refusal.isEmpty()) {
          NativeWarmUp.once(block(), c); // first, so that the JVM compiles while weights are packed
          if (packed(packed, plain, c, arena)) {
            String kernels = c.description() + KernelChoice.describe(activations, packed.anyInt8());
            return new NativeMlp(
                packed, c, team, options, MlpFacts.packed(kernels, packed, pack, team, experts));
          }
          refusal = "a code or a scale is not a number";
        }
        LOG.info("The CPU backend uses weights in place with {}: {}.", java.description(), refusal);
      }
    }
    MlpWeights weights = new MlpWeights(activation, experts, arena, shared);
    return new GroupedMlp(
        new MlpSpec(
            weights,
            java,
            team,
            options.topK(),
            options.weightOnInput(),
            options.maxLoras(),
            options.maxRank(),
            options.batchInvariant()),
        MlpFacts.inPlace(
            java.description()
                + " (not those in C: "
                + refusal
                + ")"
                + KernelChoice.describe(activations, false),
            team,
            experts));
  }
}
