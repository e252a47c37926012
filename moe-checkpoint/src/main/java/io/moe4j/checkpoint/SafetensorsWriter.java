package io.moe4j.checkpoint;

import com.fasterxml.jackson.core.io.JsonStringEncoder;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.AtomicMoveNotSupportedException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.Map;
import java.util.Set;
import java.util.UUID;

/**
 * Writes a safetensors file without holding it in memory: names, dtypes and shapes are given first,
 * then each tensor's elements, in any order. The bytes go to a temporary file beside the target,
 * which {@link #commit()} moves over it in one step; a writer closed before that leaves the target
 * as it was. Only regular files are replaced; of a symbolic link, what it means. Not thread-safe.
 */
public final class SafetensorsWriter implements AutoCloseable {
  private static final int CHUNK_BYTES = 1 << 20;
  private static final int MAX_LINKS = 40;

  /**
   * What a tensor will be.
   *
   * @param dtype element type
   * @param shape sizes, outermost first
   */
  @SuppressWarnings("ArrayRecordComponent") // copied on the way in and out, compared by content
  public record Spec(DType dtype, long... shape) {
    /**
     * Checks and copies the components.
     *
     * @param dtype element type
     * @param shape copied
     */
    public Spec {
      shape = shape.clone();
    }

    /** {@return a copy of the sizes} */
    @Override
    public long[] shape() {
      return shape.clone();
    }

    @Override
    public boolean equals(Object o) {
      return o instanceof Spec s && s.dtype == dtype && Arrays.equals(s.shape, shape);
    }

    @Override
    public int hashCode() {
      return 31 * dtype.hashCode() + Arrays.hashCode(shape);
    }

    @Override
    public String toString() {
      return dtype + Arrays.toString(shape);
    }

    private long byteSize() {
      long count = 1;
      for (long size : shape) {
        if (size < 0) {
          throw new IllegalArgumentException(
              "shape " + Arrays.toString(shape) + " has a negative size");
        }
        count = Math.multiplyExact(count, size);
      }
      return dtype.byteSize(count);
    }
  }

  private final Path target;
  private final Path temporary;
  private final FileChannel channel;
  private final Map<String, Spec> specs;
  private final Map<String, Long> offsets = new LinkedHashMap<>();
  private final Set<String> unwritten;
  private boolean committed;

  private SafetensorsWriter(
      Path target, Path temporary, FileChannel channel, Map<String, Spec> specs) {
    this.target = target;
    this.temporary = temporary;
    this.channel = channel;
    this.specs = specs;
    this.unwritten = new LinkedHashSet<>(specs.keySet());
  }

  /**
   * Starts a file.
   *
   * @param target where it will be; its directory must exist
   * @param specs all tensors, in the order of the file
   * @param metadata strings for {@code __metadata__}; may be empty
   * @return the writer, to be closed by the caller
   * @throws CheckpointException if the directory cannot be written
   * @throws IllegalArgumentException if a tensor is called {@code __metadata__}
   */
  public static SafetensorsWriter create(
      Path target, Map<String, Spec> specs, Map<String, String> metadata) {
    Map<String, Spec> copy = new LinkedHashMap<>(specs);
    if (copy.containsKey("__metadata__")) {
      throw new IllegalArgumentException("a tensor cannot be called __metadata__");
    }
    byte[] header = header(copy, metadata);
    Path absolute = behindLinks(target);
    if (Files.exists(absolute) && !Files.isRegularFile(absolute)) {
      throw new CheckpointException(
          target + " is not a regular file (a directory, a device, a pipe); it is not replaced");
    }
    // Not Files.createTempFile: the finished file should get the user's usual permissions.
    Path temporary =
        absolute.resolveSibling(
            "." + absolute.getFileName() + "." + UUID.randomUUID() + ".partial");
    try {
      FileChannel channel =
          FileChannel.open(temporary, StandardOpenOption.WRITE, StandardOpenOption.CREATE_NEW);
      SafetensorsWriter writer = new SafetensorsWriter(absolute, temporary, channel, copy);
      writer.begin(header);
      return writer;
    } catch (IOException e) {
      deleteQuietly(temporary);
      throw new CheckpointException(target + " cannot be written: " + Folders.reason(e), e);
    }
  }

  /**
   * Writes a file in one call.
   *
   * @param target where it will be
   * @param tensors host tensors, in the order of the file; any strides
   * @param metadata strings for {@code __metadata__}; may be empty
   * @throws CheckpointException if it cannot be written
   */
  public static void write(Path target, Map<String, Tensor> tensors, Map<String, String> metadata) {
    Map<String, Spec> specs = new LinkedHashMap<>();
    tensors.forEach((name, t) -> specs.put(name, new Spec(t.dtype(), t.shape())));
    try (SafetensorsWriter writer = create(target, specs, metadata)) {
      tensors.forEach(writer::put);
      writer.commit();
    }
  }

  /** A link stays one: the file that it means is replaced. */
  private static Path behindLinks(Path target) {
    Path at = target.toAbsolutePath();
    try {
      for (int i = 0; i < MAX_LINKS && Files.isSymbolicLink(at); i++) {
        at = at.resolveSibling(Files.readSymbolicLink(at)).normalize();
      }
    } catch (IOException e) {
      throw new CheckpointException(target + " cannot be written: " + Folders.reason(e), e);
    }
    if (Files.isSymbolicLink(at)) {
      throw new CheckpointException(target + " cannot be written: its links lead in a circle");
    }
    return at;
  }

