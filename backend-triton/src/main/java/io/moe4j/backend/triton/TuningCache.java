package io.moe4j.backend.triton;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.spi.TuningStatus;
import io.moe4j.backend.triton.TileTable.Problem;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.ops.ExpertKernels;
import io.moe4j.cuda.ops.PaddedSizes;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.BasicFileAttributes;
import java.nio.file.attribute.FileTime;
import java.util.List;
import java.util.Optional;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import org.slf4j.event.Level;

/**
 * What was tuned, for layers that are built. The file is read when the first layer is, and again
 * only after it changed; why it is not used is logged as often. Never throws. Safe for several
 * threads.
 */
final class TuningCache {
  private static final Logger LOG = LoggerFactory.getLogger(TuningCache.class);

  /** Which version of a file was read. */
  private record Stamp(Path file, FileTime modified, long size, @Nullable Object key) {}

  /**
   * A file's content.
   *
   * @param tables what it holds
   * @param problem why it cannot be used, or null
   */
  private record Content(@Nullable Stamp stamp, List<TunedTable> tables, @Nullable String problem) {
    int entries() {
      return tables.stream().mapToInt(t -> t.entries().size()).sum();
    }

    int entries(TunedTable.Key machine) {
      return tables.stream()
          .filter(t -> t.key().sameMachine(machine))
          .mapToInt(t -> t.entries().size())
          .sum();
    }
  }

  private static final Content NOTHING = new Content(null, List.of(), null);

  /** The content last read: a memory of the file, not a setting. */
  private static volatile Content last = NOTHING;

  /** A file that was asked for and not there: one warning is enough. */
  private static volatile @Nullable Path missing;

  private TuningCache() {}

  /**
   * Who chooses tiles for a layer.
   *
   * @param config the layer
   * @param device the card
   * @param localExperts of the layer
   * @return the tuned choices, or the built-in table's where there are none
   */
  static TileChoice forLayer(MoeConfig config, DeviceInfo device, int localExperts) {
    Path file = TuningPlace.current().orElse(null);
    if (file == null) {
      return TileTable::choose;
    }
    TunedTable.Key key = key(config, device, localExperts);
    Content content = read(file, key);
    List<TunedEntry> entries =
        content.tables().stream()
            .filter(t -> t.key().equals(key))
            .flatMap(t -> t.entries().stream())
            .toList();
    if (entries.isEmpty()) {
      return TileTable::choose;
    }
    TunedTiles tiles =
        new TunedTiles(entries, set(config, device), layer(config, device, localExperts));
    if (LOG.isDebugEnabled()) {
      LOG.debug(
          "tuned tiles from {} for {} experts of {} x {}: {}{}",
          file,
          key.experts(),
          key.hidden(),
          key.intermediate(),
          tiles.size() == 0 ? "none" : tiles.text(),
          tiles.size() == entries.size()
              ? ""
              : "; ignored, since there are no such tiles: " + (entries.size() - tiles.size()));
    }
    return tiles.size() == 0 ? TileTable::choose : tiles;
  }

  /** {@return a forward of the layer, of one token without adapters} */
  static Problem layer(MoeConfig config, DeviceInfo device, int localExperts) {
    PaddedSizes sizes = PaddedSizes.of(config);
    return new Problem(
        TritonKernels.tuned(device, config.weightDtype()),
        TritonKernels.portableStages(device),
        config.activation().isGated(),
        1,
        config.topK(),
        localExperts,
        sizes.hidden(),
        sizes.intermediate(),
        0,
        0,
        false,
        mxfp4(config));
  }

  /** {@return the tiles that there are for the layer} */
  static TileSet set(MoeConfig config, DeviceInfo device) {
    String type = TritonKernels.type(config.weightDtype());
    return TileSet.of(
        TritonKernels.library(),
        ExpertKernels.library(),
        CudaDeviceProvider.capability(device),
        CudaDeviceProvider.ptxIsa(device),
        new TileSet.Kind(
            mxfp4(config) ? "mxfp4" : type,
            type,
            config.activation().isGated(),
            activation(config, device)));
  }

  /** {@return what a layer's entries are kept under} */
  static TunedTable.Key key(MoeConfig config, DeviceInfo device, int localExperts) {
    PaddedSizes sizes = PaddedSizes.of(config);
    return new TunedTable.Key(
        device.name(),
        CudaDeviceProvider.capability(device).toString(),
        kernelSet(),
        mxfp4(config) ? "mxfp4" : TritonKernels.type(config.weightDtype()),
        config.activation().isGated() ? activation(config, device) : "none",
        localExperts,
        config.topK(),
        sizes.hidden(),
        sizes.intermediate());
  }

