package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.MemorySource;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.file.Path;
import org.slf4j.LoggerFactory;

/**
 * The file under a mapping, held open so that its length can be asked: the mapped file's own, even
 * if another one has taken its name meanwhile. Closed with the {@link SafetensorsFile}, or when
 * nothing refers to the mapping any more.
 */
final class MappedFile implements MemorySource {
  private final Path path;
  private final long size;

  /** Not a channel: those are closed when a thread that asks them is interrupted. */
  private final RandomAccessFile file;

  private volatile boolean closed;

  MappedFile(Path path, long size, RandomAccessFile file) {
    this.path = path;
    this.size = size;
    this.file = file;
  }

  @Override
  public void requireIntact() {
    requireOpen();
    long now;
    try {
      now = file.length();
    } catch (IOException e) {
      requireOpen();
      throw new CheckpointException(path + " is mapped and can no longer be looked at: " + e, e);
    }
    if (now != size) {
      throw new CheckpointException(
          path
              + " had "
              + size
              + " bytes when it was opened and has "
              + now
              + " now: it was changed in place while it was in use. Open it again, and replace files"
              + " by a rename; a layer built with copyWeights() does not depend on them.");
    }
  }

  private void requireOpen() {
    if (closed) {
      throw new CheckpointException(path + " is closed, and with it the tensors that it held");
    }
  }

  void close() {
    closed = true;
    try {
      file.close();
    } catch (IOException e) {
      LoggerFactory.getLogger(MappedFile.class)
          .warn("{} could not be closed: {}", path, e.toString());
    }
  }
}
