package io.moe4j.api.spi;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class FactTest {
  @Test
  void isAValue() {
    assertThat(new Fact("weights", "packed", 1024)).hasToString("weights: 1024 bytes, packed");
    assertThat(Fact.of("kernels-2", "quick ones"))
        .hasToString("kernels-2: quick ones")
        .isEqualTo(new Fact("kernels-2", "quick ones", 0));
  }

  @ParameterizedTest
  @ValueSource(strings = {"", "Weights", "2nd", "two words", "a:", "-a"})
  void aNameThatIsNone(String name) {
    assertThatThrownBy(() -> Fact.of(name, "packed"))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessage(
            "name is \""
                + name
                + "\", must be lower-case letters, digits and dashes, beginning with a letter");
  }

  @ParameterizedTest
  @ValueSource(strings = {"", " ", "two\nlines", "two\rlines"})
  void aTextThatIsNoLine(String text) {
    assertThatThrownBy(() -> Fact.of("weights", text))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageStartingWith("text of weights is \"")
        .hasMessageEndingWith("\", must be a line");
  }

  @Test
  void bytesThatCannotBe() {
    assertThatThrownBy(() -> new Fact("weights", "packed", -1))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessage("bytes of weights is -1, must be 0 or more");
  }
}
