package io.moe4j.integration.architecture;

import com.tngtech.archunit.core.domain.JavaClass;
import com.tngtech.archunit.lang.ArchRule;
import com.tngtech.archunit.library.dependencies.SliceAssignment;
import com.tngtech.archunit.library.dependencies.SliceIdentifier;
import com.tngtech.archunit.library.dependencies.SlicesRuleDefinition;

/** No two packages need each other, directly or by way of others. */
final class Cycles {
  private Cycles() {}

  static ArchRule packages() {
    return SlicesRuleDefinition.slices()
        .matching("io.moe4j.(**)")
        .should()
        .beFreeOfCycles()
        .as("packages form no cycle");
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
}
