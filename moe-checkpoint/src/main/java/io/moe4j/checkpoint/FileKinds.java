package io.moe4j.checkpoint;

import java.nio.charset.StandardCharsets;
import java.util.Locale;
import java.util.Optional;

/** Recognises what is often found where another file should be, to say so. */
final class FileKinds {
  /** Bytes from a file's start that are enough to tell. */
  static final int SNIFF_BYTES = 64;

  private FileKinds() {}

  /**
   * What a file is, judged by its start.
   *
   * @param start up to {@link #SNIFF_BYTES} bytes
   * @return in words that go on with what to do, or empty
   */
  static Optional<String> recognise(byte[] start) {
    String text = new String(start, StandardCharsets.ISO_8859_1);
    if (text.startsWith("version https://git-lfs.github.com/spec/")
        || text.startsWith("version https://hawser.github.com/spec/")) {
      return Optional.of(
          "is a Git LFS pointer, not the file itself: run 'git lfs pull' where it was cloned");
    }
    String lower = text.stripLeading().toLowerCase(Locale.ROOT);
    if (lower.startsWith("<!doctype") || lower.startsWith("<html") || lower.startsWith("<?xml")) {
      return Optional.of("is a web page, not the file itself: download it again");
    }
    if (text.startsWith("PK\u0003\u0004")) {
      return Optional.of(
          "is a zip archive, as torch.save writes: pickled weights are not read, save them as"
              + " safetensors");
    }
    if (text.startsWith("\u0080\u0002") || text.startsWith("\u0080\u0004")) {
      return Optional.of("is a Python pickle, which is not read: save it as safetensors");
    }
    if (text.startsWith("GGUF")) {
      return Optional.of("is a GGUF file, which is not read here");
    }
    if (text.startsWith("\u001f\u008b")) {
      return Optional.of("is compressed with gzip: unpack it first");
    }
    return Optional.empty();
  }
}