  private void begin(byte[] header) throws IOException {
    ByteBuffer length = ByteBuffer.allocate(Long.BYTES).order(ByteOrder.LITTLE_ENDIAN);
    length.putLong(header.length).flip();
    writeAt(length, 0);
    writeAt(ByteBuffer.wrap(header), Long.BYTES);
    long at = (long) Long.BYTES + header.length;
    for (Map.Entry<String, Spec> e : specs.entrySet()) {
      offsets.put(e.getKey(), at);
      at += e.getValue().byteSize();
    }
  }

  private static byte[] header(Map<String, Spec> specs, Map<String, String> metadata) {
    JsonStringEncoder encoder = JsonStringEncoder.getInstance();
    StringBuilder json = new StringBuilder("{");
    if (!metadata.isEmpty()) {
      json.append("\"__metadata__\":{");
      metadata.forEach((k, v) ->
          json.append(json.charAt(json.length() - 1) == '{' ? "" : ",")
              .append('"')
              .append(encoder.quoteAsString(k))
              .append("\":\"")
              .append(encoder.quoteAsString(v))
              .append('"'));
      json.append('}');
    }
    long at = 0;
    for (Map.Entry<String, Spec> e : specs.entrySet()) {
      Spec spec = e.getValue();
      long end = Math.addExact(at, spec.byteSize());
      json.append(json.length() == 1 ? "" : ",")
          .append('"')
          .append(encoder.quoteAsString(e.getKey()))
          .append("\":{\"dtype\":\"")
          .append(spec.dtype())
          .append("\",\"shape\":")
          .append(Arrays.toString(spec.shape).replace(" ", ""))
          .append(",\"data_offsets\":[")
          .append(at)
          .append(',')
          .append(end)
          .append("]}");
      at = end;
    }
    json.append('}');
    byte[] bytes = json.toString().getBytes(StandardCharsets.UTF_8);
    // Padded with spaces so that the data begin at a multiple of eight, as other writers do.
    byte[] padded = Arrays.copyOf(bytes, Math.ceilDiv(bytes.length, Long.BYTES) * Long.BYTES);
    Arrays.fill(padded, bytes.length, padded.length, (byte) ' ');
    return padded;
  }

  /**
   * Writes one tensor's elements; a second call for the same name overwrites.
   *
   * @param name one of the names given at the start
   * @param tensor a host tensor of exactly the dtype and shape given at the start; any strides
   * @throws CheckpointException if it cannot be written
   */
  public void put(String name, Tensor tensor) {
    Spec spec = specs.get(name);
    if (spec == null) {
      throw new IllegalArgumentException(
          "'" + name + "' was not announced; the file holds " + specs.keySet());
    }
    if (!spec.equals(new Spec(tensor.dtype(), tensor.shape()))) {
      throw new IllegalArgumentException(
          "'" + name + "' was announced as " + spec + " and is given as " + tensor);
    }
    try {
      long at = offsets.getOrDefault(name, 0L);
      if (tensor.elementCount() > 0) {
        writeElements(tensor, at);
      }
    } catch (IOException e) {
      throw new CheckpointException(temporary + " cannot be written: " + Folders.reason(e), e);
    }
    unwritten.remove(name);
  }

  private void writeElements(Tensor tensor, long at) throws IOException {
    if (tensor.isContiguous()) {
      MemorySegment segment = tensor.segment();
      for (long o = 0; o < segment.byteSize(); o += CHUNK_BYTES) {
        long n = Math.min(CHUNK_BYTES, segment.byteSize() - o);
        // Copied by chunks: a mapped or heap segment of any size becomes a plain buffer.
        byte[] chunk = segment.asSlice(o, n).toArray(java.lang.foreign.ValueLayout.JAVA_BYTE);
        writeAt(ByteBuffer.wrap(chunk), at + o);
      }
    } else {
      long row = tensor.select(0, 0).elementCount();
      for (long i = 0; i < tensor.size(0); i++) {
        Tensor part = tensor.select(0, i);
        if (part.dims() == 0 || part.isContiguous()) {
          writeElements(dense(part), at + i * tensor.dtype().byteSize(row));
        } else {
          writeElements(part, at + i * tensor.dtype().byteSize(row));
        }
      }
    }
  }

  private static Tensor dense(Tensor part) {
    return part.dims() > 0
        ? part
        : Tensor.strided(
            part.dtype(), part.memory(), part.byteOffset(), new long[] {1}, new long[] {1});
  }

  private void writeAt(ByteBuffer buffer, long at) throws IOException {
    long position = at;
    while (buffer.hasRemaining()) {
      position += channel.write(buffer, position);
    }
  }

  /**
   * Finishes the file and moves it over the target.
   *
   * @throws IllegalStateException if a tensor was not written
   * @throws CheckpointException if the file cannot be completed
   */
  public void commit() {
    if (!unwritten.isEmpty()) {
      throw new IllegalStateException("not written: " + unwritten);
    }
    try {
      channel.force(true);
      channel.close();
      try {
        Files.move(temporary, target, StandardCopyOption.ATOMIC_MOVE);
      } catch (AtomicMoveNotSupportedException e) {
        Files.move(temporary, target, StandardCopyOption.REPLACE_EXISTING);
      }
      committed = true;
    } catch (IOException e) {
      throw new CheckpointException(target + " cannot be written: " + Folders.reason(e), e);
    }
  }

  /** Ends writing; without a {@link #commit()} the temporary file is deleted. */
  @Override
  public void close() {
    try {
      channel.close();
    } catch (IOException e) {
      throw new CheckpointException(temporary + " cannot be closed: " + e, e);
    } finally {
      if (!committed) {
        deleteQuietly(temporary);
      }
    }
  }

  private static void deleteQuietly(Path file) {
    try {
      Files.deleteIfExists(file);
    } catch (IOException e) {
      org.slf4j.LoggerFactory.getLogger(SafetensorsWriter.class)
          .warn("{} could not be deleted: {}", file, e.toString());
    }
  }
}
