package io.moe4j.cuda;

import io.moe4j.api.DeviceException;
import java.util.function.Supplier;
import jcuda.driver.CUresult;

/**
 * Turns driver status codes into exceptions. JCuda's own switch for that is process-wide, so it
 * stays untouched.
 */
final class Cu {
  private Cu() {}

  /** Fails unless {@code result} is success. */
  static void check(int result, String call) {
    if (result != CUresult.CUDA_SUCCESS) {
      throw error(result, call, "");
    }
  }

  /** Fails unless {@code result} is success; {@code detail} says what was asked for. */
  static void check(int result, String call, Supplier<String> detail) {
    if (result != CUresult.CUDA_SUCCESS) {
      throw error(result, call, detail.get());
    }
  }

  static DeviceException error(int result, String call, String detail) {
    return new DeviceException(
        call + " failed with " + name(result) + (detail.isEmpty() ? "" : ": " + detail));
  }

  /** {@return like {@code CUDA_ERROR_OUT_OF_MEMORY (2)}} */
  static String name(int result) {
    String name = CUresult.stringFor(result);
    return (name.startsWith("CUDA_") ? name : "CUDA error") + " (" + result + ")";
  }
}
