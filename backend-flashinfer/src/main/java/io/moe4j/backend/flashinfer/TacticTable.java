package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.SystemSettings;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.spi.TuningStatus;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import java.util.function.IntFunction;
import org.jspecify.annotations.Nullable;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Tuned tactics of one layer by number of tokens: of the next smaller number that was measured, of
 * the smallest for fewer. Without any, the module chooses.
 */
final class TacticTable implements IntFunction<Tactics> {
  private static final Logger LOG = LoggerFactory.getLogger(TacticTable.class);
  private static final String OFF = "off";

  private final TreeMap<Integer, Tactics> byTokens = new TreeMap<>();

  private TacticTable(Map<Integer, Tactics> byTokens) {
    this.byTokens.putAll(byTokens);
  }

  @Override
  public Tactics apply(int tokens) {
    Map.Entry<Integer, Tactics> at = byTokens.floorEntry(tokens);
    if (at == null) {
      at = byTokens.firstEntry();
    }
    return at == null ? Tactics.MODULES_OWN : at.getValue();
  }

  /** {@return the file for this process; empty where it was turned off or there is no place} */
  static Optional<Path> file() {
    return file(
        SystemSettings.text(FlashInferProperties.TACTICS),
        System.getenv("XDG_CACHE_HOME"),
        System.getProperty("user.home"));
  }

  static Optional<Path> file(
      @Nullable String property, @Nullable String cache, @Nullable String home) {
    if (property != null && !property.isBlank()) {
      return OFF.equalsIgnoreCase(property) ? Optional.empty() : path(property);
    }
    Optional<Path> base = path(cache).filter(p -> Path.of(String.valueOf(cache)).isAbsolute());
    return base.or(() -> path(home).map(h -> h.resolve(".cache")))
        .map(c -> c.resolve("moe4j").resolve("flashinfer-tactics.json"));
  }

  private static Optional<Path> path(@Nullable String text) {
    try {
      return text == null || text.isBlank()
          ? Optional.empty()
          : Optional.of(Path.of(text).toAbsolutePath());
    } catch (InvalidPathException e) {
      return Optional.empty();
    }
  }

  /**
   * The table of a layer. Never fails: what is wrong with the file is one line in the log, and the
   * module chooses.
   */
  static TacticTable of(MoeConfig config, DeviceInfo device, CutlassRunner runner) {
    Map<Integer, Tactics> found = new TreeMap<>();
    Optional<Path> file = file();
    if (file.isPresent()) {
      if (SystemSettings.text(FlashInferProperties.TACTICS) != null && !Files.exists(file.get())) {
        LOG.warn(
            "{} names {}, which is not there: FlashInfer chooses its tactics",
            FlashInferProperties.TACTICS,
            file.get());
      }
      try {
        TacticKey key = TacticKey.of(config, device, runner.library(), runner.isFused());
        for (TacticFile.Entry e : TacticFile.read(file.get())) {
          if (e.key().equals(key) && fits(e.tactics(), runner)) {
            found.put(e.tokens(), e.tactics());
          }
        }
      } catch (IOException e) {
        LOG.warn("tactics in {} are not used: {}", file.get(), e.getMessage());
      }
    }
    if (found.isEmpty()) {
      LOG.info(
          "no tuned tactics for this layer: FlashInfer's own choice can take up to three times as"
              + " long, moe tune --backend flashinfer-cutlass finds better ones");
    }
    return new TacticTable(found);
  }

  private static boolean fits(Tactics t, CutlassRunner runner) {
    return t.first() >= Tactics.DEFAULT
        && t.first() < runner.firstCount()
        && (t.second() == Tactics.DEFAULT
            || (t.second() >= runner.firstCount()
                && t.second() < (long) runner.firstCount() + runner.secondCount()));
  }

  /** {@return what {@code moe doctor} says of the file} */
  static TuningStatus status(@Nullable DeviceInfo device, Optional<FlashInferModule> module) {
    Optional<Path> file = file();
    if (file.isEmpty()) {
      return new TuningStatus(file, true, 0, 0, "turned off, or no cache directory");
    }
    try {
      List<TacticFile.Entry> all = TacticFile.read(file.get());
      int applying =
          (int)
              all.stream()
                  .filter(e -> device != null && module.isPresent() && of(e, device, module.get()))
                  .count();
      return new TuningStatus(
          file,
          true,
          all.size(),
          applying,
          all.isEmpty()
              ? "no tuned tactics; FlashInfer's own choice serves"
              : applying + " of " + all.size() + " entries are of this card and this FlashInfer");
    } catch (IOException e) {
      return new TuningStatus(file, false, 0, 0, String.valueOf(e.getMessage()));
    }
  }

  private static boolean of(TacticFile.Entry e, DeviceInfo device, FlashInferModule module) {
    FlashInferLibrary l = module.library();
    return e.key().device().equals(device.name())
        && e.key().flashinfer().equals(l.version().text());
  }
}
