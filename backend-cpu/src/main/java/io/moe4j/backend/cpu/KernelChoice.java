package io.moe4j.backend.cpu;

import io.moe4j.backend.cpu.ffi.Isa;
import io.moe4j.backend.cpu.ffi.NativeKernels;
import io.moe4j.backend.cpu.kernel.KernelSelection;
import io.moe4j.backend.cpu.kernel.Kernels;
import io.moe4j.backend.cpu.options.ActivationPolicy;
import io.moe4j.backend.cpu.options.CpuOptions;
import io.moe4j.backend.cpu.options.CpuProperties;
import org.jspecify.annotations.Nullable;

/**
 * Which kernels there are for some options. Loads the library, and starts no thread.
 *
 * @param java the Vector API's, or scalar ones
 * @param c those in C, null where there are none
 * @param whyNotC one line; empty if there are some
 */
record KernelChoice(Kernels java, @Nullable NativeKernels c, String whyNotC) {
  static KernelChoice of(CpuOptions options) {
    return switch (options.kernels()) {
      case AUTO -> of(NativeKernels.best());
      case JAVA ->
          new KernelChoice(
              KernelSelection.kernels(),
              null,
              "switched off, by -D" + CpuProperties.NATIVE + "=off or the layer's options");
      case SCALAR ->
          new KernelChoice(
              KernelSelection.scalar(),
              null,
              "scalar ones are asked for, by -D"
                  + CpuProperties.SCALAR
                  + " or the layer's options");
      default -> of(NativeKernels.choice(Isa.valueOf(options.kernels().name())));
    };
  }

  private static KernelChoice of(NativeKernels.Choice choice) {
    return new KernelChoice(KernelSelection.kernels(), choice.kernels(), choice.reason());
  }

  /** {@return whether there are units for rows of int8} */
  boolean multipliesInt8() {
    return c != null && c.multipliesInt8();
  }

  /** {@return which kernels compute and, if none in C, why} */
  String description() {
    return c == null ? java.description() + " (no kernels in C: " + whyNotC + ")" : c.description();
  }

  /** {@return the kernels, and what becomes of activations} */
  String description(ActivationPolicy activations) {
    return description() + describe(activations, multipliesInt8());
  }

  /**
   * {@return what to add to a description of kernels; empty without int8}
   *
   * @param policy what was asked for
   * @param available whether they become int8
   */
  static String describe(ActivationPolicy policy, boolean available) {
    return switch (policy) {
      case UNQUANTISED -> "";
      case INT8 ->
          available
              ? ", int8 activations with int4 and int8 weights"
              : ", activations unquantised: int8 takes int4 or int8 weights, and kernels in C with"
                  + " AVX-512 VNNI, AMX or (aarch64) I8MM";
    };
  }
}
