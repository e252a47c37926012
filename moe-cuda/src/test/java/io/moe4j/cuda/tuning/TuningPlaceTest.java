package io.moe4j.cuda.tuning;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.Map;
import org.junit.jupiter.api.Test;

class TuningPlaceTest {
  private static String place(String system, Map<String, String> environment) {
    return TuningPlace.find(null, "x.json", system, "/home/u", environment::get)
        .orElseThrow()
        .toString();
  }

  @Test
  void thePlaceFollowsTheSystem() {
    assertThat(place("Linux", Map.of())).isEqualTo("/home/u/.cache/moe4j/x.json");
    assertThat(place("Linux", Map.of("XDG_CACHE_HOME", "/c"))).isEqualTo("/c/moe4j/x.json");
    assertThat(place("Linux", Map.of("XDG_CACHE_HOME", "relative")))
        .isEqualTo("/home/u/.cache/moe4j/x.json");
    assertThat(place("Mac OS X", Map.of("XDG_CACHE_HOME", "/c")))
        .isEqualTo("/home/u/Library/Caches/moe4j/x.json");
    assertThat(place("Windows 11", Map.of("LOCALAPPDATA", "/d/local")))
        .isEqualTo("/d/local/moe4j/x.json");
    assertThat(place("Windows 11", Map.of())).isEqualTo("/home/u/AppData/Local/moe4j/x.json");
    assertThat(TuningPlace.find(null, "x.json", "Linux", null, n -> null)).isEmpty();
    assertThat(TuningPlace.find("bad\0name", "x.json", "Linux", "/home/u", n -> null)).isEmpty();
    assertThat(TuningPlace.find("OFF", "x.json", "Linux", "/home/u", n -> null)).isEmpty();
    assertThat(TuningPlace.find("/tmp/y.json", "x.json", "Linux", "/home/u", n -> null))
        .hasToString("Optional[/tmp/y.json]");
  }
}
