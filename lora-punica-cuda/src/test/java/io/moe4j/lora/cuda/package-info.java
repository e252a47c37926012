@NullMarked
package io.moe4j.lora.cuda;

import org.jspecify.annotations.NullMarked;
