package io.moe4j.backend.cpu.kernel;

import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** The kernels in Java that this JVM has. */
public final class KernelSelection {
  /** The module that the fast kernels need. */
  public static final String VECTOR_MODULE = "jdk.incubator.vector";

  private static final Logger LOG = LoggerFactory.getLogger(KernelSelection.class);

  private KernelSelection() {}

  private static final class Holder {
    static final Kernels FASTEST = fastest();

    private static Kernels fastest() {
      if (vectorModulePresent()) {
        return new VectorKernels();
      }
      LOG.warn(
          "The module {} is not loaded: the CPU backend runs its scalar kernels, which are many"
              + " times slower. Start the JVM with --add-modules {} for the fast ones.",
          VECTOR_MODULE,
          VECTOR_MODULE);
      return scalar();
    }
  }

  /** {@return the Vector API's kernels, scalar ones where this JVM has none; chosen once} */
  public static Kernels kernels() {
    return Holder.FASTEST;
  }

  /** {@return plain Java kernels, whatever this JVM offers} */
  public static Kernels scalar() {
    return new ScalarKernels();
  }

  /** {@return whether the Vector API is present in this JVM} */
  public static boolean vectorModulePresent() {
    return ModuleLayer.boot().findModule(VECTOR_MODULE).isPresent();
  }
}
