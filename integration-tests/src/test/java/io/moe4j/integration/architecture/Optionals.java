package io.moe4j.integration.architecture;

import static com.tngtech.archunit.lang.syntax.ArchRuleDefinition.codeUnits;

import com.tngtech.archunit.base.DescribedPredicate;
import com.tngtech.archunit.core.domain.JavaClass;
import com.tngtech.archunit.core.domain.JavaCodeUnit;
import com.tngtech.archunit.core.domain.JavaConstructor;
import com.tngtech.archunit.core.domain.JavaModifier;
import com.tngtech.archunit.lang.ArchCondition;
import com.tngtech.archunit.lang.ArchRule;
import com.tngtech.archunit.lang.ConditionEvents;
import com.tngtech.archunit.lang.SimpleConditionEvent;
import java.util.Optional;
import java.util.OptionalDouble;
import java.util.OptionalInt;
import java.util.OptionalLong;
import java.util.Set;

/**
 * An {@link Optional} is what a method returns; a caller who has nothing passes null, or calls the
 * shorter overload. A record's component is what its accessor returns, so its constructor may take
 * one.
 */
final class Optionals {
  private static final Set<String> TYPES =
      Set.of(
          Optional.class.getName(),
          OptionalInt.class.getName(),
          OptionalLong.class.getName(),
          OptionalDouble.class.getName());

  private Optionals() {}

  static ArchRule onlyReturned() {
    return codeUnits()
        .that(DescribedPredicate.describe("can be called from other modules", Optionals::isOffered))
        .should(
            new ArchCondition<JavaCodeUnit>("take no Optional") {
              @Override
              public void check(JavaCodeUnit unit, ConditionEvents events) {
                if (unit.getRawParameterTypes().stream()
                    .anyMatch(t -> TYPES.contains(t.getName()))) {
                  events.add(
                      SimpleConditionEvent.violated(
                          unit, unit.getFullName() + " takes an Optional: make it nullable"));
                }
              }
            })
        .as("an Optional is only returned");
  }

  private static boolean isOffered(JavaCodeUnit unit) {
    JavaClass owner = unit.getOwner();
    boolean seen =
        unit.getModifiers().contains(JavaModifier.PUBLIC)
            || unit.getModifiers().contains(JavaModifier.PROTECTED);
    boolean component = unit instanceof JavaConstructor && owner.isRecord();
    return seen && owner.getModifiers().contains(JavaModifier.PUBLIC) && !component;
  }
}
