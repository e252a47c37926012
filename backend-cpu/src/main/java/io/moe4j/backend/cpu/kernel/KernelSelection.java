package io.moe4j.backend.cpu.kernel;

import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Picks the kernels of this JVM, once. */
public final class KernelSelection {
  /** The module that the fast kernels need. */
  public static final String VECTOR_MODULE = "jdk.incubator.vector";

  /** Set to {@code true} to run the scalar kernels although the module is there. */
  public static final String SCALAR_PROPERTY = "moe4j.cpu.scalar";

  private static final Logger LOG = LoggerFactory.getLogger(KernelSelection.class);

  private KernelSelection() {}

  private static final class Holder {
    static final Kernels CHOSEN = choose();
  }

  /** {@return the kernels to use} */
  public static Kernels kernels() {
    return Holder.CHOSEN;
  }

  /** {@return plain Java kernels, whatever this JVM offers} */
  public static Kernels scalar() {
    return new ScalarKernels();
  }

  /** {@return whether the Vector API is present in this JVM} */
  public static boolean vectorModulePresent() {
    return ModuleLayer.boot().findModule(VECTOR_MODULE).isPresent();
  }

  private static Kernels choose() {
    if (!vectorModulePresent()) {
      LOG.warn(
          "The module {} is not loaded: the CPU backend runs its scalar kernels, which are many"
              + " times slower. Start the JVM with --add-modules {} for the fast ones.",
          VECTOR_MODULE,
          VECTOR_MODULE);
      return scalar();
    }
    if (Boolean.getBoolean(SCALAR_PROPERTY)) {
      LOG.info("-D{}=true: the CPU backend runs its scalar kernels.", SCALAR_PROPERTY);
      return scalar();
    }
    return new VectorKernels();
  }
}
