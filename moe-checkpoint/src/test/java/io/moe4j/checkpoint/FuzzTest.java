package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.sun.management.ThreadMXBean;
import io.moe4j.api.AdapterException;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.tensor.Tensor;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.stream.Stream;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Inputs that are almost right, without number: whatever they are, what comes out is a result or a
 * documented exception, within 5 s of a processor and 200 MiB of heap, and no factor of an expert
 * passes for attention. {@code -Dmoe4j.fuzz.iterations} (default 6000) says how many inputs, {@code
 * -Dmoe4j.fuzz.seconds} for how long at most, {@code -Dmoe4j.fuzz.seed} from where; a failure names
 * the seed that makes it alone, with one iteration.
 */
@NullUnmarked // a missing value fails the test where it is used
class FuzzTest {
  private static final int E = TinyCheckpoint.E;
  private static final int H = TinyCheckpoint.H;
  private static final int I = TinyCheckpoint.I;
  private static final long MAX_ALLOCATED = 200L << 20;

  /** Of a processor, not of a clock: other work on the machine does not count. */
  private static final long MAX_CPU_NANOS = 5_000_000_000L;

  /** For what never ends. */
  private static final long HANG_SECONDS = 120;

  private static final ThreadMXBean THREADS = (ThreadMXBean) ManagementFactory.getThreadMXBean();
  private static final ObjectMapper JSON = new ObjectMapper();

  @TempDir Path dir;

  private byte[] adapterFile;
  private byte[] modelFile;
  private JsonNode adapterConfig;
  private JsonNode modelConfig;
  private final AdapterTargetModel model = target();
  private int accepted;
  private int refused;

  private static AdapterTargetModel target() {
    MoeConfig config =
        MoeConfig.builder(H, I, E, 2)
            .sharedExpert(new SharedExpertConfig(8, Activation.SILU, true))
            .build();
    return new AdapterTargetModel(
        KnownLayouts.all().get("qwen2_moe"), new TreeMap<>(Map.of(1, config, 2, config)), 3);
  }

  @Test
  void almostRightInputs() throws Exception {
    long seed = Long.getLong("moe4j.fuzz.seed", 20261129);
    long iterations = Long.getLong("moe4j.fuzz.iterations", 6000);
    long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(Long.getLong("moe4j.fuzz.seconds", 60));
    prepare();
    long done = 0;
    ExecutorService worker =
        Executors.newSingleThreadExecutor(r -> {
          Thread t = new Thread(r, "fuzz");
          t.setDaemon(true); // one that hangs must not keep the others waiting
          return t;
        });
    try {
      for (; done < iterations && System.nanoTime() < end; done++) {
        long own = seed + done;
        Future<?> one =
            worker.submit(() -> {
              try {
                once(own);
              } catch (IOException e) {
                throw new java.io.UncheckedIOException(e);
              }
            });
        try {
          one.get(HANG_SECONDS, TimeUnit.SECONDS);
        } catch (TimeoutException e) {
          throw new AssertionError("seed " + own + " takes over " + HANG_SECONDS + " s", e);
        } catch (ExecutionException e) {
          throw new AssertionError("seed " + own + ": " + e.getCause(), e.getCause());
        }
      }
    } finally {
      worker.shutdownNow();
    }
    System.out.println(
        "fuzz: "
            + done
            + " inputs from seed "
            + seed
            + ", "
            + accepted
            + " accepted, "
            + refused
            + " refused");
    if (iterations > 1000 && done > 1000) {
      assertThat(accepted).as("inputs that are right").isGreaterThan((int) (done / 50));
      assertThat(refused).as("inputs that are not").isGreaterThan((int) (done / 5));
    }
  }

  private void prepare() throws IOException {
    TinyCheckpoint adapter = new FuzzInputs(7).adapter(E, H, I);
    String up = "model.layers.1.mlp.experts.0.up_proj";
    adapter.tensors.clear();
    adapter
        .pair(up, io.moe4j.api.tensor.DType.F32, new long[] {2, H}, new long[] {I, 2})
        .pair(
            "model.layers.1.mlp.experts",
            io.moe4j.api.tensor.DType.F16,
            new long[] {2 * E, I},
            new long[] {H, 2 * E})
        .writeAdapter(dir);
    adapterFile = Files.readAllBytes(dir.resolve("adapter_model.safetensors"));
    adapterConfig =
        JSON.valueToTree(
            Map.of(
                "peft_type",
                "LORA",
                "r",
                2,
                "lora_alpha",
                4.0,
                "use_rslora",
                false,
                "rank_pattern",
                Map.of("a", 2),
                "alpha_pattern",
                Map.of("^b.*", 4),
                "target_parameters",
                List.of("experts.down_proj"),
                "bias",
                "none",
                "peft_version",
                "0.21.0"));
    TinyCheckpoint.qwen3().writeModel(dir);
    modelFile = Files.readAllBytes(dir.resolve("model.safetensors"));
    modelConfig = JSON.readTree(dir.resolve("config.json").toFile());
  }

