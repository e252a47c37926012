package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import org.junit.jupiter.api.Test;

final class TextTest {
  @Test
  void numbersForPeople() {
    assertThat(Text.bytes(0)).isEqualTo("0 B");
    assertThat(Text.bytes(1023)).isEqualTo("1023 B");
    assertThat(Text.bytes(1536)).isEqualTo("1.5 KiB");
    assertThat(Text.bytes((1L << 30) - 1)).isEqualTo("1.0 GiB");
    assertThat(Text.nanos(999)).isEqualTo("999 ns");
    assertThat(Text.nanos(1_500)).isEqualTo("1.5 us");
    assertThat(Text.nanos(2_340_000)).isEqualTo("2.34 ms");
    assertThat(Text.nanos(61_000_000_000L)).isEqualTo("61.00 s");
  }

  @Test
  void paragraphsAreBrokenAndTablesAreNot() {
    assertThat(Text.wrap("one two three four", 9)).isEqualTo("one two\nthree\nfour");
    assertThat(Text.wrap("averyveryverylongword b", 5)).isEqualTo("averyveryverylongword\nb");
    assertThat(Text.wrap("a b\n  c d e f g h", 5)).isEqualTo("a b\n  c d e f g h");
  }

  @Test
  void tablesAlign() {
    String table =
        new TextTable("name", ">n", "x").row("a", 1, "").row("bcdef", 234, "y").render("| ");
    assertThat(table).isEqualTo("| name     n  x\n| a        1\n| bcdef  234  y\n");
    assertThatThrownBy(() -> new TextTable("a").row(1, 2)).hasMessageContaining("2 cells");
  }
}
