@NullMarked
package io.moe4j.comm.nccl;

import org.jspecify.annotations.NullMarked;
