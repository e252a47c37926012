package io.moe4j.checkpoint;

import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.JsonToken;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.DType;
import java.io.IOException;
import java.nio.charset.CharacterCodingException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;

/**
 * The JSON header of a safetensors file, fully checked: every tensor has a dtype, a shape whose
 * bytes equal its stretch of the data section (where the size of the dtype is known), and the
 * stretches fill that section without overlap or hole.
 */
final class SafetensorsHeader {
  /** The limit of the format's reference implementation. */
  static final long MAX_HEADER_BYTES = 100_000_000;

  private static final int MAX_DIMS = 16;
  private static final String METADATA = "__metadata__";

  /** Of one file. The largest published models have less in all files. */
  private static final int MAX_TENSORS = 250_000;

  /** Tensors that any file may have, and bytes that each further one must bring: weights do. */
  private static final int FREE_TENSORS = 150_000;

  private static final int BYTES_A_TENSOR = 4096;

  private static final int MAX_METADATA_ENTRIES = 10_000;
  private static final long MAX_METADATA_CHARS = 16L << 20;

  /** Bits of the format's element types that this library has no use for. */
  private static final Map<String, Integer> OTHER_DTYPES =
      Map.of(
          "C64", 64, "F6_E2M3", 6, "F6_E3M2", 6, "F8_E4M3FNUZ", 8, "F8_E5M2FNUZ", 8, "C128", 128);

  private static final Pattern DTYPE_NAME = Pattern.compile("[A-Z][A-Z0-9_]{0,31}");

  /**
   * One tensor; offsets are relative to the data section.
   *
   * @param dtype null where the element type is none that can be read
   * @param dtypeName as the header spells it
   */
  @SuppressWarnings("ArrayRecordComponent") // read once, by the file that owns the header
  record Entry(
      String name, @Nullable DType dtype, String dtypeName, long[] shape, long begin, long end) {
    String described() {
      return dtypeName + Arrays.toString(shape);
    }
  }

  /** {@return how many tensors files may have, so that reading them ends in time} */
  static long maxTensors(long bytes) {
    return FREE_TENSORS + bytes / BYTES_A_TENSOR;
  }

  private final Path file;
  private final long maxTensors;
  private final List<Entry> entries = new ArrayList<>();
  private final Map<String, String> metadata = new LinkedHashMap<>();

  private SafetensorsHeader(Path file, long dataSize) {
    this.file = file;
    this.maxTensors = Math.min(MAX_TENSORS, maxTensors(dataSize));
  }

  /** In the order of the header. */
  List<Entry> entries() {
    return entries;
  }

  Map<String, String> metadata() {
    return Collections.unmodifiableMap(metadata);
  }

  static SafetensorsHeader parse(Path file, byte[] json, long dataSize) {
    SafetensorsHeader header = new SafetensorsHeader(file, dataSize);
    if (json.length == 0 || json[0] != '{') {
      throw new CheckpointException(
          file + ": the header does not begin with '{', so this is no safetensors file");
    }
    try (JsonParser p = StrictJson.parser(json)) {
      header.read(p);
    } catch (JsonProcessingException e) {
      throw new CheckpointException(
          file + ": the header is not acceptable JSON: " + StrictJson.brief(e), e);
    } catch (CharacterCodingException e) {
      throw new CheckpointException(file + ": the header is not valid UTF-8", e);
    } catch (IOException e) {
      throw new CheckpointException(file + ": the header cannot be read: " + e, e);
    }
    header.requireSeamless(dataSize);
    return header;
  }

  private void read(JsonParser p) throws IOException {
    p.nextToken();
    while (p.nextToken() == JsonToken.FIELD_NAME) {
      String name = p.currentName();
      JsonToken value = p.nextToken();
      if (value != JsonToken.START_OBJECT) {
        throw bad(name, "its entry is " + describe(value) + ", must be a JSON object");
      }
      if (name.equals(METADATA)) {
        readMetadata(p);
      } else {
        readTensor(p, name);
      }
    }
    if (p.currentToken() != JsonToken.END_OBJECT) {
      throw new CheckpointException(file + ": the header is not one JSON object");
    }
    if (p.nextToken() != null) {
      throw new CheckpointException(file + ": the header goes on after its JSON object");
    }
  }

