/**
 * Choices of kernels measured on the user's card, for any backend that has several: the file that
 * keeps them ({@link io.moe4j.cuda.tuning.TuningStore}), the race that finds them ({@link
 * io.moe4j.cuda.tuning.PlanRace}, {@link io.moe4j.cuda.tuning.PlanTuner}). What a plan is, which
 * there are, and what an entry says of one is the backend's.
 *
 * <p>To the classes here a plan is a value with {@code equals}; forwards are recorded and replayed,
 * as engines run them; a plan must give the built-in choice's output within rounding, and the same
 * bits from run to run.
 */
@NullMarked
package io.moe4j.cuda.tuning;

import org.jspecify.annotations.NullMarked;
