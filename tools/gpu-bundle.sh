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
#   ./test      runs the gpu tests; arguments go to JUnit's console
#   ./moe       the command line, like ./moe bench --device cuda
#   ./java      java with the right flags and class path
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
list=$(IFS=,; echo "${modules[*]}"),moe-cli
# shellcheck disable=SC2086 # a list of words
JAVA_HOME=$jdk mvn ${MAVEN_ARGS:--q} -pl "$list" -am -DskipTests package dependency:copy-dependencies -DincludeScope=test \
  -DoutputDirectory="$out/lib"
version=$(sed -n 's|.*<junit.version>5\.\(.*\)</junit.version>.*|1.\1|p' pom.xml)
# shellcheck disable=SC2086
JAVA_HOME=$jdk mvn ${MAVEN_ARGS:--q} -N dependency:copy -DoutputDirectory="$out/lib" \
  -Dartifact="org.junit.platform:junit-platform-console-standalone:$version"
# The console brings the whole of JUnit; nothing here mocks.
find "$out/lib" -name 'junit-*' ! -name 'junit-platform-console-standalone-*' -delete
rm -f "$out"/lib/{apiguardian-api,opentest4j,mockito-core,objenesis,byte-buddy,byte-buddy-agent}-*.jar
for m in $(sed -n 's|.*<module>\(.*\)</module>.*|\1|p' pom.xml); do
  find "$m/target" -maxdepth 1 -name "$m-*.jar" ! -name '*-sources.jar' ! -name '*-javadoc.jar' ! -name '*-tests.jar' \
    -exec cp {} "$out/lib/" \; 2> /dev/null || true
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
"$jdk/bin/jlink" --add-modules java.base,java.instrument,java.logging,java.management,java.naming,java.sql,java.xml,jdk.incubator.vector,jdk.management,jdk.unsupported \
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
scan=$(find "$here/tests" -mindepth 1 -maxdepth 1 -type d | sort | tr '\n' ':')
[ $# -gt 0 ] || set -- --scan-classpath "$scan" --include-tag gpu
cd "$here" || exit
exec "$here/java" org.junit.platform.console.ConsoleLauncher execute --disable-banner --disable-ansi-colors --details=tree "$@"
END_TEST
cat > "$out/moe" << 'END_MOE'
#!/bin/sh
exec "$(dirname "$0")/java" io.moe4j.cli.Moe "$@"
END_MOE
chmod +x "$out/java" "$out/test" "$out/moe"
echo "$out: $(du -sh "$out" | cut -f1)"
if $tar; then
  tar -C "$(dirname "$out")" --sort=name -cJf "$out.tar.xz" "$(basename "$out")"
  echo "$out.tar.xz: $(du -sh "$out.tar.xz" | cut -f1)"
fi
