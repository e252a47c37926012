/**
 * What a machine offers, as values: a backend can be asked about any platform without being on it.
 */
@NullMarked
package io.moe4j.api.platform;

import org.jspecify.annotations.NullMarked;
