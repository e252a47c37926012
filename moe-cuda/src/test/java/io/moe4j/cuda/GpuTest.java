package io.moe4j.cuda;

import java.lang.annotation.ElementType;
import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;
import java.lang.annotation.Target;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.extension.ConditionEvaluationResult;
import org.junit.jupiter.api.extension.ExecutionCondition;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.extension.ExtensionContext;

/** Tagged {@code gpu}; runs where there is a CUDA device, is skipped with the reason elsewhere. */
@Target({ElementType.TYPE, ElementType.METHOD})
@Retention(RetentionPolicy.RUNTIME)
@Tag("gpu")
@ExtendWith(GpuTest.OnCudaDevice.class)
public @interface GpuTest {
  /** Asks the provider. */
  final class OnCudaDevice implements ExecutionCondition {
    @Override
    public ConditionEvaluationResult evaluateExecutionCondition(ExtensionContext context) {
      var probe = new CudaDeviceProvider().probe();
      return probe.devices().isEmpty()
          ? ConditionEvaluationResult.disabled("skipped: no CUDA device (" + probe.absent() + ")")
          : ConditionEvaluationResult.enabled(probe.devices().getFirst().name());
    }
  }
}
