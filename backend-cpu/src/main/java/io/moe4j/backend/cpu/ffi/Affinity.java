package io.moe4j.backend.cpu.ffi;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.BitSet;
import java.util.List;
import java.util.stream.Stream;

/** Which processors threads run on. Linux; elsewhere nothing is pinned. */
public final class Affinity {
  private static final Path NODES = Path.of("/sys/devices/system/node");

  /** Processors that a mask for the system has room for. */
  private static final int MASK_BITS = 8192;

  private Affinity() {}

  /**
   * {@return the processors that the calling thread may use, those of one NUMA node after those of
   * another; empty where the system does not say}
   */
  public static List<Integer> processorsByNode() {
    BitSet allowed = LibC.affinity(MASK_BITS);
    List<Integer> all = new ArrayList<>();
    for (BitSet node : nodes(NODES)) {
      node.stream().filter(allowed::get).filter(p -> !all.contains(p)).forEach(all::add);
    }
    allowed.stream().filter(p -> !all.contains(p)).forEach(all::add);
    return all;
  }

  /** {@return the processors of each node; empty without NUMA in the system} */
  static List<BitSet> nodes(Path root) {
    List<BitSet> nodes = new ArrayList<>();
    try (Stream<Path> folders = Files.list(root)) {
      for (Path f :
          folders.filter(f -> f.getFileName().toString().matches("node\\d+")).sorted().toList()) {
        nodes.add(parse(Files.readString(f.resolve("cpulist")).strip()));
      }
    } catch (IOException | java.io.UncheckedIOException e) {
      return List.of();
    }
    return nodes;
  }

  /** {@return the numbers of a list like {@code 0-3,8,10-11}} */
  static BitSet parse(String list) {
    BitSet all = new BitSet();
    for (String part : list.split(",", -1)) {
      if (part.matches("\\d{1,6}(-\\d{1,6})?")) {
        int dash = part.indexOf('-');
        int from = Integer.parseInt(dash < 0 ? part : part.substring(0, dash));
        int to = dash < 0 ? from : Integer.parseInt(part.substring(dash + 1));
        all.set(from, to + 1);
      }
    }
    return all;
  }

  /**
   * Keeps the calling thread on one processor.
   *
   * @param processor its number
   * @return whether the system does so
   */
  public static boolean pin(int processor) {
    return LibC.pin(processor, MASK_BITS);
  }
}
