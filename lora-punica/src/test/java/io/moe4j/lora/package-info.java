@NullMarked
package io.moe4j.lora;

import org.jspecify.annotations.NullMarked;
