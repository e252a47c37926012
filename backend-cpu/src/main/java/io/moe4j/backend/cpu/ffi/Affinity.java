package io.moe4j.backend.cpu.ffi;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.BitSet;
import java.util.List;
import java.util.SortedMap;
import java.util.TreeMap;
import java.util.stream.Stream;

/** Which processors threads run on. Linux; elsewhere nothing is pinned. */
public final class Affinity {
  private static final Path NODES = Path.of("/sys/devices/system/node");

  /** Processors that a mask for the system has room for. */
  private static final int MASK_BITS = 8192;

  private Affinity() {}

  /**
   * A processor and what it is near to.
   *
   * @param processor its number; -1 = any
   * @param node of NUMA memory; numbers are those of the system
   */
  public record Place(int processor, int node) {}

  /**
   * {@return the processors that the calling thread may use, those of one NUMA node after those of
   * another; empty where the system does not say}
   */
  public static List<Place> places() {
    return places(NODES, LibC.affinity(MASK_BITS));
  }

  /**
   * {@return processors by node; those that no node has stand last, as of node 0}
   *
   * @param root folder of the system's nodes
   * @param allowed processors to choose from
   */
  static List<Place> places(Path root, BitSet allowed) {
    List<Place> all = new ArrayList<>();
    BitSet left = (BitSet) allowed.clone();
    nodes(root)
        .forEach((node, processors) -> {
          processors.stream().filter(left::get).forEach(p -> all.add(new Place(p, node)));
          left.andNot(processors);
        });
    left.stream().forEach(p -> all.add(new Place(p, 0)));
    return all;
  }

  /** {@return the processor that the calling thread runs on now; -1 where nobody says} */
  public static int current() {
    return LibC.currentProcessor();
  }

  /** {@return the processors of each node, by its number; empty without NUMA in the system} */
  static SortedMap<Integer, BitSet> nodes(Path root) {
    SortedMap<Integer, BitSet> nodes = new TreeMap<>();
    try (Stream<Path> folders = Files.list(root)) {
      for (Path f : folders.toList()) {
        String name = f.getFileName().toString();
        if (name.matches("node\\d{1,6}")) {
          nodes.put(
              Integer.valueOf(name.substring(4)),
              parse(Files.readString(f.resolve("cpulist")).strip()));
        }
      }
    } catch (IOException | java.io.UncheckedIOException e) {
      return new TreeMap<>();
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
