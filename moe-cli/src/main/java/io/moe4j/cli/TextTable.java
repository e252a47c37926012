package io.moe4j.cli;

import java.util.ArrayList;
import java.util.List;

/** Columns of text, each as wide as its widest cell; the last one is not padded. */
final class TextTable {
  private final List<List<String>> rows = new ArrayList<>();
  private final boolean[] right;

  /**
   * @param columns headings; one that begins with {@code >} has its column aligned to the right
   */
  TextTable(String... columns) {
    right = new boolean[columns.length];
    List<String> head = new ArrayList<>();
    for (int c = 0; c < columns.length; c++) {
      right[c] = columns[c].startsWith(">");
      head.add(right[c] ? columns[c].substring(1) : columns[c]);
    }
    rows.add(head);
  }

  TextTable row(Object... cells) {
    if (cells.length != right.length) {
      throw new IllegalArgumentException(
          "row has " + cells.length + " cells, the table " + right.length + " columns");
    }
    List<String> row = new ArrayList<>();
    for (Object cell : cells) {
      row.add(Text.line(String.valueOf(cell)));
    }
    rows.add(row);
    return this;
  }

  /** {@return the table, every line ended and begun with {@code indent}} */
  String render(String indent) {
    int[] width = new int[right.length];
    for (List<String> row : rows) {
      for (int c = 0; c < width.length; c++) {
        width[c] = Math.max(width[c], row.get(c).length());
      }
    }
    StringBuilder s = new StringBuilder();
    for (List<String> row : rows) {
      StringBuilder line = new StringBuilder(indent);
      for (int c = 0; c < width.length; c++) {
        String pad = " ".repeat(width[c] - row.get(c).length());
        line.append(right[c] ? pad + row.get(c) : row.get(c) + pad);
        line.append(c + 1 < width.length ? "  " : "");
      }
      s.append(line.toString().stripTrailing()).append('\n');
    }
    return s.toString();
  }
}
