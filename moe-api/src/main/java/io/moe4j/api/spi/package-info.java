/**
 * The plugin contract. A backend is a jar with an {@link io.moe4j.api.spi.ExpertsBackend} named in
 * {@code META-INF/services/io.moe4j.api.spi.ExpertsBackend} (and in {@code provides}, if it has a
 * {@code module-info}). The rules, by number; the conformance kit's tests cite them.
 *
 * <ul>
 *   <li><b>MOE-1.1</b> Constructing a backend and asking its name, description, format, priority or
 *       support MUST NOT throw and MUST NOT touch a device. Intent: the oracle asks every backend
 *       on every machine.
 *   <li><b>MOE-1.2</b> A refusal MUST carry every reason that holds, each with the offending value
 *       and what is accepted. Intent: one attempt shows all that has to change.
 *   <li><b>MOE-1.3</b> A backend MUST NOT say yes to a config that it then cannot prepare or
 *       computes wrongly.
 *   <li><b>MOE-1.4</b> {@code facts()} of what was prepared, experts or block, MUST NOT throw, and
 *       MUST give the same facts until {@code close}, each name once; a block's names MUST NOT be
 *       those that {@link io.moe4j.api.spi.Fact} says of experts.
 *   <li><b>MOE-2.1</b> The result MUST equal the float64 reference within the tolerance of its
 *       dtypes, for every config it supports.
 *   <li><b>MOE-2.2</b> Pairs with id -1, with an id whose map entry is -1, or with an unknown id
 *       MUST contribute nothing; a token without any other pair gets zeros.
 *   <li><b>MOE-2.3</b> With {@code T = 0} nothing is written and nothing fails.
 *   <li><b>MOE-2.4</b> The topk weight MUST be applied once: on the output, or on the input where
 *       the config says so.
 *   <li><b>MOE-2.5</b> NaN and infinities in a token's input MUST NOT change other tokens.
 *   <li><b>MOE-3.1</b> Nothing outside {@code output} and the workspace may be written, nothing
 *       outside the given tensors read.
 *   <li><b>MOE-3.2</b> Inputs, weights and factors MUST NOT be written.
 *   <li><b>MOE-4.1</b> {@code supportsLora()} and {@code prepare(...) instanceof LoraExperts} MUST
 *       agree. Intent: an adapter is never silently ignored.
 *   <li><b>MOE-4.2</b> Deltas of gate and up MUST enter before the activation, those of down before
 *       the weighted sum; each token's own slot, each projection's own rank.
 *   <li><b>MOE-4.3</b> Tokens with slot -1 MUST get the base result.
 *   <li><b>MOE-5.1</b> Concurrent {@code apply} calls with workspaces of their own MUST NOT disturb
 *       each other.
 *   <li><b>MOE-5.2</b> {@code apply} SHOULD NOT allocate memory that grows with {@code T}.
 *   <li><b>MOE-5.3</b> {@code close} MUST release everything that {@code prepare} took, and be
 *       callable twice.
 *   <li><b>MOE-5.4</b> Equal calls SHOULD give equal bits; with {@code batchInvariant} a token's
 *       bits MUST NOT depend on the rest of its batch.
 *   <li><b>MOE-6.1</b> {@link io.moe4j.api.spi.BlockOps#route} MUST choose exactly what {@link
 *       io.moe4j.api.config.RoutingConfig} says, in that order, ties included.
 *   <li><b>MOE-6.2</b> Router logits, latent projections, norms, zero experts and {@code output}
 *       MUST equal the float64 reference within the tolerance of their dtypes, shared expert, its
 *       gate and LoRA on all of them included.
 *   <li><b>MOE-6.3</b> {@code dispatch} MUST place pairs in ascending order and {@code combine}
 *       MUST undo it, each topk weight applied once.
 *   <li><b>MOE-6.4</b> Rules 2.2, 2.3, 3.1, 3.2, 5.1 and 5.3 hold for {@code BlockOps} as well.
 *   <li><b>MOE-7.1</b> A quantised weight MUST count as what {@link io.moe4j.api.weights.Weight}
 *       says, in every {@link io.moe4j.api.weights.Packing} that its scheme has. A backend refuses
 *       a scheme by the config, not in {@code prepare}.
 *   <li><b>MOE-7.2</b> Projections and experts of one layer MAY differ in scheme, plain ones among
 *       them; each MUST be read by its own.
 *   <li><b>MOE-7.3</b> LoRA on quantised weights: deltas MUST be computed from the unquantised
 *       activation and added as to plain weights.
 *   <li><b>MOE-8.1</b> {@link io.moe4j.api.spi.MonolithicExperts} MUST route as rule 6.1 says, by
 *       F32 and by BF16 logits, with the correction bias they are given, and leave out what the
 *       config's expert map gives to other ranks. Rules 2 to 5 and 7 hold for them as for modular
 *       ones, LoRA included.
 *   <li><b>MOE-9.1</b> A {@link io.moe4j.api.comm.Communicator} MUST deliver every row, in the
 *       order of ranks, whatever the dtype and with no rows at all; it MUST NOT write anything
 *       else.
 *   <li><b>MOE-9.2</b> Sums MUST be made in f32 in the order of ranks and rounded once.
 *   <li><b>MOE-9.3</b> A rank that aborts, does not come within the deadline, or makes another call
 *       MUST end the group: whoever waits or comes later gets a {@link
 *       io.moe4j.api.comm.CommException} that names the rank and the cause.
 *   <li><b>MOE-9.4</b> {@code close} MAY be called twice.
 *   <li><b>MOE-10.1</b> An {@link io.moe4j.api.spi.ExpertExchangeProvider} MUST answer for any
 *       config and group without throwing or communicating.
 *   <li><b>MOE-10.2</b> Every token MUST get the sum of its experts, wherever they are: uneven and
 *       empty ranks, any placement, any routing; never more than {@code maxRows} rows.
 *   <li><b>MOE-10.3</b> Adapter slots MUST travel with their rows.
 *   <li><b>MOE-10.4</b> An exchange MUST apply topk weights to BATCHED rows, once, and leave them
 *       to the experts for STANDARD ones.
 *   <li><b>MOE-10.5</b> Equal calls MUST give equal bits.
 *   <li><b>MOE-10.6</b> Rule 9.3 holds for {@code dispatch} and {@code combine}.
 *   <li><b>MOE-10.7</b> {@code close} MAY be called twice; rules 3.1 and 3.2 hold for an exchange.
 *   <li><b>MOE-10.8</b> Of several ranks that have an expert, one MUST compute it for a token: that
 *       of {@link io.moe4j.api.config.ExpertPlacement#rank}. An exchange that cannot refuses a
 *       config whose placement is redundant.
 *   <li><b>MOE-10.9</b> Where all ranks have the same tokens ({@link
 *       io.moe4j.api.config.ParallelConfig#replicatedTokens}), all MUST get the sums, with the same
 *       bits. An exchange that cannot refuses such a config.
 * </ul>
 */
@NullMarked
package io.moe4j.api.spi;

import org.jspecify.annotations.NullMarked;
