package io.moe4j.backend.cpu.ffi;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.moe4j.backend.cpu.ffi.Affinity.Place;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class AffinityTest {
  @Test
  void listsOfProcessorsAreRead() {
    assertThat(Affinity.parse("0-3,8,10-11").toString()).isEqualTo("{0, 1, 2, 3, 8, 10, 11}");
    assertThat(Affinity.parse("").isEmpty()).isTrue();
  }

  /** Eleven nodes of two processors each; two nodes are read as one that has no processors. */
  @Test
  void processorsOfOneNodeComeAfterThoseOfAnother(@TempDir Path root) throws Exception {
    for (int n = 0; n < 11; n++) {
      Path node = Files.createDirectory(root.resolve("node" + n));
      Files.writeString(node.resolve("cpulist"), n == 5 ? "\n" : n + "," + (n + 20) + "\n");
    }
    Files.createDirectory(root.resolve("power"));
    Files.writeString(root.resolve("online"), "0-10\n");
    assertThat(Affinity.nodes(root)).hasSize(11).containsEntry(10, Affinity.parse("10,30"));
    assertThat(Affinity.places(root, Affinity.parse("2-3,10,22,30,40")))
        .containsExactly(
            new Place(2, 2),
            new Place(22, 2),
            new Place(3, 3),
            new Place(10, 10),
            new Place(30, 10),
            new Place(40, 0));
    assertThat(Affinity.nodes(root.resolve("nothing"))).isEmpty();
    assertThat(Affinity.places(root.resolve("nothing"), Affinity.parse("1,4")))
        .containsExactly(new Place(1, 0), new Place(4, 0));
  }

  @Test
  void aThreadRunsOnAProcessorThatItMayUse() {
    assumeTrue(NativeLibrary.target().startsWith("linux"));
    assertThat(Affinity.places()).extracting(Place::processor).contains(Affinity.current());
  }

  /** In a thread of its own, which keeps what it is told. */
  @Test
  void aPinnedThreadMayUseOneProcessor() throws Exception {
    assumeTrue(NativeLibrary.target().startsWith("linux"));
    List<Place> all = Affinity.places();
    assertThat(all).isNotEmpty().doesNotHaveDuplicates();
    List<Place> seen = new java.util.concurrent.CopyOnWriteArrayList<>();
    Thread t =
        new Thread(
            () -> {
              if (Affinity.pin(all.getLast().processor())) {
                seen.addAll(Affinity.places());
              }
            });
    t.start();
    t.join();
    assertThat(seen).containsExactly(all.getLast());
    assertThat(Affinity.places()).isEqualTo(all);
  }
}
