/**
 * JMH benchmarks of the CPU backend over the shapes of real models, each with the machine's own
 * limits sampled in the same process.
 *
 * <pre>
 * mvn -pl benchmarks -am -DskipTests package dependency:build-classpath -Dmdep.outputFile=target/classpath
 * java -cp benchmarks/target/classes:$(cat benchmarks/target/classpath) org.openjdk.jmh.Main ExpertsBenchmark -p shape=olmoe -prof gc
 * </pre>
 */
@NullMarked
package io.moe4j.benchmarks;

import org.jspecify.annotations.NullMarked;
