#!/bin/bash
# Makes a folder that runs the gpu tests and the moe command on a host that has nothing but an NVIDIA driver (580 or later; Linux, x86-64):
#
#   tools/gpu-bundle.sh [-o DIR] [-t] [MODULE...]
#
#   -o DIR   where to; target/gpu-bundle otherwise
#   -t       also DIR.tar.xz, about 53 MB
#   MODULE   whose tests; otherwise every module with tests that need a card
#
# In the folder:
#   jre/        a run-time image cut from a JDK 25          lib/     jars, the driver half of JCuda's natives among them
#   tests/M/    test classes of module M                    testdata/
#   ./test      runs the gpu tests: a JVM for each module and each class of integration-tests, side by side, then what needs
#               the card alone; its last line is "N passed, N failed, N skipped", logs are in test-logs/. Arguments go to
#               JUnit's console instead, in one JVM
#   ./moe       the command line, like ./moe bench --device cuda
#   ./java      java with the right flags and class path, as for ./java io.moe4j.benchmarks.cuda.HostCosts, LaunchCosts, LoraBenchmark
#
# MAVEN_ARGS: flags for Maven, -q if unset (with -o, the JUnit console must have been downloaded before).
set -euo pipefail
cd "$(dirname "$0")/.."
out=target/gpu-bundle
tar=false
while getopts "o:t" opt; do
  case $opt in
    o) out=$OPTARG ;;
    t) tar=true ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
