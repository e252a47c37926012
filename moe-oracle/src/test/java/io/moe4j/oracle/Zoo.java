package io.moe4j.oracle;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.BackendPriority;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import io.moe4j.api.tensor.DType;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** The backends of the field with the limits they have there, and machines to ask them about. */
final class Zoo {
  static final Platform HOPPER = Platform.of(DeviceInfo.cuda(0, "H200", 9, 0), cpu());
  static final Platform BLACKWELL = Platform.of(DeviceInfo.cuda(0, "B200", 10, 0), cpu());
  static final Platform TURING = Platform.of(DeviceInfo.cuda(0, "T4", 7, 5), cpu());
  static final Platform CPU_ONLY =
      new Platform(List.of(cpu()), Map.of(DeviceType.CUDA, "libcuda.so.1 was not found"));

  private Zoo() {}

  static DeviceInfo cpu() {
    return DeviceInfo.of(DeviceId.CPU, "some CPU");
  }

  static Platform with(DeviceType type) {
    return Platform.of(DeviceInfo.of(new DeviceId(type, 0), "some " + type), cpu());
  }

  static MoeConfig.Builder config() {
    return MoeConfig.builder(2048, 1024, 64, 8).inputDtype(DType.BF16);
  }

  static MoeConfig.Builder loraConfig() {
    return config().lora(new LoraConfig(8, 64));
  }

  static MoeConfig.Builder epConfig() {
    return config().parallel(ParallelConfig.expert(2, 0));
  }

  static FakeBackend triton() {
    return new FakeBackend("triton", DeviceType.CUDA)
        .withLora()
        .priority(BackendPriority.GPU_PORTABLE)
        .support((c, p) ->
            Support.checks()
                .require(atLeast(p, 8), Code.CAPABILITY, () -> "compute capability below 8.0")
                .require(
                    !c.isQuantized(),
                    Code.QUANTIZATION,
                    () -> "weights are " + c.quantSchemes() + ", takes none")
                .result());
  }

  static FakeBackend batchedTriton() {
    return new FakeBackend("batched-triton", DeviceType.CUDA)
        .batched()
        .priority(BackendPriority.GPU_PORTABLE)
        .support((c, p) ->
            Support.checks()
                .require(atLeast(p, 8), Code.CAPABILITY, () -> "compute capability below 8.0")
                .result());
  }

  static FakeBackend marlin() {
    return new FakeBackend("marlin", DeviceType.CUDA)
        .withLora()
        .priority(BackendPriority.GPU_TUNED)
        .support((c, p) ->
            Support.checks()
                .require(
                    c.quantSchemes().stream().allMatch(q -> q.bits() == 4),
                    Code.QUANTIZATION,
                    () -> "weights are " + c.quantSchemes() + ", takes 4 bits")
                .result());
  }

  /** The tuned ones: better than Triton on Blackwell, worse on Hopper, without LoRA. */
  static FakeBackend flashinfer(String name, int aboveTuned, boolean here) {
    return new FakeBackend(name, DeviceType.CUDA)
        .priority((c, p) ->
            atLeast(p, 10)
                ? BackendPriority.GPU_TUNED + aboveTuned
                : BackendPriority.GPU_PORTABLE - 10 + aboveTuned)
        .support((c, p) ->
            Support.checks()
                .require(here, Code.DRIVER, () -> "its library has no entry point for bf16 experts")
                .require(
                    c.activation().kind() != Activation.Kind.SWIGLUOAI,
                    Code.ACTIVATION,
                    () -> "activation is SWIGLUOAI, takes SILU, RELU2_NO_MUL")
                .require(
                    c.parallel().tpSize() == 1,
                    Code.PARALLEL,
                    () -> "tp size is " + c.parallel().tpSize() + ", takes 1")
                .result());
  }

  static FakeBackend cpuBackend() {
    return new FakeBackend("cpu", DeviceType.CPU).withLora().priority(BackendPriority.CPU);
  }

  static FakeBackend reference() {
    return new FakeBackend("reference", DeviceType.CPU)
        .withLora()
        .priority(BackendPriority.REFERENCE);
  }

  static FakeBackend onlyOn(String name, DeviceType type) {
    return new FakeBackend(name, type).priority(BackendPriority.GPU_PORTABLE);
  }

  static boolean atLeast(Platform p, int major) {
    return p.device(DeviceType.CUDA)
        .flatMap(DeviceInfo::capability)
        .map(c -> c.atLeast(major, 0))
        .orElse(false);
  }

  /** All of them; FlashInfer's kernels are there or not. */
  static List<ExpertsBackend> all(boolean trtllm, boolean cutlass) {
    return new ArrayList<>(
        List.of(
            triton(),
            batchedTriton(),
            marlin(),
            flashinfer("flashinfer-trtllm", 2, trtllm),
            flashinfer("flashinfer-cutlass", 1, cutlass),
            onlyOn("triton-rocm", DeviceType.ROCM).withLora(),
            onlyOn("xpu", DeviceType.XPU),
            onlyOn("tpu", DeviceType.TPU),
            onlyOn("npu-vendor", new DeviceType("npu")),
            cpuBackend(),
            reference()));
  }

  static MoeOracle oracle(ExpertsBackend... backends) {
    return MoeOracle.of(BackendCatalog.of(List.of(backends), List.of(), List.of()));
  }

  static MoeOracle oracle(List<ExpertsBackend> backends) {
    return MoeOracle.of(BackendCatalog.of(backends, List.of(), List.of()));
  }
}
