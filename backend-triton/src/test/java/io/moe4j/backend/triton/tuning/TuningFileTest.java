package io.moe4j.backend.triton.tuning;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIOException;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ch.qos.logback.classic.Level;
import ch.qos.logback.classic.Logger;
import ch.qos.logback.classic.spi.ILoggingEvent;
import ch.qos.logback.core.read.ListAppender;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.spi.TuningStatus;
import io.moe4j.api.tensor.DType;
import io.moe4j.backend.triton.TritonBackend;
import io.moe4j.backend.triton.options.TritonProperties;
import io.moe4j.backend.triton.tiles.TileChoice;
import io.moe4j.backend.triton.tiles.TileSet;
import io.moe4j.backend.triton.tiles.TileTable;
import io.moe4j.cuda.tuning.TunedTable;
import io.moe4j.cuda.tuning.TuningStore;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Random;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.slf4j.LoggerFactory;

/** The file of tuned tiles, and what a layer makes of it; no card is needed to ask. */
class TuningFileTest {
  private static final DeviceInfo H200 = DeviceInfo.cuda(0, "NVIDIA H200", 9, 0);
  private static final MoeConfig CONFIG =
      MoeConfig.builder(2048, 1024, 64, 8).inputDtype(DType.BF16).weightDtype(DType.BF16).build();
  private static final TileEntry ENTRY =
      new TileEntry(
          64,
          0,
          0,
          "16x32x64-tma-w4-s6",
          "16x32x64-ptr-w4-s8",
          false,
          false,
          8,
          16,
          TileEntry.Width.NONE,
          TileEntry.Width.NONE,
          12.34,
          15);
  private static final TileEntry LORA =
      new TileEntry(
          512,
          8,
          16,
          "128x128x64-tma-w8-s4-tail",
          "128x128x64-tma-w4-s3-tail",
          false,
          true,
          16,
          64,
          new TileEntry.Width(32, 128, 4),
          new TileEntry.Width(16, 64, 2),
          100,
          110.5);

  private static final List<Class<?>> LOGGING = List.of(TuningCache.class, TuningStore.class);

  private final ListAppender<ILoggingEvent> log = new ListAppender<>();

  @TempDir private Path directory;
  private Path file;

  @BeforeEach
  void listen() {
    file = directory.resolve("deep").resolve("tiles.json");
    System.setProperty(TritonProperties.TILES, file.toString());
    log.start();
    for (Class<?> c : LOGGING) {
      Logger logger = (Logger) LoggerFactory.getLogger(c);
      logger.addAppender(log);
      logger.setLevel(Level.DEBUG);
    }
  }

  @AfterEach
  void stopListening() {
    System.clearProperty(TritonProperties.TILES);
    for (Class<?> c : LOGGING) {
      Logger logger = (Logger) LoggerFactory.getLogger(c);
      logger.detachAppender(log);
      logger.setLevel(null);
    }
  }

  private static TunedTable.Key key() {
    return TuningCache.key(CONFIG, H200, 64);
  }

  private List<String> logged() {
    return log.list.stream()
        .filter(e -> e.getLevel().isGreaterOrEqual(Level.INFO))
        .map(ILoggingEvent::getFormattedMessage)
        .toList();
  }

  private static boolean usesBuiltIn(TileChoice choice) {
    return Stream.of(1, 3, 64, 500)
        .map(t -> TileSearchTest.problem(t, 0, 0))
        .allMatch(p -> choice.choose(p).equals(TileTable.choose(p)));
  }

  @Test
  void whatIsWrittenIsRead() throws Exception {
    TuningCache.FILE.merge(file, new TunedTable<>(key(), List.of(ENTRY, LORA)));
    assertThat(TuningCache.FILE.read(file).orElseThrow())
        .containsExactly(new TunedTable<>(key(), List.of(ENTRY, LORA)));
    try (Stream<Path> all = Files.list(file.getParent())) {
      assertThat(all).containsExactlyInAnyOrder(file, file.resolveSibling("tiles.json.lock"));
    }
  }

