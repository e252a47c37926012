package io.moe4j.backend.cpu.kernel;

import io.moe4j.api.tensor.DType;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;

/**
 * Defines a class once per dtype, as a hidden class whose class data is the dtype: the dtype is a
 * constant to the compiler, the loops of one dtype hold no trace of the others, and their profiles
 * do not mix.
 */
final class VectorTemplate {
  private VectorTemplate() {}

  /**
   * {@return the dtype of a hidden class; F32 for the template itself, which does no work}
   *
   * @param lookup the class's own
   */
  static DType dtype(MethodHandles.Lookup lookup) {
    try {
      DType type = MethodHandles.classData(lookup, "_", DType.class);
      return type == null ? DType.F32 : type;
    } catch (IllegalAccessException e) {
      throw new IllegalStateException(e);
    }
  }

  /**
   * {@return an object of the template's class for one dtype}
   *
   * @param template of this package, with a constructor without arguments
   * @param type what it implements
   * @param dtype F32, BF16 or F16
   */
  static <T> T of(Class<? extends T> template, Class<T> type, DType dtype) {
    ScalarKernels.requireFloat(dtype);
    String file = template.getSimpleName() + ".class";
    try (InputStream in = VectorTemplate.class.getResourceAsStream(file)) {
      if (in == null) {
        throw new IllegalStateException("the class file of " + template + " is not at hand");
      }
      MethodHandles.Lookup lookup =
          MethodHandles.lookup().defineHiddenClassWithClassData(in.readAllBytes(), dtype, true);
      return type.cast(
          lookup.findConstructor(lookup.lookupClass(), MethodType.methodType(void.class)).invoke());
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    } catch (RuntimeException | Error e) {
      throw e;
    } catch (Throwable e) {
      throw new IllegalStateException(e);
    }
  }
}
