package io.moe4j.cli;

import io.moe4j.cli.bench.BenchShape;
import io.moe4j.cli.bench.BenchWeights;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;

/** What a shell may offer behind an option: for {@code moe completion}. */
final class Candidates {
  private Candidates() {}

  /** The backends that the command carries; plugins may bring more. */
  static final class Backends extends Fixed {
    Backends() {
      super(List.of("cpu", "triton", "batched-triton", "cpu-reference", "batched-cpu-reference"));
    }
  }

  /** Shapes with a name. */
  static final class Shapes extends Fixed {
    Shapes() {
      super(BenchShape.named().stream().map(BenchShape::name).toList());
    }
  }

  /** What the experts of random layers that moe tune takes are stored as. */
  static final class TuneDtypes extends Fixed {
    TuneDtypes() {
      super(TuneCommand.dtypes());
    }
  }

  /** What the experts of random layers are stored as. */
  static final class BenchDtypes extends Fixed {
    BenchDtypes() {
      super(BenchWeights.texts());
    }
  }

  /** Where to measure. */
  static final class Devices extends Fixed {
    Devices() {
      super(List.of("cpu", "cuda"));
    }
  }

  /** Layers: a number is the user's to know. */
  static final class Layers extends Fixed {
    Layers() {
      super(numbers("all"));
    }
  }

  /** Layers where all of them are not accepted. */
  static final class OneLayer extends Fixed {
    OneLayer() {
      super(numbers());
    }
  }

  private static List<String> numbers(String... first) {
    List<String> all = new ArrayList<>(List.of(first));
    for (int i = 0; i < 10; i++) {
      all.add(Integer.toString(i));
    }
    return all;
  }

  abstract static class Fixed implements Iterable<String> {
    private final List<String> values;

    Fixed(List<String> values) {
      this.values = values;
    }

    @Override
    public Iterator<String> iterator() {
      return values.iterator();
    }
  }
}