  @Test
  void mergingReplacesTheSameSizesAndKeepsTheRest() throws Exception {
    TunedTable.Key other = new TunedTable.Key("NVIDIA L4", "8.9", "00", "f16", "any", 8, 2, 64, 64);
    TuningCache.FILE.merge(file, new TunedTable<>(other, List.of(ENTRY)));
    TuningCache.FILE.merge(file, new TunedTable<>(key(), List.of(ENTRY)));
    TuningCache.FILE.merge(file, new TunedTable<>(key(), List.of(LORA)));
    TileEntry anew =
        new TileEntry(
            64,
            0,
            0,
            "32x64x64-tma-w4-s4",
            "32x64x64-tma-w4-s5",
            false,
            false,
            8,
            16,
            TileEntry.Width.NONE,
            TileEntry.Width.NONE,
            1,
            2);
    TuningCache.FILE.merge(file, new TunedTable<>(key(), List.of(anew)));
    assertThat(TuningCache.FILE.read(file).orElseThrow())
        .containsExactlyInAnyOrder(
            new TunedTable<>(other, List.of(ENTRY)), new TunedTable<>(key(), List.of(anew, LORA)));
    byte[] before = Files.readAllBytes(file);
    TuningCache.FILE.merge(file, new TunedTable<>(key(), List.of(anew)));
    assertThat(Files.readAllBytes(file)).isEqualTo(before);
  }

  @Test
  void aDamagedFileIsKeptBeside() throws Exception {
    Files.createDirectories(file.getParent());
    Files.writeString(file, "{ broken");
    TuningCache.FILE.merge(file, new TunedTable<>(key(), List.of(ENTRY)));
    assertThat(TuningCache.FILE.read(file).orElseThrow()).hasSize(1);
    assertThat(file.resolveSibling("tiles.json.bak")).hasContent("{ broken");
    Files.writeString(file, "{ broken again");
    TuningCache.FILE.merge(file, new TunedTable<>(key(), List.of(ENTRY)));
    assertThat(file.resolveSibling("tiles.json.bak")).hasContent("{ broken");
    assertThat(file.resolveSibling("tiles.json.bak2")).hasContent("{ broken again");
  }

  /** What is good for somebody else, or no file at all, stays where it is. */
  @Test
  void whatIsNotOursIsNotReplaced() throws Exception {
    Files.createDirectories(file.getParent());
    String other = "{\"format\":1,\"module\":\"backend-marlin\",\"tables\":[]}";
    Files.writeString(file, other);
    assertThatIOException()
        .isThrownBy(() -> TuningCache.FILE.merge(file, new TunedTable<>(key(), List.of(ENTRY))))
        .withMessage(
            file + " is not replaced: it holds nothing of backend-triton, it is backend-marlin's");
    assertThat(file).hasContent(other);
    Path folder = Files.createDirectory(file.resolveSibling("folder"));
    assertThatIOException()
        .isThrownBy(() -> TuningCache.FILE.merge(folder, new TunedTable<>(key(), List.of(ENTRY))))
        .withMessage(folder + " is not replaced: it is not a regular file");
    assertThat(folder).isEmptyDirectory();
  }

