package io.moe4j.tck;

import io.moe4j.api.device.DeviceProvider;
import io.moe4j.api.platform.DeviceType;
import java.lang.annotation.ElementType;
import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;
import java.lang.annotation.Target;
import java.util.ServiceLoader;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.extension.ConditionEvaluationResult;
import org.junit.jupiter.api.extension.ExecutionCondition;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.extension.ExtensionContext;

/**
 * For tests that need a CUDA device: tagged {@code gpu}, run where a {@link DeviceProvider} on the
 * class path finds one, and are skipped with its reason elsewhere.
 */
@Target({ElementType.TYPE, ElementType.METHOD})
@Retention(RetentionPolicy.RUNTIME)
@Tag("gpu")
@ExtendWith(GpuTest.OnCudaDevice.class)
public @interface GpuTest {
  /** Asks the provider. */
  final class OnCudaDevice implements ExecutionCondition {
    /** For JUnit. */
    public OnCudaDevice() {}

    @Override
    public ConditionEvaluationResult evaluateExecutionCondition(ExtensionContext context) {
      return ServiceLoader.load(DeviceProvider.class).stream()
          .map(ServiceLoader.Provider::get)
          .filter(p -> p.type().equals(DeviceType.CUDA))
          .findFirst()
          .map(p -> of(p.probe()))
          .orElseGet(() ->
              ConditionEvaluationResult.disabled(
                  "skipped: no CUDA device (moe-cuda is not on the class path)"));
    }

    private static ConditionEvaluationResult of(DeviceProvider.Probe probe) {
      return probe.devices().isEmpty()
          ? ConditionEvaluationResult.disabled("skipped: no CUDA device (" + probe.absent() + ")")
          : ConditionEvaluationResult.enabled(probe.devices().getFirst().name());
    }
  }
}
