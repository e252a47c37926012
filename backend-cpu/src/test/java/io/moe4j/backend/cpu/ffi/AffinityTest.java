package io.moe4j.backend.cpu.ffi;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.BitSet;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class AffinityTest {
  @Test
  void listsOfProcessorsAreRead() {
    assertThat(Affinity.parse("0-3,8,10-11").toString()).isEqualTo("{0, 1, 2, 3, 8, 10, 11}");
    assertThat(Affinity.parse("").isEmpty()).isTrue();
  }

  @Test
  void nodesAreRead(@TempDir Path root) throws Exception {
    for (int n = 0; n < 2; n++) {
      Path node = Files.createDirectory(root.resolve("node" + n));
      Files.writeString(node.resolve("cpulist"), n * 2 + "-" + (n * 2 + 1) + "\n");
    }
    Files.createDirectory(root.resolve("power"));
    assertThat(Affinity.nodes(root).stream().map(BitSet::toString)).containsExactly("{0, 1}", "{2, 3}");
    assertThat(Affinity.nodes(root.resolve("nothing"))).isEmpty();
  }

  /** In a thread of its own, which keeps what it is told. */
  @Test
  void aPinnedThreadMayUseOneProcessor() throws Exception {
    assumeTrue(NativeLibrary.target().startsWith("linux"));
    List<Integer> all = Affinity.processorsByNode();
    assertThat(all).isNotEmpty().doesNotHaveDuplicates();
    List<Integer> seen = new java.util.concurrent.CopyOnWriteArrayList<>();
    Thread t =
        new Thread(
            () -> {
              if (Affinity.pin(all.getLast())) {
                seen.addAll(Affinity.processorsByNode());
              }
            });
    t.start();
    t.join();
    assertThat(seen).containsExactly(all.getLast());
    assertThat(Affinity.processorsByNode()).isEqualTo(all);
  }
}
