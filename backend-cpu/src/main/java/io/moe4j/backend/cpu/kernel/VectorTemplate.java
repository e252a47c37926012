package io.moe4j.backend.cpu.kernel;

import io.moe4j.api.tensor.DType;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;

/**
 * Defines a class once per dtype and {@linkplain SegmentClass class of segments}, as a hidden class
 * whose class data they are: both are constants to the compiler, the loops of one dtype hold no
 * trace of the others, and their profiles do not mix.
 *
 * @param dtype what its matrices hold
 * @param memory the class of their segments
 */
record VectorTemplate(DType dtype, Class<?> memory) {

  /**
   * {@return what a hidden class is for; F32 for the template itself, which does no work}
   *
   * @param lookup the class's own
   */
  static VectorTemplate data(MethodHandles.Lookup lookup) {
    try {
      VectorTemplate data = MethodHandles.classData(lookup, "_", VectorTemplate.class);
      return data == null ? new VectorTemplate(DType.F32, SegmentClass.NATIVE) : data;
    } catch (IllegalAccessException e) {
      throw new IllegalStateException(e);
    }
  }

  /**
   * {@return an object of the template's class for this dtype and memory}
   *
   * @param template of this package, with a constructor without arguments
   * @param type what it implements
   */
  <T> T define(Class<? extends T> template, Class<T> type) {
    String file = template.getSimpleName() + ".class";
    try (InputStream in = VectorTemplate.class.getResourceAsStream(file)) {
      if (in == null) {
        throw new IllegalStateException("the class file of " + template + " is not at hand");
      }
      MethodHandles.Lookup lookup =
          MethodHandles.lookup().defineHiddenClassWithClassData(in.readAllBytes(), this, true);
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
