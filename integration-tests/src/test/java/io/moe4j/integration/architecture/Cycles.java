package io.moe4j.integration.architecture;

import com.tngtech.archunit.base.DescribedPredicate;
import com.tngtech.archunit.core.domain.JavaClass;
import com.tngtech.archunit.lang.ArchRule;
import com.tngtech.archunit.library.dependencies.SliceAssignment;
import com.tngtech.archunit.library.dependencies.SliceIdentifier;
import com.tngtech.archunit.library.dependencies.SliceRule;
import com.tngtech.archunit.library.dependencies.SlicesRuleDefinition;
import java.util.List;

/** No two packages need each other, directly or by way of others. */
final class Cycles {
  /**
   * A dependency that closes a cycle and is tolerated until it is removed. A test fails when it is
   * gone from the code and still listed here, so that this list can only shrink. Never add to it.
   *
   * @param from class that depends
   * @param to class it depends on
   */
  record Frozen(String from, String to) {}

  static final List<Frozen> FROZEN =
      List.of(new Frozen("io.moe4j.api.device.Device", "io.moe4j.api.spi.BlockOps"));

  private Cycles() {}

  static ArchRule packages() {
    SliceRule rule =
        SlicesRuleDefinition.slices().matching("io.moe4j.(**)").should().beFreeOfCycles();
    for (Frozen f : FROZEN) {
      rule = rule.ignoreDependency(f.from(), f.to());
    }
    return rule.as("packages form no cycle");
  }

  /**
   * The classes of one package, each with its nested ones, for packages whose classes are to be
   * read one by one.
   */
  static ArchRule classesOf(String pack) {
    return SlicesRuleDefinition.slices()
        .assignedFrom(
            new SliceAssignment() {
              @Override
              public SliceIdentifier getIdentifierOf(JavaClass c) {
                return c.getPackageName().equals(pack)
                    ? SliceIdentifier.of(outermost(c).getName())
                    : SliceIdentifier.ignore();
              }

              @Override
              public String getDescription() {
                return "the classes of " + pack;
              }
            })
        .should()
        .beFreeOfCycles()
        .allowEmptyShould(true)
        .as("the classes of " + pack + " form no cycle");
  }

  private static JavaClass outermost(JavaClass c) {
    return c.getEnclosingClass().map(Cycles::outermost).orElse(c);
  }

  static DescribedPredicate<JavaClass> dependsOn(Frozen f) {
    return DescribedPredicate.describe(
        f.from() + " depends on " + f.to(),
        c ->
            c.getName().equals(f.from())
                && c.getDirectDependenciesFromSelf().stream()
                    .anyMatch(d -> d.getTargetClass().getName().equals(f.to())));
  }
}
