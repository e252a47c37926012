package io.moe4j.cuda;

/**
 * Every system property of this module that is a setting; read once, when the first kernel is
 * loaded.
 */
final class CudaProperties {
  /** Set to {@code false} to launch without programmatic dependent launch. */
  static final String PDL = "moe4j.cuda.pdl";

  /** Whether kernels may start before the one in front of them has finished. */
  static final boolean PDL_ALLOWED = !"false".equals(System.getProperty(PDL));

  private CudaProperties() {}
}
