/**
 * What is the same of every backend whose experts are grouped products over sorted pairs ({@link
 * io.moe4j.cuda.experts.GroupedExperts}). A backend brings its weights and its products ({@link
 * io.moe4j.cuda.experts.GroupedProducts}); the parts between them are those of {@code
 * io.moe4j.cuda.ops}.
 */
@NullMarked
package io.moe4j.cuda.experts;

import org.jspecify.annotations.NullMarked;