  private void readMetadata(JsonParser p) throws IOException {
    long chars = 0;
    while (p.nextToken() == JsonToken.FIELD_NAME) {
      String key = p.currentName();
      if (p.nextToken() != JsonToken.VALUE_STRING) {
        throw new CheckpointException(
            file
                + ": "
                + METADATA
                + " entry '"
                + StrictJson.shorten(key)
                + "' is "
                + describe(p.currentToken())
                + ", must be a string");
      }
      String text = p.getText();
      chars += key.length() + text.length();
      if (metadata.size() == MAX_METADATA_ENTRIES || chars > MAX_METADATA_CHARS) {
        throw new CheckpointException(
            file
                + ": "
                + METADATA
                + " has more than "
                + MAX_METADATA_ENTRIES
                + " entries or "
                + MAX_METADATA_CHARS
                + " characters");
      }
      metadata.put(key, text);
    }
  }

  private void readTensor(JsonParser p, String name) throws IOException {
    if (entries.size() == maxTensors) {
      throw new CheckpointException(file + ": the header has more than " + maxTensors + " tensors");
    }
    String dtypeName = null;
    long[] shape = null;
    long[] offsets = null;
    while (p.nextToken() == JsonToken.FIELD_NAME) {
      String field = p.currentName();
      p.nextToken();
      switch (field) {
        case "dtype" -> dtypeName = readDtype(p, name);
        case "shape" -> shape = readLongs(p, name, field, MAX_DIMS);
        case "data_offsets" -> offsets = readLongs(p, name, field, 2);
        default ->
            throw bad(
                name,
                "field '"
                    + StrictJson.shorten(field)
                    + "' is unknown; accepted are dtype, shape and data_offsets");
      }
    }
    if (dtypeName == null || shape == null || offsets == null) {
      throw bad(
          name, "its entry lacks " + missing(dtypeName, shape, offsets) + "; all three are needed");
    }
    if (offsets.length != 2) {
      throw bad(name, "data_offsets has " + offsets.length + " numbers, must have 2");
    }
    DType dtype = dtype(dtypeName);
    if (offsets[0] > offsets[1]) {
      throw bad(name, "data_offsets " + Arrays.toString(offsets) + " end before they begin");
    }
    // What a type of tomorrow takes is not known.
    long bytes =
        dtype != null || OTHER_DTYPES.containsKey(dtypeName)
            ? byteSize(name, dtype, dtypeName, shape)
            : offsets[1] - offsets[0];
    if (offsets[1] - offsets[0] != bytes) {
      throw bad(
          name,
          dtypeName
              + Arrays.toString(shape)
              + " takes "
              + bytes
              + " bytes, but data_offsets "
              + Arrays.toString(offsets)
              + " cover "
              + (offsets[1] - offsets[0]));
    }
    entries.add(new Entry(name, dtype, dtypeName, shape, offsets[0], offsets[1]));
  }

  private static @Nullable DType dtype(String name) {
    for (DType dtype : DType.values()) {
      if (dtype.name().equals(name)) {
        return dtype;
      }
    }
    return null;
  }

  private String readDtype(JsonParser p, String name) throws IOException {
    if (p.currentToken() != JsonToken.VALUE_STRING) {
      throw bad(name, "dtype is " + describe(p.currentToken()) + ", must be a string");
    }
    String text = p.getText();
    if (!DTYPE_NAME.matcher(text).matches()) {
      throw bad(
          name,
          "dtype '"
              + StrictJson.shorten(text)
              + "' is unknown; known are "
              + Arrays.toString(DType.values()));
    }
    return text;
  }