  private static String kernelSet() {
    return TuningFile.kernelSet(
        Stream.of(
                TritonKernels.library().kernels().stream(),
                TritonKernels.cudaLibrary().kernels().stream(),
                ExpertKernels.all())
            .flatMap(s -> s));
  }

  private static boolean mxfp4(MoeConfig config) {
    return TritonSupport.isMxfp4(config);
  }

  private static String activation(MoeConfig config, DeviceInfo device) {
    Activation a = config.activation();
    boolean plain = a.kind() == Activation.Kind.SILU && a.limit() == Float.POSITIVE_INFINITY;
    return plain && !mxfp4(config) && TritonKernels.tuned(device, config.weightDtype())
        ? "silu"
        : "any";
  }

  /** The file's content, with a log line if it is new and of no use here. */
  private static Content read(Path file, TunedTable.Key key) {
    Stamp stamp = stamp(file);
    if (stamp == null && TuningPlace.isNamed() && !file.equals(missing)) {
      missing = file;
      LOG.warn(
          "{} names {}, which is not there or cannot be read: the built-in table of tiles serves",
          TuningPlace.PROPERTY,
          file);
    }
    Content known = last;
    if (stamp != null && stamp.equals(known.stamp())) {
      return known;
    }
    Content now = read(file, stamp);
    last = now;
    if (now.problem() != null) {
      LOG.warn(
          "tuned tiles in {} are not used, the built-in table is: {}; moe tune writes a new one",
          file,
          now.problem());
    } else if (now.entries() > 0 && now.entries(key) == 0) {
      // A home directory may serve machines with other cards; other kernels come with an update.
      LOG.atLevel(sameCard(now, key) ? Level.WARN : Level.INFO)
          .log("tuned tiles in {} are not used, the built-in table is: {}", file, others(now, key));
    }
    return now;
  }

  private static Content read(Path file, @Nullable Stamp stamp) {
    try {
      return new Content(stamp, TuningFile.read(file).orElse(List.of()), null);
    } catch (TuningFile.Unusable e) {
      return new Content(stamp, List.of(), String.valueOf(e.getMessage()));
    }
  }

  private static @Nullable Stamp stamp(Path file) {
    try {
      BasicFileAttributes a = Files.readAttributes(file, BasicFileAttributes.class);
      return new Stamp(file, a.lastModifiedTime(), a.size(), a.fileKey());
    } catch (IOException | SecurityException e) {
      return null;
    }
  }

  private static String others(Content content, TunedTable.Key key) {
    return sameCard(content, key)
        ? "they were measured with other kernels than this version has; run moe tune again"
        : "they were measured on another card than " + key.device() + " (" + key.capability() + ")";
  }

  private static boolean sameCard(Content content, TunedTable.Key key) {
    return content.tables().stream()
        .anyMatch(t ->
            t.key().device().equals(key.device()) && t.key().capability().equals(key.capability()));
  }

  /** {@return what is there for a card, see {@link TuningStatus}} */
  static TuningStatus status(@Nullable DeviceInfo device) {
    Path file = TuningPlace.current().orElse(null);
    if (file == null) {
      return new TuningStatus(
          Optional.empty(),
          true,
          0,
          0,
          TuningPlace.isOff()
              ? "turned off by " + TuningPlace.PROPERTY
              : "this system has no cache directory; " + TuningPlace.PROPERTY + " names a file");
    }
    Content content = read(file, (Stamp) null);
    if (content.problem() != null) {
      return new TuningStatus(Optional.of(file), false, 0, 0, content.problem());
    }
    int entries = content.entries();
    if (entries == 0) {
      return new TuningStatus(
          Optional.of(file),
          true,
          0,
          0,
          "none yet, the built-in table serves; moe tune makes some");
    }
    if (device == null || device.capability().isEmpty()) {
      return new TuningStatus(
          Optional.of(file), true, entries, 0, entries + " entries, and no card to use them");
    }
    TunedTable.Key machine =
        new TunedTable.Key(
            device.name(),
            CudaDeviceProvider.capability(device).toString(),
            kernelSet(),
            "",
            "",
            0,
            0,
            0,
            0);
    int applying = content.entries(machine);
    return new TuningStatus(
        Optional.of(file),
        true,
        entries,
        applying,
        applying
            + " of "
            + entries
            + " entries apply to "
            + device.name()
            + (applying == 0 ? ": " + others(content, machine) : ""));
  }
}