  @Test
  void aLayerUsesItsEntries() throws Exception {
    TuningCache.FILE.merge(file, new TunedTable<>(key(), List.of(ENTRY)));
    TileChoice choice = TuningCache.forLayer(CONFIG, H200, 64);
    assertThat(choice.choose(TileSearchTest.problem(64, 0, 0)).w13()).isEqualTo(ENTRY.w13());
    assertThat(choice.choose(TileSearchTest.problem(8, 0, 0)))
        .isEqualTo(TileTable.choose(TileSearchTest.problem(8, 0, 0)));
    // Another layer, another activation, another number of experts of this one.
    assertThat(usesBuiltIn(TuningCache.forLayer(CONFIG, H200, 32))).isTrue();
    assertThat(
            usesBuiltIn(
                TuningCache.forLayer(
                    CONFIG.toBuilder().activation(io.moe4j.api.config.Activation.SWIGLUOAI).build(),
                    H200,
                    64)))
        .isTrue();
    assertThat(logged()).isEmpty();
    assertThat(log.list.getFirst().getFormattedMessage())
        .isEqualTo("tuned tiles from " + file + " for 64 experts of 2048 x 1024: base: T 64");
    TuningStatus status = new TritonBackend().tuningStatus(H200);
    assertThat(status)
        .isEqualTo(
            new TuningStatus(
                java.util.Optional.of(file), true, 1, 1, "1 of 1 entries apply to NVIDIA H200"));
  }

  @Test
  void theFileIsReadAgainWhenItChanged() throws Exception {
    assertThat(usesBuiltIn(TuningCache.forLayer(CONFIG, H200, 64))).isTrue();
    TuningCache.FILE.merge(file, new TunedTable<>(key(), List.of(ENTRY)));
    assertThat(usesBuiltIn(TuningCache.forLayer(CONFIG, H200, 64))).isFalse();
    Files.delete(file);
    assertThat(usesBuiltIn(TuningCache.forLayer(CONFIG, H200, 64))).isTrue();
  }

