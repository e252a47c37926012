/**
 * Finds backends at run time, picks one, explains the choice; the layer facade.
 *
 * <p>Where to begin: {@link io.moe4j.oracle.MoeLayer} is what an engine holds. {@link
 * io.moe4j.oracle.MoeOracle} decides which backend computes it and keeps the whole decision in a
 * {@link io.moe4j.oracle.Selection}; {@link io.moe4j.oracle.BackendCatalog} is what was found on
 * the class path, the module path and in a plugins directory, and what could not be loaded.
 *
 * <p>Nothing here reads the environment or system properties: a decision depends on the config, the
 * platform, the name asked for, and the backends' own answers.
 */
@NullMarked
package io.moe4j.oracle;

import org.jspecify.annotations.NullMarked;