  private long[] readLongs(JsonParser p, String name, String field, int maxCount)
      throws IOException {
    if (p.currentToken() != JsonToken.START_ARRAY) {
      throw bad(name, field + " is " + describe(p.currentToken()) + ", must be an array");
    }
    long[] values = new long[maxCount];
    int n = 0;
    while (p.nextToken() != JsonToken.END_ARRAY) {
      if (p.currentToken() != JsonToken.VALUE_NUMBER_INT
          || p.getNumberType() == JsonParser.NumberType.BIG_INTEGER
          || p.getLongValue() < 0) {
        throw bad(
            name,
            field
                + " holds "
                + (p.currentToken().isScalarValue()
                    ? StrictJson.shorten(p.getText())
                    : describe(p.currentToken()))
                + "; accepted are integers 0.."
                + Long.MAX_VALUE);
      }
      if (n == maxCount) {
        throw bad(name, field + " has more than " + maxCount + " numbers");
      }
      values[n++] = p.getLongValue();
    }
    return Arrays.copyOf(values, n);
  }

  private long byteSize(String name, @Nullable DType dtype, String dtypeName, long[] shape) {
    try {
      long count = 1;
      for (long size : shape) {
        count = Math.multiplyExact(count, size);
      }
      if (dtype != null) {
        return dtype.byteSize(count);
      }
      long bits = Math.multiplyExact(count, OTHER_DTYPES.getOrDefault(dtypeName, 0));
      if (bits % Byte.SIZE != 0) {
        throw new ArithmeticException(bits + " bits");
      }
      return bits / Byte.SIZE;
    } catch (ArithmeticException e) {
      throw new CheckpointException(
          where(name)
              + "shape "
              + Arrays.toString(shape)
              + " of "
              + dtypeName
              + " does not fit a 64-bit byte count or whole bytes",
          e);
    }
  }

  private void requireSeamless(long dataSize) {
    List<Entry> byPlace = new ArrayList<>(entries);
    byPlace.sort(Comparator.comparingLong(Entry::begin).thenComparingLong(Entry::end));
    long at = 0;
    @Nullable Entry before = null;
    for (Entry e : byPlace) {
      if (e.end() > dataSize) {
        throw bad(
            e.name(),
            "data_offsets ["
                + e.begin()
                + ", "
                + e.end()
                + "] reach beyond the "
                + dataSize
                + " data bytes of the file (truncated?)");
      }
      if (e.begin() != at) {
        throw bad(
            e.name(),
            "data_offsets ["
                + e.begin()
                + ", "
                + e.end()
                + "] "
                + (e.begin() < at ? "overlap " : "leave a hole after ")
                + (before == null
                    ? "the start of the data"
                    : "'" + StrictJson.shorten(before.name()) + "', which ends at " + at));
      }
      at = e.end();
      before = e;
    }
    if (at != dataSize) {
      throw new CheckpointException(
          file
              + ": the file has "
              + dataSize
              + " data bytes, its tensors cover "
              + at
              + "; trailing bytes are not accepted");
    }
  }

  private static String missing(
      @Nullable String dtype, long @Nullable [] shape, long @Nullable [] offsets) {
    List<String> names = new ArrayList<>();
    if (dtype == null) {
      names.add("dtype");
    }
    if (shape == null) {
      names.add("shape");
    }
    if (offsets == null) {
      names.add("data_offsets");
    }
    return String.join(", ", names);
  }

  private static String describe(@Nullable JsonToken token) {
    return token == null
        ? "cut off"
        : token.name().replace("VALUE_", "").replace('_', ' ').toLowerCase(Locale.ROOT);
  }

  private String where(String tensor) {
    return file + ": tensor '" + StrictJson.shorten(tensor) + "': ";
  }

  private CheckpointException bad(String tensor, String what) {
    return new CheckpointException(where(tensor) + what);
  }
}
