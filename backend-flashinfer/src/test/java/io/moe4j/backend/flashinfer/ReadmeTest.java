package io.moe4j.backend.flashinfer;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;

/** The page says what the code does. */
class ReadmeTest {
  @Test
  void theTableOfSchemesIsTheCodes() throws IOException {
    String page = Files.readString(Path.of("README.md"));
    for (CutlassScheme s : CutlassScheme.values()) {
      assertThat(page).contains(s.row());
    }
    for (TrtllmScheme s : TrtllmScheme.values()) {
      assertThat(page).contains(s.row());
    }
    for (String setting :
        new String[] {
          FlashInferProperties.PATH,
          SearchPlaces.PATH_VARIABLE,
          FlashInferProperties.VERSION,
          FlashInferProperties.TVM_FFI,
          FlashInferProperties.TACTICS,
          FlashInferProperties.REPLAYS,
          FlashInferProperties.FUSED_FINALIZE
        }) {
      assertThat(page).contains(setting);
    }
    assertThat(page).contains("0.6." + ArgumentLists.LAST_PATCH + " |");
  }
}
