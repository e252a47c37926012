/** JSON documents of the commands and the benchmark reports. */
@NullMarked
package io.moe4j.cli.json;

import org.jspecify.annotations.NullMarked;
