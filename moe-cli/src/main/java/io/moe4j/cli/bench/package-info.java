/**
 * {@code moe bench}: what a layer takes, against what this machine could do at best. Layers are
 * driven through {@link io.moe4j.oracle.MoeLayer} only, whatever backend is behind it.
 */
@NullMarked
package io.moe4j.cli.bench;

import org.jspecify.annotations.NullMarked;
