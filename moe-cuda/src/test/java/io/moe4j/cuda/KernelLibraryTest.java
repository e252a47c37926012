package io.moe4j.cuda;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.DeviceException;
import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import java.nio.file.Path;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class KernelLibraryTest {
  private static final KernelLibrary LIBRARY =
      KernelLibrary.of(KernelLibraryTest.class, "test-kernels");

  @Test
  void ownManifestFitsItsSourcesAndPtx() {
    KernelManifestChecks.check(CudaDevice.class, "moe-cuda", Path.of("."));
    KernelManifestChecks.check(CudaDevice.class, "moe-cuda-triton", Path.of("."));
  }

  @Test
  void noMatrixInstructionReadsRegisters() {
    KernelManifestChecks.checkMatrixOperands(KernelLibrary.of(CudaDevice.class, "moe-cuda-triton"));
  }

  @ParameterizedTest
  @CsvSource({
    "sm_80,  8.0, true",
    "sm_80,  9.0, true",
    "sm_80, 12.0, true",
    "sm_80, 7.5, false",
    "sm_90a, 9.0, true",
    "sm_90a, 10.0, false",
    "sm_90a, 8.9, false",
    "sm_90, 10.3, true",
    "sm_100f, 10.3, true",
    "sm_100f, 12.0, false",
    "sm_120a, 12.0, true",
  })
  void archRunsOn(String arch, String card, boolean runs) {
    String[] v = card.split("\\.", -1);
    ComputeCapability capability =
        new ComputeCapability(Integer.parseInt(v[0]), Integer.parseInt(v[1]));
    assertThat(KernelArch.parse(arch).runsOn(capability)).isEqualTo(runs);
    assertThat(KernelArch.parse(arch)).hasToString(arch);
  }

  @ParameterizedTest
  @CsvSource({
    "11080, 7.8",
    "12000, 8.0",
    "12040, 8.4",
    "12050, 8.5",
    "12060, 8.5",
    "12080, 8.7",
    "12090, 8.8",
    "13000, 9.0",
    "13010, 9.1",
  })
  void driverCompilesPtx(int driver, String ptx) {
    assertThat(PtxVersion.ofDriver(driver)).isEqualTo(PtxVersion.parse(ptx));
  }

  @Test
  void malformedNamesAreRefused() {
    assertThatThrownBy(() -> KernelArch.parse("sm_9"))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("sm_9");
    assertThatThrownBy(() -> PtxVersion.parse("nine"))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("nine");
  }

  @ParameterizedTest
  @CsvSource({
    "8, 0, 9.0, sm_80",
    "8, 9, 8.7, sm_80",
    "9, 0, 9.0, sm_90a",
    "10, 0, 9.0, sm_80",
    // The driver is too old for the best one.
    "9, 0, 8.7, sm_80",
  })
  void bestTargetThatCardAndDriverRun(int major, int minor, String isa, String arch) {
    assertThat(LIBRARY.select(device(major, minor, isa), "gemm", Map.of("BM", "64")).arch())
        .hasToString(arch);
  }

  @Test
  void variantsKeepEachSetOfConstantsOnce() {
    assertThat(LIBRARY.variants("gemm", new ComputeCapability(9, 0), new PtxVersion(9, 0)))
        .extracting(KernelSpec::id)
        .containsExactly("gemm{BM=64}@sm_90a", "gemm{BM=128}@sm_80");
  }

  @Test
  void nothingFitsSaysWhatThereIs() {
    assertThatThrownBy(() -> LIBRARY.select(device(7, 5, "9.0"), "gemm", Map.of("BM", "64")))
        .isInstanceOf(DeviceException.class)
        .hasMessageContaining("7.5")
        .hasMessageContaining("gemm{BM=64}@sm_80 (PTX 8.7)");
    assertThatThrownBy(() -> LIBRARY.select(device(9, 0, "9.0"), "gemm", Map.of()))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("not unique");
  }

  @Test
  void whyUnsupportedNamesVersions() {
    assertThat(LIBRARY.whyUnsupported(device(9, 0, "9.0"))).isEmpty();
    assertThat(LIBRARY.whyUnsupported(device(7, 5, "9.0")))
        .contains("compute capability 7.5 < 8.0");
    assertThat(LIBRARY.whyUnsupported(device(8, 6, "8.5")))
        .hasValueSatisfying(why -> assertThat(why).contains("PTX 8.5", "PTX 8.7", "570"));
    assertThat(LIBRARY.whyUnsupported(DeviceInfo.cuda(0, "any driver", 8, 0))).isEmpty();
  }

  @Test
  void specReadsBack() {
    KernelSpec k = LIBRARY.select(device(9, 0, "9.0"), "gemm", Map.of("BM", "64"));
    assertThat(k.intConstant("BM")).isEqualTo(64);
    assertThat(k.threads()).isEqualTo(128);
    assertThat(k.sharedBytes()).isEqualTo(1024);
    assertThat(k.cluster()).isEqualTo(2);
    assertThat(k.pdl()).isTrue();
    assertThat(k.params())
        .extracting(KernelSpec.Param::type)
        .containsExactly(ParamType.TENSOR_MAP, ParamType.POINTER, ParamType.I32, ParamType.NULL);
    assertThatThrownBy(() -> k.constant("BN"))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("BN")
        .hasMessageContaining("BM");
    assertThatThrownBy(() -> LIBRARY.ptx(k))
        .isInstanceOf(DeviceException.class)
        .hasMessageContaining("sm_90a/none.ptx");
  }

  @Test
  void missingOrDamagedManifest() {
    assertThatThrownBy(() -> KernelLibrary.of(KernelLibraryTest.class, "no-such-module"))
        .isInstanceOf(DeviceException.class)
        .hasMessageContaining("META-INF/moe4j/kernels/no-such-module/manifest.json");
    assertThatThrownBy(() -> KernelLibrary.of(KernelLibraryTest.class, "damaged-kernels"))
        .isInstanceOf(DeviceException.class)
        .hasMessageContaining("damaged");
  }

  private static DeviceInfo device(int major, int minor, String isa) {
    return new DeviceInfo(
        new DeviceId(DeviceType.CUDA, 0),
        "card",
        Optional.of(new ComputeCapability(major, minor)),
        0,
        Map.of("ptx-isa", isa));
  }
}
