package io.moe4j.backend.triton.tuning;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.spi.TuningStatus;
import io.moe4j.backend.triton.launch.ExpertMatrices;
import io.moe4j.backend.triton.launch.TritonKernels;
import io.moe4j.backend.triton.options.TritonProperties;
import io.moe4j.backend.triton.tiles.TileChoice;
import io.moe4j.backend.triton.tiles.TileSet;
import io.moe4j.backend.triton.tiles.TileTable;
import io.moe4j.backend.triton.tiles.TileTable.Problem;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.ops.ExpertKernels;
import io.moe4j.cuda.ops.PaddedSizes;
import io.moe4j.cuda.tuning.TunedTable;
import io.moe4j.cuda.tuning.TuningFile;
import io.moe4j.cuda.tuning.TuningPlace;
import io.moe4j.cuda.tuning.TuningStore;
import java.nio.file.Path;
import java.util.List;
import java.util.Optional;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** What was tuned, for layers that are built. Never throws. Safe for several threads. */
public final class TuningCache {
  private static final Logger LOG = LoggerFactory.getLogger(TuningCache.class);

  static final TuningFile<TileEntry> FILE = new TuningFile<>("backend-triton", TileEntry.FORM);
  private static final TuningStore<TileEntry> STORE =
      new TuningStore<>(
          FILE, new TuningPlace(TritonProperties.TILES, "triton-tiles.json"), "tuned tiles");

  private TuningCache() {}

  /** {@return where it is read from; empty if that was turned off or there is no place} */
  public static Optional<Path> path() {
    return STORE.path();
  }

  /**
   * Who chooses tiles for a layer.
   *
   * @param config the layer
   * @param device the card
   * @param localExperts of the layer
   * @return the tuned choices, or the built-in table's where there are none
   */
  public static TileChoice forLayer(MoeConfig config, DeviceInfo device, int localExperts) {
    TunedTable.Key key = key(config, device, localExperts);
    List<TileEntry> entries = STORE.entries(key);
    if (entries.isEmpty()) {
      return TileTable::choose;
    }
    TunedTiles tiles =
        new TunedTiles(entries, set(config, device), layer(config, device, localExperts));
    if (LOG.isDebugEnabled()) {
      LOG.debug(
          "tuned tiles from {} for {} experts of {} x {}: {}{}",
          STORE.path().orElse(null),
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
    return ExpertMatrices.isMxfp4(config);
  }

  private static String activation(MoeConfig config, DeviceInfo device) {
    Activation a = config.activation();
    boolean plain = a.kind() == Activation.Kind.SILU && a.limit() == Float.POSITIVE_INFINITY;
    return plain && !mxfp4(config) && TritonKernels.tuned(device, config.weightDtype())
        ? "silu"
        : "any";
  }

  /** {@return what is there for a card, see {@link TuningStatus}} */
  public static TuningStatus status(@Nullable DeviceInfo device) {
    return STORE.status(device, TuningCache::kernelSet);
  }
}
