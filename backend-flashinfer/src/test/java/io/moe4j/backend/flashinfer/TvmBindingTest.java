package io.moe4j.backend.flashinfer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.Device;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** The layer under the backends, against a library that checks what it is given. */
class TvmBindingTest {
  private static final int TOKENS = 3;
  private static final int TOP_K = 2;
  private static final int EXPERTS = 4;
  private static final int HIDDEN = 16;
  private static final int INTERMEDIATE = 8;
  private static final int SWIGLU = 3;

  private final HostCuda device = new HostCuda(9, 0);
  private final List<Device.Buffer> buffers = new ArrayList<>();
  private TvmRuntime runtime;
  private Standin.Controls module;
  private Tensor input;
  private Tensor ids;
  private Tensor weights;
  private Tensor w13;
  private Tensor w2;
  private Tensor output;

  @BeforeEach
  void tensors() {
    runtime = Standin.runtime();
    module = new Standin.Controls(Standin.moe());
    input = random(1, DType.BF16, TOKENS, HIDDEN);
    ids = take(DType.I32, TOKENS, TOP_K);
    weights = random(2, DType.F32, TOKENS, TOP_K);
    w13 = random(3, DType.BF16, EXPERTS, 2 * INTERMEDIATE, HIDDEN);
    w2 = random(4, DType.BF16, EXPERTS, HIDDEN, INTERMEDIATE);
    output = take(DType.BF16, TOKENS, HIDDEN);
    for (int t = 0; t < TOKENS; t++) {
      for (int k = 0; k < TOP_K; k++) {
        HostCuda.onHost(ids).set((t + k * 2) % EXPERTS, t, k);
      }
    }
  }

  @AfterEach
  void giveBack() {
    buffers.forEach(Device.Buffer::close);
    assertThat(device.taken()).as("bytes nobody gave back").isZero();
  }

  private Tensor take(DType dtype, long... shape) {
    long count = 1;
    for (long s : shape) {
      count *= s;
    }
    Device.Buffer buffer = device.allocate(dtype.byteSize(count));
    buffers.add(buffer);
    return Tensor.of(dtype, buffer.memory(), shape);
  }

  private Tensor random(long seed, DType dtype, long... shape) {
    Tensor t = take(dtype, shape);
    Tensor host = HostCuda.onHost(t).reshape(t.elementCount());
    Random random = new Random(seed);
    for (long i = 0; i < host.elementCount(); i++) {
      host.set(random.nextGaussian() / 2, i);
    }
    return t;
  }

  private TvmModule runner(TvmModule library) throws UnavailableException {
    try (TvmFunction init = library.function("init");
        TvmArguments a = new TvmArguments(9)) {
      a.dtype(DType.BF16).dtype(DType.BF16).dtype(DType.BF16);
      for (int i = 0; i < 6; i++) {
        a.bool(false);
      }
      return runtime.make(init, a, "runner");
    }
  }

  private TvmArguments run(@Nullable TvmObject tactics, @Nullable Tensor workspace) {
    return new TvmArguments(28)
        .tensor(output)
        .tensor(input)
        .tensor(ids)
        .tensor(weights)
        .tensor(w13)
        .absent()
        .tensor(w2)
        .absent(8)
        .bool(false)
        .integer(1)
        .integer(0)
        .integer(1)
        .integer(0)
        .integer(1)
        .integer(0)
        .bool(false)
        .bool(false)
        .objectOrAbsent(tactics)
        .bool(false)
        .integer(SWIGLU)
        .tensorOrAbsent(workspace);
  }

  private void assertRight() {
    Tensor x = HostCuda.onHost(input);
    Tensor a = HostCuda.onHost(w13);
    Tensor b = HostCuda.onHost(w2);
    for (int t = 0; t < TOKENS; t++) {
      for (int h = 0; h < HIDDEN; h++) {
        double sum = 0;
        for (int k = 0; k < TOP_K; k++) {
          int e = (int) HostCuda.onHost(ids).get(t, k);
          double y = 0;
          for (int i = 0; i < INTERMEDIATE; i++) {
            double up = 0;
            double gate = 0;
            for (int j = 0; j < HIDDEN; j++) {
              up += x.get(t, j) * a.get(e, i, j);
              gate += x.get(t, j) * a.get(e, INTERMEDIATE + i, j);
            }
            y += gate / (1 + Math.exp(-gate)) * up * b.get(e, h, i);
          }
          sum += HostCuda.onHost(weights).get(t, k) * y;
        }
        assertThat(HostCuda.onHost(output).get(t, h))
            .as("token %d, column %d", t, h)
            .isCloseTo(sum, org.assertj.core.data.Offset.offset(0.02 + Math.abs(sum) / 50));
      }
    }
  }