  @Test
  void anotherCardOrOtherKernelsAreOneLogLine() throws Exception {
    TunedTable.Key k = key();
    TunedTable.Key card =
        new TunedTable.Key(
            "NVIDIA H100", "9.0", k.kernels(), k.weights(), k.activation(), 64, 8, 2048, 1024);
    TuningCache.FILE.merge(file, new TunedTable<>(card, List.of(ENTRY)));
    for (int layer = 0; layer < 3; layer++) {
      assertThat(usesBuiltIn(TuningCache.forLayer(CONFIG, H200, 64))).isTrue();
    }
    assertThat(logged())
        .containsExactly(
            "tuned tiles in "
                + file
                + " are not used, the built-in table is: they were measured on another card than"
                + " NVIDIA H200 (9.0)");
    log.list.clear();
    Files.delete(file);
    TunedTable.Key kernels =
        new TunedTable.Key(
            k.device(), "9.0", "0123456789abcdef", k.weights(), k.activation(), 64, 8, 2048, 1024);
    TuningCache.FILE.merge(file, new TunedTable<>(kernels, List.of(ENTRY)));
    assertThat(usesBuiltIn(TuningCache.forLayer(CONFIG, H200, 64))).isTrue();
    assertThat(logged())
        .singleElement()
        .asString()
        .endsWith(
            "they were measured with other kernels than this version has; run moe tune again");
    assertThat(new TritonBackend().tuningStatus(H200).applying()).isZero();
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "",
        "null",
        "[]",
        "{",
        "nonsense",
        "{}",
        "{\"format\":1}",
        "{\"format\":1,\"module\":\"backend-cpu\",\"tables\":[]}",
        "{\"format\":2,\"module\":\"backend-triton\",\"tables\":[]}",
        "{\"format\":\"1\",\"module\":\"backend-triton\",\"tables\":[]}",
        "{\"format\":1,\"module\":\"backend-triton\"}",
        "{\"format\":1,\"module\":\"backend-triton\",\"tables\":{}}",
        "{\"format\":1,\"module\":\"backend-triton\",\"tables\":[1]}",
        "{\"format\":1,\"module\":\"backend-triton\",\"tables\":[{\"device\":1}]}",
        "{\"format\":1,\"format\":1,\"module\":\"backend-triton\",\"tables\":[]}",
        "{\"format\":1,\"module\":\"backend-triton\",\"tables\":[]} x"
      })
  void aDamagedFileIsOneLogLine(String content) throws Exception {
    Files.createDirectories(file.getParent());
    Files.writeString(file, content);
    for (int layer = 0; layer < 3; layer++) {
      assertThat(usesBuiltIn(TuningCache.forLayer(CONFIG, H200, 64))).isTrue();
    }
    assertThat(logged()).singleElement().asString().startsWith("tuned tiles in " + file);
    assertThat(new TritonBackend().tuningStatus(H200).usable()).isFalse();
  }

  @Test
  void whatIsNoFileOrTooLargeIsOneLogLine() throws Exception {
    Files.createDirectories(file);
    assertThat(usesBuiltIn(TuningCache.forLayer(CONFIG, H200, 64))).isTrue();
    Files.delete(file);
    Files.write(file, new byte[5 << 20]);
    assertThat(usesBuiltIn(TuningCache.forLayer(CONFIG, H200, 64))).isTrue();
    Files.delete(file);
    Files.writeString(file, "[".repeat(100_000));
    assertThat(usesBuiltIn(TuningCache.forLayer(CONFIG, H200, 64))).isTrue();
    assertThat(logged()).hasSize(3);
    assertThat(logged().get(0)).contains("it is not a regular file");
    assertThat(logged().get(1)).contains("larger than");
  }

  /** Bytes changed anywhere: the built-in table, or plans that the jar has; never an exception. */
  @Test
  void changedBytesNeverHurt() throws Exception {
    TuningCache.FILE.merge(file, new TunedTable<>(key(), List.of(ENTRY, LORA)));
    byte[] good = Files.readAllBytes(file);
    Random random = new Random(20261122);
    TileSet set = TuningCache.set(CONFIG, H200);
    for (int i = 0; i < 400; i++) {
      byte[] bad = good.clone();
      for (int n = random.nextInt(1, 4); n > 0; n--) {
        int at = random.nextInt(bad.length);
        String digits = "0123456789-\"{}[],x";
        bad[at] =
            random.nextBoolean()
                ? (byte) random.nextInt()
                : (byte) digits.charAt(random.nextInt(digits.length()));
      }
      Files.delete(file);
      Files.write(
          file, i % 7 == 0 ? java.util.Arrays.copyOf(bad, random.nextInt(bad.length)) : bad);
      TileChoice choice = TuningCache.forLayer(CONFIG, H200, 64);
      for (TileTable.Problem p :
          List.of(TileSearchTest.problem(64, 0, 0), TileSearchTest.problem(512, 8, 16))) {
        assertThat(set.has(p, choice.choose(p)))
            .as("%s", new String(bad, StandardCharsets.ISO_8859_1))
            .isTrue();
      }
    }
  }

  @Test
  void offMeansOff() throws Exception {
    TuningCache.FILE.merge(file, new TunedTable<>(key(), List.of(ENTRY)));
    System.setProperty(TritonProperties.TILES, "off");
    assertThat(usesBuiltIn(TuningCache.forLayer(CONFIG, H200, 64))).isTrue();
    assertThat(new TritonBackend().tuningFile()).isEmpty();
    assertThat(new TritonBackend().tuningStatus(H200).explanation())
        .isEqualTo("turned off by moe4j.triton.tiles");
  }

  @Test
  void withoutACardThereIsStillAnAnswer() throws Exception {
    assertThat(new TritonBackend().tuningStatus(null).explanation()).startsWith("none yet");
    TuningCache.FILE.merge(file, new TunedTable<>(key(), List.of(ENTRY)));
    assertThat(new TritonBackend().tuningStatus(null).explanation())
        .isEqualTo("1 entries, and no card to use them");
  }

  @Test
  void unusableSaysWhichNumber() throws Exception {
    TuningCache.FILE.merge(file, new TunedTable<>(key(), List.of(ENTRY)));
    Files.writeString(
        file, Files.readString(file).replace("\"experts\" : 64", "\"experts\" : -64"));
    assertThatThrownBy(() -> TuningCache.FILE.read(file))
        .hasMessage("\"experts\" is -64, must be 0..16777216");
  }
}
