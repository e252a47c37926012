package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;
import org.slf4j.LoggerFactory;

/**
 * A safetensors file, mapped into memory: tensors are views of the mapping, nothing is copied. The
 * whole header is checked on opening (format: <a
 * href="https://github.com/huggingface/safetensors#format">huggingface/safetensors</a>); what this
 * class hands out cannot reach outside the file.
 *
 * <p>Views live until {@link #close()}, or as long as the arena given to {@link #open(Path,
 * Arena)}. Immutable and safe to share between threads.
 *
 * <p>A file must not be changed in place while it is mapped; replacing it by a rename is fine. One
 * that became shorter or longer is noticed by {@link #requireIntact()}, which layers call before
 * and after each forward. Reading the lost part by oneself ends in an {@link InternalError}, on
 * HotSpot. What nobody notices is a file that is overwritten at its full length.
 */
public final class SafetensorsFile implements AutoCloseable {
  private static final int LENGTH_BYTES = 8;

  private final Path path;
  private final long fileSize;
  private final Map<String, Tensor> tensors;
  private final Map<String, String> opaque;
  private final Map<String, String> metadata;
  private final Optional<Arena> ownArena;
  private final MappedFile mapped;

  private SafetensorsFile(
      Path path,
      long fileSize,
      MappedFile mapped,
      Map<String, Tensor> tensors,
      Map<String, String> opaque,
      Map<String, String> metadata,
      Optional<Arena> ownArena) {
    this.path = path;
    this.fileSize = fileSize;
    this.mapped = mapped;
    this.tensors = Collections.unmodifiableMap(tensors);
    this.opaque = Collections.unmodifiableMap(opaque);
    this.metadata = metadata;
    this.ownArena = ownArena;
  }

  /**
   * Maps a file; {@link #close()} unmaps it.
   *
   * @param path the file
   * @return the file, to be closed by the caller
   * @throws CheckpointException if the file cannot be read or breaks a rule of the format; the
   *     message names the file, the tensor, what was found and what is accepted
   */
  public static SafetensorsFile open(Path path) {
    Arena arena = Arena.ofShared();
    try {
      return read(path, arena, Optional.of(arena));
    } catch (RuntimeException | Error e) {
      arena.close();
      throw e;
    }
  }

  /**
   * Maps a file for as long as an arena lives; {@link #close()} then does nothing.
   *
   * @param path the file
   * @param arena owns the mapping
   * @return the file
   * @throws CheckpointException as {@link #open(Path)}
   */
  public static SafetensorsFile open(Path path, Arena arena) {
    return read(path, arena, Optional.empty());
  }

  private static SafetensorsFile read(Path path, Arena arena, Optional<Arena> own) {
    if (Files.exists(path) && !Files.isRegularFile(path)) {
      throw new CheckpointException(path + " is not a regular file");
    }
    if (!Files.exists(path)) {
      throw new CheckpointException(path + " does not exist");
    }
    RandomAccessFile opened = null;
    try {
      opened = new RandomAccessFile(path.toFile(), "r");
      SafetensorsFile file = read(path, opened, arena, own);
      opened = null; // the file has it now
      return file;
    } catch (IOException e) {
      throw new CheckpointException(path + " cannot be read: " + Folders.reason(e), e);
    } finally {
      if (opened != null) {
        closeQuietly(path, opened);
      }
    }
  }

  private static void closeQuietly(Path path, RandomAccessFile file) {
    try {
      file.close();
    } catch (IOException e) {
      LoggerFactory.getLogger(SafetensorsFile.class)
          .warn("{} could not be closed: {}", path, e.toString());
    }
  }

  /** Does not close the channel: it is the open file's, which outlives this call. */
  @SuppressWarnings("resource")
  private static SafetensorsFile read(
      Path path, RandomAccessFile opened, Arena arena, Optional<Arena> own) throws IOException {
    FileChannel channel = opened.getChannel();
    long size = channel.size();
    requireKind(path, channel, size);
    if (size < LENGTH_BYTES + 2) {
      throw new CheckpointException(
          path + " has " + size + " bytes; the shortest safetensors file has 10");
    }
    long headerSize =
        ByteBuffer.wrap(readAt(channel, path, 0, LENGTH_BYTES))
            .order(ByteOrder.LITTLE_ENDIAN)
            .getLong();
    if (headerSize < 2 || headerSize > SafetensorsHeader.MAX_HEADER_BYTES) {
      throw new CheckpointException(
          path
              + ": the header length is "
              + Long.toUnsignedString(headerSize)
              + ", accepted are 2.."
              + SafetensorsHeader.MAX_HEADER_BYTES
              + " (is this a safetensors file?)");
    }
    if (headerSize > size - LENGTH_BYTES) {
      throw new CheckpointException(
          path
              + ": the header length is "
              + headerSize
              + ", but the file has only "
              + size
              + " bytes (truncated?)");
    }
    long dataStart = LENGTH_BYTES + headerSize;
    SafetensorsHeader header =
        SafetensorsHeader.parse(
            path,
            readAt(channel, path, LENGTH_BYTES, Math.toIntExact(headerSize)),
            size - dataStart);
    MemorySegment data =
        size == dataStart
            ? MemorySegment.NULL
            : channel.map(FileChannel.MapMode.READ_ONLY, dataStart, size - dataStart, arena);
    MappedFile mapped = new MappedFile(path, size, opened);
    HostMemory memory = new HostMemory(data, mapped);
    Map<String, Tensor> tensors = LinkedHashMap.newLinkedHashMap(header.entries().size());
    Map<String, String> opaque = new LinkedHashMap<>();
    for (SafetensorsHeader.Entry e : header.entries()) {
      if (e.dtype() == null) {
        opaque.put(e.name(), e.described());
      } else {
        tensors.put(e.name(), view(path, e, e.dtype(), memory));
      }
    }
    return new SafetensorsFile(path, size, mapped, tensors, opaque, header.metadata(), own);
  }

