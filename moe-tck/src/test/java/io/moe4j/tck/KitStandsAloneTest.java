package io.moe4j.tck;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.File;
import java.io.IOException;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.platform.engine.discovery.DiscoverySelectors;
import org.junit.platform.engine.discovery.MethodSelector;
import org.junit.platform.testkit.engine.EngineTestKit;

/** A stranger's class path: moe-api, moe-reference, the kit, JUnit, the stranger's backend. */
class KitStandsAloneTest {
  private static final String OURS = "io.moe4j.";

  /** Whatever lies on the build's class path, without any module that the kit does not name. */
  private static final class StrangersClassPath extends URLClassLoader {
    StrangersClassPath(List<URL> entries) {
      super(entries.toArray(URL[]::new), ClassLoader.getPlatformClassLoader());
    }

    @Override
    protected Class<?> findClass(String name) throws ClassNotFoundException {
      if (name.startsWith(OURS)
          && !name.startsWith("io.moe4j.api.")
          && !name.startsWith("io.moe4j.reference.")
          && !name.startsWith("io.moe4j.tck.")) {
        throw new ClassNotFoundException(name + " is not on a stranger's class path");
      }
      return super.findClass(name);
    }
  }

  private static List<URL> entries() throws IOException {
    List<URL> urls = new ArrayList<>();
    for (String entry : System.getProperty("java.class.path").split(File.pathSeparator)) {
      if (!entry.contains("backend-") && !entry.contains("cuda")) { // their service files
        urls.add(Path.of(entry).toUri().toURL());
      }
    }
    return urls;
  }

  /** Runs in the stranger's class loader. */
  public static final class Run implements Runnable {
    /** Called by reflection. */
    public Run() {}

    @Override
    public void run() {
      List<String> tests =
          List.of(
              "required_MOE_1_1_isFoundByServiceLoader",
              "required_MOE_2_1_features",
              "required_MOE_4_2_deltas",
              "required_MOE_7_2_mixedSchemes",
              "required_MOE_8_1_monolithicRouting");
      MethodSelector[] selectors =
          Arrays.stream(ExpertsConformanceTest.class.getMethods())
              .filter(m -> tests.contains(m.getName()))
              .map(
                  m -> DiscoverySelectors.selectMethod(MonolithicReferenceConformanceTest.class, m))
              .toArray(MethodSelector[]::new);
      assertThat(selectors).hasSize(tests.size());
      var events =
          EngineTestKit.engine("junit-jupiter").selectors(selectors).execute().testEvents();
      events.assertStatistics(s -> s.failed(0));
      assertThat(events.succeeded().count()).isGreaterThan(100);
    }
  }

  @Test
  void theKitNeedsNoBackendButTheOneUnderTest() throws Exception {
    Thread thread = Thread.currentThread();
    ClassLoader before = thread.getContextClassLoader();
    try (StrangersClassPath loader = new StrangersClassPath(entries())) {
      thread.setContextClassLoader(loader);
      Class<?> run = loader.loadClass(Run.class.getName());
      assertThat(run.getClassLoader()).isSameAs(loader);
      ((Runnable) run.getConstructor().newInstance()).run();
    } finally {
      thread.setContextClassLoader(before);
    }
  }
}
