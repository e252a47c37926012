package io.moe4j.backend.cpu.kernel;

import java.util.Locale;
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

  /**
   * {@return the kernels to use}
   *
   * @throws IllegalArgumentException if {@value #SCALAR_PROPERTY} is neither true nor false
   */
  public static Kernels kernels() {
    scalarAskedFor(); // says what is wrong with it each time
    return Holder.CHOSEN;
  }

  /**
   * {@return whether the scalar kernels are asked for}
   *
   * @throws IllegalArgumentException if {@value #SCALAR_PROPERTY} is neither true nor false
   */
  public static boolean scalarAskedFor() {
    return scalarAskedFor(System.getProperty(SCALAR_PROPERTY, "false"));
  }

  static boolean scalarAskedFor(String property) {
    return switch (property.strip().toLowerCase(Locale.ROOT)) {
      case "", "true" -> true; // -Dx without a value means true everywhere
      case "false" -> false;
      default ->
          throw new IllegalArgumentException(
              "-D" + SCALAR_PROPERTY + " is \"" + property + "\", must be true or false");
    };
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
    if (scalarAskedFor()) {
      LOG.info("-D{}=true: the CPU backend runs its scalar kernels.", SCALAR_PROPERTY);
      return scalar();
    }
    return new VectorKernels();
  }
}