modules=("$@")
if [ ${#modules[@]} -eq 0 ]; then
  mapfile -t modules < <(grep -rlE '@GpuTest|@Tag\("gpu"\)' --include='*Test.java' ./*/src/test | sed 's|^\./||; s|/.*||' | sort -u)
fi

jdk=
for d in "${JAVA_HOME:-}" /usr/lib/jvm/*; do
  if [ -x "$d/bin/jlink" ] && grep -qE '^JAVA_VERSION="(2[5-9]|[3-9][0-9])' "$d/release" 2> /dev/null; then
    jdk=$d
    break
  fi
done
[ -n "$jdk" ] || { echo "no JDK 25 found; set JAVA_HOME to one (a JRE has no jlink)" >&2; exit 1; }

rm -rf "$out" "$out.tar.xz"
mkdir -p "$out/lib" "$out/tests"
out=$(cd "$out" && pwd)
list=$(IFS=,; echo "${modules[*]}"),moe-cli,benchmarks
# shellcheck disable=SC2086 # a list of words
JAVA_HOME=$jdk mvn ${MAVEN_ARGS:--q} -pl "$list" -am -DskipTests package dependency:copy-dependencies -DincludeScope=test \
  -DoutputDirectory="$out/lib"
version=$(sed -n 's|.*<junit.version>5\.\(.*\)</junit.version>.*|1.\1|p' pom.xml)
# shellcheck disable=SC2086
JAVA_HOME=$jdk mvn ${MAVEN_ARGS:--q} -N dependency:copy -DoutputDirectory="$out/lib" \
  -Dartifact="org.junit.platform:junit-platform-console-standalone:$version"
# The console brings the whole of JUnit; nothing here mocks.
find "$out/lib" -name 'junit-*' ! -name 'junit-platform-console-standalone-*' -delete
rm -f "$out"/lib/{jmh-core,jopt-simple,commons-math3,apiguardian-api,opentest4j,mockito-core,objenesis,byte-buddy,byte-buddy-agent}-*.jar
# Of this version only: a tree that was built before may hold jars of another.
release=$(sed -n 's|^  <version>\(.*\)</version>|\1|p' pom.xml | head -1)
for m in $(sed -n 's|.*<module>\(.*\)</module>.*|\1|p' pom.xml); do
  if [ -f "$m/target/$m-$release.jar" ]; then cp "$m/target/$m-$release.jar" "$out/lib/"; fi
done
cp moe-cli/target/dist/lib/moe-cli-*.jar "$out/lib/"
# Of JCuda's natives only the driver API is used; the PTX compiler beside it is twenty times as large.
for j in "$out"/lib/jcuda-natives-*.jar; do
  mkdir "$out/natives"
  (cd "$out/natives" && "$jdk/bin/jar" -xf "$j" && find lib -type f ! -name 'libJCudaDriver-*' -delete)
  "$jdk/bin/jar" -cf "$j" -C "$out/natives" .
  rm -r "$out/natives"
done
for m in "${modules[@]}"; do
  cp -r "$m/target/test-classes" "$out/tests/$m"
done
cp -r testdata "$out/"

# A smaller image, or one that packs better.
compress=zip-9
if $tar; then compress=zip-0; fi
"$jdk/bin/jlink" --add-modules java.base,java.instrument,java.logging,java.management,java.naming,java.sql,java.xml,jdk.incubator.vector,jdk.jfr,jdk.management,jdk.unsupported \
  --strip-debug --no-man-pages --no-header-files --compress $compress --output "$out/jre"

cat > "$out/java" << 'END_JAVA'
#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
cp=$(find "$here/lib" -name '*.jar' | sort | tr '\n' ':')$(find "$here/tests" -mindepth 1 -maxdepth 1 -type d | sort | tr '\n' ':')
# shellcheck disable=SC2086 # a list of words
exec "$here/jre/bin/java" --add-modules=jdk.incubator.vector --enable-native-access=ALL-UNNAMED ${MOE_JAVA_OPTS:-} -cp "$cp" "$@"
END_JAVA
cat > "$out/test" << 'END_TEST'
#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
cd "$here" || exit
console() {
  "$here/java" org.junit.platform.console.ConsoleLauncher execute --disable-banner --disable-ansi-colors --details=tree "$@"
}
if [ $# -gt 0 ]; then
  console "$@"
  exit
fi
logs=$here/test-logs
rm -rf "$logs"
mkdir -p "$logs"
running=
# shellcheck disable=SC2086 # a list of process ids
trap 'kill $running 2> /dev/null; exit 130' INT TERM

one() { # one NAME ARGUMENTS...: runs tests into logs/NAME.log, keeps the exit code beside it
  name=$1
  shift
  console "$@" > "$logs/$name.log" 2>&1
  echo $? > "$logs/$name.code"
}
summary() { # summary NAME: one line of counts, what failed, and the sums
  awk -v name="$1" -v code="$(cat "$logs/$1.code" 2> /dev/null || echo none)" -v sums="$logs/sums" '
    $1 == "[" && $3 == "tests" { n[$4] = $2 }
    $1 == "[" && $3 == "containers" && $4 == "failed" { groups = $2 }
    /^Failures \(/ { listing = 1 }
    /^Test run finished/ { listing = 0; seconds = $(NF - 1) / 1000 }
    listing { failures = failures "  " $0 "\n" }
    END {
      failed = n["failed"] + groups
      # 0: all passed; 1: some failed; anything else, or a run without its last lines, is a failure that no count shows.
      if (failed == 0 && (code != 0 || !("found" in n))) {
        failed = 1
        failures = "  ended with exit code " code "; see test-logs/" name ".log\n"
      }
      skipped = n["skipped"] + n["aborted"]
      printf "%-24s %6d passed %4d failed %6d skipped %7.1f s\n%s", name, n["successful"], failed, skipped, seconds, failures
      print n["successful"] + 0, failed + 0, skipped + 0 >> sums
    }' "$logs/$1.log"
}
names=
in_a_jvm() { # in_a_jvm NAME ARGUMENTS...: starts tests beside the others
  names="$names $1"
  one "$@" --include-tag "gpu & !gpu-alone" &
  running="$running $!"
}
for d in "$here"/tests/*/; do
  name=$(basename "$d")
  if [ "$name" = integration-tests ]; then
    # As long as all other modules together: a JVM for each class.
    for c in "$d"io/moe4j/integration/Gpu*Test.class; do
      class=$(basename "$c" .class)
      in_a_jvm "$class" --select-class "io.moe4j.integration.$class"
    done
  else
    in_a_jvm "$name" --scan-classpath "$d"
  fi
done
# shellcheck disable=SC2086
wait $running
running=
for name in $names; do
  summary "$name"
done
# What these measure, other work on the card would change.
one alone --scan-classpath "$(find "$here/tests" -mindepth 1 -maxdepth 1 -type d | sort | tr '\n' ':')" --include-tag gpu-alone
summary alone
awk '
  { p += $1; f += $2; s += $3 }
  END {
    if (p + f == 0) print "no test ran; ./moe doctor says what is missing"
    printf "%d passed, %d failed, %d skipped\n", p, f, s
    exit f > 0 || p == 0
  }' "$logs/sums"
END_TEST
cat > "$out/moe" << 'END_MOE'
#!/bin/sh
exec "$(dirname "$0")/java" io.moe4j.cli.Moe "$@"
END_MOE
chmod +x "$out/java" "$out/test" "$out/moe"
# What lacks a module or a jar is found here, not on a rented card.
"$out/moe" run > "$out/run.log" 2>&1 || { cat "$out/run.log" >&2; exit 1; }
rm "$out/run.log"
echo "$out: $(du -sh "$out" | cut -f1)"
if $tar; then
  tar -C "$(dirname "$out")" --sort=name -cJf "$out.tar.xz" "$(basename "$out")"
  echo "$out.tar.xz: $(du -sh "$out.tar.xz" | cut -f1)"
fi