  private static void requireKind(Path path, FileChannel channel, long size) throws IOException {
    byte[] start = readAt(channel, path, 0, (int) Math.min(size, FileKinds.SNIFF_BYTES));
    // A header's length may happen to spell another format's mark; its brace settles it.
    boolean header = start.length > LENGTH_BYTES && start[LENGTH_BYTES] == '{';
    Optional<String> kind = FileKinds.recognise(start);
    if (!header && kind.isPresent()) {
      throw new CheckpointException(path + " " + kind.get());
    }
  }

  private static Tensor view(Path path, SafetensorsHeader.Entry e, DType dtype, HostMemory memory) {
    long[] strides = new long[e.shape().length];
    long step = 1;
    for (int d = strides.length - 1; d >= 0; d--) {
      strides[d] = step;
      // An empty tensor may have sizes whose product overflows beside the zero.
      step = e.begin() == e.end() ? step : step * e.shape()[d];
    }
    try {
      return Tensor.strided(
          dtype, memory, e.begin() == e.end() ? 0 : e.begin(), e.shape(), strides);
    } catch (IllegalArgumentException x) {
      throw new CheckpointException(
          path + ": tensor '" + StrictJson.shorten(e.name()) + "': " + x.getMessage(), x);
    }
  }

  private static byte[] readAt(FileChannel channel, Path path, long offset, int length)
      throws IOException {
    ByteBuffer buffer = ByteBuffer.allocate(length);
    while (buffer.hasRemaining()) {
      if (channel.read(buffer, offset + buffer.position()) < 0) {
        throw new CheckpointException(path + " became shorter while it was read");
      }
    }
    return buffer.array();
  }

  /** {@return where the file is} */
  public Path path() {
    return path;
  }

  /**
   * Checks that the file still is as long as it was when it was mapped.
   *
   * @throws CheckpointException if not; the message names both lengths
   */
  public void requireIntact() {
    mapped.requireIntact();
  }

  /** {@return its length in bytes} */
  public long fileSize() {
    return fileSize;
  }

  /**
   * {@return all tensors of known element types by name, in the order of the header; not
   * modifiable}
   */
  public Map<String, Tensor> tensors() {
    return tensors;
  }

  /**
   * {@return tensors of element types that cannot be read (complex numbers, 6-bit floats, types of
   * later versions of the format): name to dtype and shape, like {@code C64[4]}; not modifiable}
   */
  public Map<String, String> opaque() {
    return opaque;
  }

  /** {@return the strings under {@code __metadata__}; empty if there are none} */
  public Map<String, String> metadata() {
    return metadata;
  }

  /**
   * One tensor.
   *
   * @param name its name
   * @return a view, valid as this file is
   * @throws CheckpointException if there is none of that name
   */
  public Tensor tensor(String name) {
    Tensor tensor = tensors.get(name);
    if (opaque.containsKey(name)) {
      throw new CheckpointException(
          path + ": tensor '" + name + "' is " + opaque.get(name) + ", which cannot be read here");
    }
    if (tensor == null) {
      throw new CheckpointException(
          path
              + " has no tensor '"
              + name
              + "'; it has "
              + tensors.size()
              + ": "
              + StrictJson.shorten(String.join(", ", tensors.keySet())));
    }
    return tensor;
  }

  /** The mapping's arena is about to be closed by the one who gave it. */
  void release() {
    mapped.close();
  }

  /** Unmaps the file, if this object owns the mapping; every view becomes unusable. */
  @Override
  public void close() {
    ownArena.ifPresent(arena -> {
      mapped.close();
      if (arena.scope().isAlive()) {
        arena.close();
      }
    });
  }
}