  private void once(long seed) throws IOException {
    FuzzInputs in = new FuzzInputs(seed * 0x9E3779B97F4A7C15L);
    Path at = Files.createDirectories(dir.resolve("case"));
    try {
      long before = THREADS.getCurrentThreadAllocatedBytes();
      long cpu = THREADS.getCurrentThreadCpuTime();
      try {
        switch (in.random().nextInt(6)) {
          case 0 -> adapterFile(in, at);
          case 1 -> modelFile(in, at);
          case 2 -> index(in, at);
          default -> adapter(in, at);
        }
        accepted++;
      } catch (CheckpointException | AdapterException e) {
        refused++;
        assertThat(e.getMessage()).isNotBlank().doesNotContain("\u0000").hasSizeLessThan(6000);
      }
      assertThat(THREADS.getCurrentThreadCpuTime() - cpu)
          .as("nanoseconds of a processor")
          .isLessThan(MAX_CPU_NANOS);
      assertThat(THREADS.getCurrentThreadAllocatedBytes() - before)
          .as("bytes allocated")
          .isLessThan(MAX_ALLOCATED);
    } finally {
      try (Stream<Path> left = Files.list(at)) {
        for (Path p : left.toList()) {
          Files.delete(p);
        }
      }
    }
  }

  private static AdapterPolicy policy(FuzzInputs in) {
    AdapterPolicy p =
        in.any(List.of(AdapterPolicy.DEFAULT, AdapterPolicy.LENIENT, AdapterPolicy.STRICT));
    return in.chance(2) ? p.withRouter(true) : p;
  }

  private void load(FuzzInputs in, Path at) {
    AdapterPolicy policy = policy(in);
    AdapterReport report = PeftAdapter.inspect(at, model, policy);
    for (AdapterReport.TensorEntry e : report.tensors()) {
      boolean expert = e.tensor().matches("(?s).*\\.layers\\.[12]\\..*expert.*");
      boolean elsewhere = e.tensor().matches("(?s).*(vision|mtp|talker).*");
      assertThat(expert && !elsewhere && e.reason().startsWith("not in a MoE block"))
          .as(e.tensor())
          .isFalse();
    }
    try {
      PeftAdapter loaded = PeftAdapter.load(at, "x", model, policy);
      assertThat(report.accepted()).isTrue();
      assertThat(loaded.report().counts()).isEqualTo(report.counts());
    } catch (AdapterRefusedException e) {
      assertThat(report.accepted()).isFalse();
      assertThat(e.report().advice()).isNotBlank();
      throw e;
    }
  }

  private void adapter(FuzzInputs in, Path at) throws IOException {
    TinyCheckpoint t = in.adapter(E, H, I);
    t.writeAdapter(at);
    if (in.chance(3)) {
      JsonNode config = JSON.readTree(at.resolve("adapter_config.json").toFile());
      Files.write(at.resolve("adapter_config.json"), in.text(in.bend(config)));
    }
    load(in, at);
  }

  private void adapterFile(FuzzInputs in, Path at) throws IOException {
    Files.write(at.resolve("adapter_model.safetensors"), in.safetensors(adapterFile));
    Files.write(
        at.resolve("adapter_config.json"),
        in.text(in.chance(2) ? adapterConfig : in.bend(adapterConfig)));
    load(in, at);
  }

  private void modelFile(FuzzInputs in, Path at) throws IOException {
    if (in.chance(2)) {
      in.model().writeModel(at);
    } else {
      Files.write(at.resolve("model.safetensors"), in.safetensors(modelFile));
      Files.write(at.resolve("config.json"), in.text(modelConfig));
    }
    if (in.chance(2)) {
      JsonNode config = JSON.readTree(JSON.writeValueAsBytes(modelConfig));
      Files.write(at.resolve("config.json"), in.text(in.bend(config)));
    }
    open(in, at);
  }

  private void index(FuzzInputs in, Path at) throws IOException {
    TinyCheckpoint t = in.model();
    Map<String, Tensor> a = new LinkedHashMap<>();
    Map<String, Tensor> b = new LinkedHashMap<>();
    Map<String, String> map = new LinkedHashMap<>();
    List<String> names = new ArrayList<>(t.tensors.keySet());
    for (String name : names) {
      boolean first = name.contains("1");
      (first ? a : b).put(name, t.tensors.get(name));
      map.put(name, first ? "a.safetensors" : "b.safetensors");
      if (in.chance(40)) {
        (first ? b : a).put(name, t.tensors.get(name));
      }
    }
    SafetensorsWriter.write(at.resolve("a.safetensors"), a, Map.of());
    SafetensorsWriter.write(at.resolve("b.safetensors"), b, Map.of());
    Files.write(at.resolve("config.json"), JSON.writeValueAsBytes(t.config));
    JsonNode index = JSON.valueToTree(Map.of("metadata", Map.of(), "weight_map", map));
    if (!in.chance(9)) {
      Files.write(
          at.resolve("model.safetensors.index.json"),
          in.chance(3) ? JSON.writeValueAsBytes(index) : in.text(in.bend(index)));
    }
    open(in, at);
  }

  private static void open(FuzzInputs in, Path at) {
    CheckpointOptions options =
        in.chance(9) ? CheckpointOptions.DEFAULT.withRoot(in.name()) : CheckpointOptions.DEFAULT;
    try (MoeCheckpoint opened = MoeCheckpoint.open(at, options)) {
      for (int layer : opened.layers()) {
        opened.weights(layer).requireFits(opened.config(layer));
        opened.weights(layer).router().weight().toDoubles();
      }
      opened.describe();
      opened.adapterTarget();
    }
  }
}