  @Test
  void callsComputeWhatTheyShould() throws UnavailableException {
    try (TvmModule library = runtime.module(Standin.moe());
        TvmModule runner = runner(library);
        TvmFunction run = runner.function("run_moe");
        TvmObject tactics = runtime.integers(1, 5);
        TvmArguments a = run(tactics, take(DType.U8, 1 << 16));
        TvmCall _ = TvmCall.on(device, device.stream(0x1234))) {
      run.call(a);
    }
    assertRight();
    assertThat(module.ask("standin_last_stream")).isEqualTo(0x1234);
    assertThat(module.ask("standin_last_tactics")).isEqualTo(1005);
  }

  @Test
  void integersAndArraysComeBack() throws UnavailableException {
    try (TvmModule library = runtime.module(Standin.moe());
        TvmModule runner = runner(library);
        TvmFunction count = runner.function("get_tactic_num");
        TvmFunction valid = runner.function("get_valid_tactics_for_shape");
        TvmArguments none = TvmArguments.none();
        TvmArguments shape = new TvmArguments(3).integer(2).integer(16).integer(8)) {
      assertThat(count.callForLong(none)).isEqualTo(9);
      assertThat(runtime.integers(valid, shape)).containsExactly(5, 6, 7, 8);
      assertThatThrownBy(() -> valid.callForLong(shape))
          .isInstanceOf(DeviceException.class)
          .hasMessageContaining("answered with a value of type 71, not with an integer");
    }
  }

  @Test
  void errorsKeepTheLibrarysWords() throws UnavailableException {
    try (TvmModule library = runtime.module(Standin.moe());
        TvmModule runner = runner(library);
        TvmFunction run = runner.function("run_moe")) {
      module.failNext("RuntimeError", "[TensorRT-LLM][ERROR] no tactic for E=4, straße");
      assertThatThrownBy(() -> runOnce(run))
          .isInstanceOf(DeviceException.class)
          .hasMessage(
              "run_moe of FlashInfer failed: RuntimeError: [TensorRT-LLM][ERROR] no tactic for"
                  + " E=4, straße");
      runOnce(run);
      assertRight();
      try (TvmArguments few = new TvmArguments(3).integer(1).bool(true)) {
        assertThatThrownBy(() -> run.call(few))
            .isInstanceOf(DeviceException.class)
            .hasMessageContaining("Expected 28 but got 2 arguments");
      }
      try (TvmArguments wrong = run(null, input)) {
        assertThatThrownBy(
                () -> {
                  try (TvmCall _ = TvmCall.on(device, device.defaultStream())) {
                    run.call(wrong);
                  }
                })
            .hasMessageContaining("workspace_buffer must be 1-D of bytes");
      }
      Tensor columns = random(5, DType.BF16, HIDDEN, TOKENS).transpose(0, 1);
      Tensor kept = input;
      input = columns;
      assertThatThrownBy(() -> runOnce(run)).hasMessageContaining("input must be contiguous");
      input = kept;
    }
  }

  private void runOnce(TvmFunction run) {
    try (TvmArguments a = run(null, null);
        TvmCall _ = TvmCall.on(device, device.stream(7))) {
      run.call(a);
    }
  }

  @Test
  void missingModulesAndFunctionsAreNamed() throws UnavailableException {
    assertThatThrownBy(() -> runtime.module(Path.of("/nowhere/fused_moe_90.so")))
        .isInstanceOf(DeviceException.class)
        .hasMessageContaining("ffi.ModuleLoadFromFile of FlashInfer failed: RuntimeError")
        .hasMessageContaining("/nowhere/fused_moe_90.so");
    try (TvmModule library = runtime.module(Standin.moe())) {
      assertThatThrownBy(() -> library.function("run_fast"))
          .isInstanceOf(UnavailableException.class)
          .hasMessage("fused_moe_90.so has no function run_fast");
    }
  }

  @Test
  void memoryThatAModuleAsksForIsOursAndComesBack() throws UnavailableException {
    try (TvmModule library = runtime.module(Standin.moe());
        TvmModule runner = runner(library);
        TvmFunction run = runner.function("run_moe")) {
      long before = device.taken();
      long asked = module.ask("standin_bytes_allocated");
      runOnce(run);
      assertRight();
      assertThat(module.ask("standin_bytes_allocated")).isGreaterThan(asked);
      assertThat(device.taken()).isEqualTo(before);
      device.limit(100);
      assertThatThrownBy(() -> runOnce(run))
          .isInstanceOf(DeviceException.class)
          .hasMessageContaining("RuntimeError: out of memory:")
          .hasMessageContaining("bytes asked for");
      device.limit(Long.MAX_VALUE);
      assertThat(device.taken()).isEqualTo(before);
      try (TvmArguments a = run(null, null)) {
        assertThatThrownBy(() -> run.call(a))
            .as("outside of a call nobody serves memory")
            .hasMessageContaining("allocator is nullptr");
      }
    }
  }

