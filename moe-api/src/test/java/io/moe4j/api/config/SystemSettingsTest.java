package io.moe4j.api.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import io.moe4j.api.MoeException;
import io.moe4j.api.SettingException;
import java.util.Locale;
import java.util.function.Supplier;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Settings are read in one way, and a mistyped one is named. */
class SystemSettingsTest {
  private static final String NAME = "moe4j.test.setting";

  private enum Word {
    ONE,
    TWO_WORDS;

    String text() {
      return name().toLowerCase(Locale.ROOT).replace('_', '-');
    }
  }

  private record Options(int value) implements BackendOptions {
    @Override
    public String backend() {
      return "test";
    }
  }

  @AfterEach
  void clear() {
    System.clearProperty(NAME);
  }

  private static Word word() {
    return SystemSettings.oneOf(NAME, Word.ONE, Word.values(), Word::text);
  }

  private static int number() {
    return SystemSettings.number(NAME, 5, 1, 10);
  }

  @Test
  void whatIsNotSetIsAsUsual() {
    assertThat(SystemSettings.text(NAME)).isNull();
    assertThat(SystemSettings.isTrue(NAME, true)).isTrue();
    assertThat(SystemSettings.isTrue(NAME, false)).isFalse();
    assertThat(word()).isEqualTo(Word.ONE);
    assertThat(number()).isEqualTo(5);
    System.setProperty(NAME, " ");
    assertThat(SystemSettings.text(NAME)).isNull();
    assertThat(SystemSettings.isTrue(NAME, false)).as("set without a value").isTrue();
    assertThat(word()).isEqualTo(Word.ONE);
    assertThat(number()).isEqualTo(5);
  }

  @ParameterizedTest
  @CsvSource({"true, true", "' TRUE ', true", "false, false", "' False', false"})
  void flags(String given, boolean expected) {
    System.setProperty(NAME, given);
    assertThat(SystemSettings.isTrue(NAME, !expected)).isEqualTo(expected);
  }

  @Test
  void wordsAndNumbers() {
    System.setProperty(NAME, " Two-Words ");
    assertThat(word()).isEqualTo(Word.TWO_WORDS);
    System.setProperty(NAME, " 10 ");
    assertThat(number()).isEqualTo(10);
    assertThat(SystemSettings.text(NAME)).isEqualTo("10");
  }

  @ParameterizedTest
  @CsvSource({
    "flag, 1, 'true, false'",
    "word, two words, 'one, two-words'",
    "number, 0, 1..10",
    "number, 11, 1..10",
    "number, 2.5, 1..10",
    "number, 99999999999, 1..10",
    "any, -1, whole numbers from 0 on"
  })
  void mistypedOnesAreNamed(String kind, String given, String accepted) {
    System.setProperty(NAME, given);
    Supplier<Object> read =
        switch (kind) {
          case "flag" -> () -> SystemSettings.isTrue(NAME, true);
          case "word" -> SystemSettingsTest::word;
          case "number" -> SystemSettingsTest::number;
          default -> () -> SystemSettings.number(NAME, 0, 0, Integer.MAX_VALUE);
        };
    assertThatExceptionOfType(SettingException.class)
        .isThrownBy(read::get)
        .withMessage("-D%s is \"%s\", accepted: %s", NAME, given, accepted);
  }

  @Test
  void whatIsMistypedIsSaid() {
    assertThat(SystemSettings.fault(() -> number())).isNull();
    System.setProperty(NAME, "many");
    assertThat(SystemSettings.fault(() -> number()))
        .isEqualTo("-D" + NAME + " is \"many\", accepted: 1..10");
  }

  /** A layer with options of its own does not care what a property says. */
  @Test
  void optionsOfALayerGoFirst() {
    MoeConfig bare = MoeConfig.builder(8, 8, 2, 1).build();
    MoeConfig own = bare.toBuilder().options(new Options(7)).build();
    System.setProperty(NAME, "3");
    OptionDefaults<Options> right =
        new OptionDefaults<>(Options.class, new Options(0), () -> new Options(number()));
    assertThat(right.fault()).isNull();
    assertThat(right.options(bare).value()).isEqualTo(3);
    assertThat(right.options(own).value()).isEqualTo(7);
    System.setProperty(NAME, "many");
    OptionDefaults<Options> wrong =
        new OptionDefaults<>(Options.class, new Options(0), () -> new Options(number()));
    String fault = "-D" + NAME + " is \"many\", accepted: 1..10";
    assertThat(wrong.defaults().value()).isZero();
    assertThat(wrong.fault()).isEqualTo(fault);
    assertThat(wrong.fault(bare)).isEqualTo(fault);
    assertThat(wrong.fault(own)).isNull();
    assertThat(wrong.options(own).value()).isEqualTo(7);
    assertThatExceptionOfType(MoeException.class)
        .isThrownBy(() -> wrong.options(bare))
        .withMessage(fault);
  }
}
