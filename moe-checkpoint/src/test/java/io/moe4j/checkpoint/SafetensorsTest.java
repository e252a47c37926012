package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.SafetensorsWriter.Spec;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

@NullUnmarked // a missing value fails the test where it is used
class SafetensorsTest {
  @TempDir Path dir;

  @Test
  void whatIsWrittenIsRead() {
    Map<String, Tensor> tensors = new LinkedHashMap<>();
    for (DType dtype : DType.values()) {
      byte[] bytes = new byte[Math.toIntExact(dtype.byteSize(24))];
      for (int i = 0; i < bytes.length; i++) {
        bytes[i] = (byte) (i * 37 + dtype.name().length());
      }
      tensors.put("a." + dtype, Tensor.of(dtype, MemorySegment.ofArray(bytes), 2, 3, 4));
    }
    tensors.put("scalar \"quoted\" \u00e4\n", Tensor.ofFloats(new float[] {1.5f}));
    tensors.put("empty", Tensor.ofFloats(new float[0], 3, 0));
    Path file = dir.resolve("x.safetensors");
    SafetensorsWriter.write(file, tensors, Map.of("k", "v\\\"", "format", "pt"));
    try (SafetensorsFile read = SafetensorsFile.open(file)) {
      assertThat(read.tensors().keySet()).containsExactlyElementsOf(tensors.keySet());
      assertThat(read.metadata()).containsEntry("k", "v\\\"").containsEntry("format", "pt");
      tensors.forEach((name, t) -> {
        Tensor r = read.tensor(name);
        assertThat(r.dtype()).isEqualTo(t.dtype());
        assertThat(r.shape()).isEqualTo(t.shape());
        assertThat(r.segment().toArray(ValueLayout.JAVA_BYTE))
            .isEqualTo(t.segment().toArray(ValueLayout.JAVA_BYTE));
      });
    }
  }

  @Test
  void anyStridesAreWrittenDense() {
    float[] values = new float[24];
    for (int i = 0; i < 24; i++) {
      values[i] = i;
    }
    Tensor t = Tensor.ofFloats(values, 2, 3, 4);
    Path file = dir.resolve("x.safetensors");
    Map<String, Tensor> views =
        Map.of(
            "transposed", t.transpose(0, 2),
            "sliced", t.sliced(2, 1, 2, 2),
            "repeated", t.select(0, 1).expand(3));
    SafetensorsWriter.write(file, views, Map.of());
    try (SafetensorsFile read = SafetensorsFile.open(file)) {
      views.forEach((name, view) -> {
        assertThat(read.tensor(name).isContiguous()).isTrue();
        assertThat(read.tensor(name).toFloats()).isEqualTo(view.toFloats());
      });
    }
  }

  @Test
  void filesOfOtherWritersAreReadAsTheyAre() {
    try (SafetensorsFile io = SafetensorsFile.open(Fixtures.io("qwen3_moe"))) {
      assertThat(io.metadata()).containsEntry("mixed_peft_order", "base,a,b,c,d,e,u");
      assertThat(io.tensor("layers.0.topk_ids").dtype()).isEqualTo(DType.I64);
      assertThat(io.tensor("prompt").toInts()).startsWith(36, 255, 245, 67);
      assertThatThrownBy(() -> io.tensor("nope"))
          .isInstanceOf(CheckpointException.class)
          .hasMessageContaining("'nope'");
    }
  }

  @Test
  void tensorsLiveAsLongAsTheArenaSays() {
    Path file = dir.resolve("x.safetensors");
    SafetensorsWriter.write(file, Map.of("t", Tensor.ofFloats(new float[] {3}, 1)), Map.of());
    Tensor own;
    Tensor given;
    try (Arena arena = Arena.ofConfined()) {
      try (SafetensorsFile a = SafetensorsFile.open(file);
          SafetensorsFile b = SafetensorsFile.open(file, arena)) {
        own = a.tensor("t");
        given = b.tensor("t");
      }
      assertThat(given.get(0)).isEqualTo(3);
      Tensor closed = own;
      assertThatThrownBy(() -> closed.get(0)).isInstanceOf(IllegalStateException.class);
    }
  }

  @Test
  void aWriterLeavesTheTargetAloneUntilItCommits() throws IOException {
    Path file = dir.resolve("x.safetensors");
    Files.writeString(file, "before");
    Map<String, Spec> specs = Map.of("t", new Spec(DType.F32, 2));
    try (SafetensorsWriter w = SafetensorsWriter.create(file, specs, Map.of())) {
      w.put("t", Tensor.ofFloats(new float[] {1, 2}, 2));
    }
    assertThat(file).hasContent("before");
    try (SafetensorsWriter w = SafetensorsWriter.create(file, specs, Map.of())) {
      assertThatThrownBy(w::commit).isInstanceOf(IllegalStateException.class);
      assertThatThrownBy(() -> w.put("u", Tensor.ofFloats(new float[] {1}, 1)))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("'u'");
      assertThatThrownBy(() -> w.put("t", Tensor.ofFloats(new float[] {1}, 1)))
          .hasMessageContaining("F32[2]");
      w.put("t", Tensor.ofFloats(new float[] {1, 2}, 2));
      w.commit();
    }
    try (SafetensorsFile read = SafetensorsFile.open(file);
        Stream<Path> left = Files.list(dir)) {
      assertThat(read.tensor("t").toFloats()).containsExactly(1, 2);
      assertThat(left.toList()).isEqualTo(List.of(file));
    }
    assertThatThrownBy(() ->
            SafetensorsWriter.write(dir.resolve("no/such/dir.safetensors"), Map.of(), Map.of()))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("dir.safetensors");
  }
}