  @Test
  void thousandCallsLeaveNoReferences() throws UnavailableException {
    try (TvmModule library = runtime.module(Standin.moe());
        TvmModule runner = runner(library);
        TvmFunction run = runner.function("run_moe");
        TvmFunction valid = runner.function("get_valid_tactics_for_shape")) {
      runOnce(run);
      long live = Standin.liveObjects();
      long held = ManagedTensors.held();
      long taken = device.taken();
      long references = runner.references();
      for (int i = 0; i < 1000; i++) {
        try (TvmObject tactics = runtime.integers(i % 5, 5 + i % 4);
            TvmObject scales = runtime.tensors(List.of(weights, w2));
            TvmArguments a = run(tactics, null);
            TvmArguments shape = new TvmArguments(3).integer(1).integer(16).integer(16);
            TvmFunction again = runner.function("run_moe");
            TvmCall _ = TvmCall.on(device, device.stream(7))) {
          assertThat(scales.references()).isEqualTo(1);
          if (i % 10 == 0) {
            module.failNext("ValueError", "no");
            assertThatThrownBy(() -> again.call(a)).isInstanceOf(DeviceException.class);
          } else {
            again.call(a);
          }
          assertThat(runtime.integers(valid, shape)).hasSize(5);
        }
      }
      assertThat(Standin.liveObjects()).isEqualTo(live);
      assertThat(ManagedTensors.held()).isEqualTo(held);
      assertThat(device.taken()).isEqualTo(taken);
      assertThat(runner.references()).isEqualTo(references);
    }
  }

  @Test
  void callsSetTheThreadsStreamAndPutTheOldOneBack() throws UnavailableException {
    try (TvmModule library = runtime.module(Standin.moe());
        TvmModule runner = runner(library);
        TvmFunction run = runner.function("run_moe")) {
      try (TvmCall outer = TvmCall.on(device, device.stream(11))) {
        try (TvmCall _ = TvmCall.on(device, device.stream(12));
            TvmArguments a = run(null, null)) {
          assertThatThrownBy(outer::close).isInstanceOf(IllegalStateException.class);
          run.call(a);
          assertThat(module.ask("standin_last_stream")).isEqualTo(12);
        }
        try (TvmArguments a = run(null, null)) {
          run.call(a);
          assertThat(module.ask("standin_last_stream")).isEqualTo(11);
        }
      }
      try (TvmArguments a = run(null, take(DType.U8, 1 << 16))) {
        run.call(a);
        assertThat(module.ask("standin_last_stream")).isZero();
      }
    }
    HostCuda other = new HostCuda(9, 0);
    assertThatThrownBy(() -> TvmCall.on(other, io.moe4j.api.device.DeviceStream.HOST))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("needed a stream of cuda:0");
  }

  @Test
  void threadsDoNotDisturbEachOther() throws Exception {
    try (TvmModule library = runtime.module(Standin.moe());
        TvmModule runner = runner(library);
        TvmFunction run = runner.function("run_moe")) {
      long live = Standin.liveObjects();
      Callable<Boolean> work =
          () -> {
            for (int i = 0; i < 50; i++) {
              try (TvmArguments wrong = new TvmArguments(1).integer(i)) {
                assertThatThrownBy(() -> run.call(wrong)).hasMessageContaining("got 1 arguments");
              }
              try (TvmObject array = runtime.tensors(List.of(input, ids, weights))) {
                assertThat(array.references()).isEqualTo(1);
              }
            }
            return true;
          };
      try (ExecutorService pool = Executors.newFixedThreadPool(4)) {
        for (Future<Boolean> f : pool.invokeAll(List.of(work, work, work, work))) {
          assertThat(f.get()).isTrue();
        }
      }
      assertThat(Standin.liveObjects()).isEqualTo(live);
    }
  }

  @Test
  void hostTensorsAndOddDtypesAreRefusedByName() {
    try (TvmArguments a = new TvmArguments(2)) {
      assertThatThrownBy(() -> a.tensor(Tensor.ofFloats(new float[4], 4)))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("must be on a device");
      assertThatThrownBy(() -> a.tensor(take(DType.F4, 4, 4)))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("dtype F4")
          .hasMessageContaining("U8");
    }
  }

  @Test
  void closedObjectsAreRefused() throws UnavailableException {
    TvmFunction run;
    try (TvmModule library = runtime.module(Standin.moe());
        TvmModule runner = runner(library)) {
      run = runner.function("run_moe");
    }
    run.close();
    run.close();
    try (TvmArguments a = run(null, null)) {
      assertThatThrownBy(() -> run.call(a)).isInstanceOf(IllegalStateException.class);
    }
  }
}
