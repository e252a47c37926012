package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.SafetensorsFile;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/** README.md says what is so: the example compiles and is right, links lead somewhere. */
final class ReadmeTest {
  private static final Path ROOT = Path.of("..").toAbsolutePath().normalize();

  private static String readme() throws Exception {
    return Files.readString(ROOT.resolve("README.md"));
  }

  @Test
  void theExampleIsTheOneThatIsCompiled() throws Exception {
    String source =
        Files.readString(
            Path.of("src", "test", "java", "io", "moe4j", "cli", "ReadmeExample.java"));
    String example =
        source.substring(source.indexOf("// <example>\n") + 13, source.indexOf("  // </example>"));
    List<String> lines =
        Arrays.stream(example.stripTrailing().split("\n", -1)).map(l -> l.substring(2)).toList();
    assertThat(lines.size()).isLessThanOrEqualTo(20);
    assertThat(readme()).contains("```java\n" + String.join("\n", lines) + "\n```");
  }

  @Test
  void theExampleComputesWhatItSays() {
    Path model = Path.of(Cli.fixture("qwen3_moe/model"));
    Path sql = Path.of(Cli.fixture("qwen3_moe/adapters/a"));
    Path chat = Path.of(Cli.fixture("qwen3_moe/adapters/b"));
    try (SafetensorsFile io =
        SafetensorsFile.open(Path.of(Cli.fixture("qwen3_moe/io.safetensors")))) {
      Tensor output = Tensor.ofFloats(new float[4 * 128], 4, 128);
      Tensor hidden = io.tensor("layers.0.input").narrow(0, 0, 4);
      ReadmeExample.twoAdaptersInOneBatch(model, sql, chat, hidden, output);
      List<String> who = List.of("a", "b", "base", "a");
      for (int t = 0; t < 4; t++) {
        Tensor expected = io.tensor("layers.0.output." + who.get(t)).narrow(0, t, 1);
        assertThat(SampleRun.relativeError(output.narrow(0, t, 1), expected)).isLessThan(1e-5);
      }
    }
  }

  @Test
  void theProjectOfABackendIsTheOneThatIsBuilt() throws Exception {
    String pom =
        Files.readString(ROOT.resolve("integration-tests/out-of-tree/plain-experts/pom.xml"));
    String project = pom.substring(pom.indexOf("<project")).stripTrailing();
    assertThat(readme()).contains("```xml\n" + project + "\n```");
  }

  /** No module has a setting that the page does not tell, and the page tells none that is gone. */
  @Test
  void theTableOfSettingsIsWhole() throws Exception {
    Pattern constant = Pattern.compile("String\\s+\\w+\\s*=\\s*\"(moe4j\\.[a-z0-9.-]*[a-z0-9])\"");
    Set<String> settings = new TreeSet<>();
    try (Stream<Path> modules = Files.list(ROOT)) {
      for (Path main :
          modules.map(m -> m.resolve("src/main/java")).filter(Files::exists).toList()) {
        try (Stream<Path> files = Files.walk(main)) {
          for (Path f : files.filter(f -> f.toString().endsWith(".java")).toList()) {
            constant.matcher(Files.readString(f)).results().forEach(r -> settings.add(r.group(1)));
          }
        }
      }
    }
    Set<String> rows = new TreeSet<>();
    Pattern.compile("(?m)^\\| `-D(moe4j\\.[a-z0-9.-]+)=")
        .matcher(readme())
        .results()
        .forEach(r -> rows.add(r.group(1)));
    assertThat(rows).hasSizeGreaterThan(20).isEqualTo(settings);
  }

  @Test
  void linksLeadToFilesAndModulesAreAllThere() throws Exception {
    for (String page : List.of("README.md", "CONTRIBUTING.md", "CHANGELOG.md")) {
      Matcher link =
          Pattern.compile("\\]\\((?!https?:|#)([^)#]+)")
              .matcher(Files.readString(ROOT.resolve(page)));
      while (link.find()) {
        assertThat(ROOT.resolve(link.group(1))).as("link in " + page).exists();
      }
    }
    Matcher module =
        Pattern.compile("<module>([^<]+)</module>")
            .matcher(Files.readString(ROOT.resolve("pom.xml")));
    while (module.find()) {
      assertThat(readme()).contains("`" + module.group(1) + "`");
    }
  }

  @Test
  void everyExitCodeIsDocumented() throws Exception {
    for (String code : ExitCode.HELP) {
      assertThat(readme()).contains("| " + code.substring(0, code.indexOf(':')) + " | ");
    }
  }
}
