#!/bin/bash
# Makes a folder that runs the gpu tests (and the moe command) on a host that has nothing but an NVIDIA driver:
#   tools/gpu-bundle.sh [-o DIR] [-t] [MODULE...]
# DIR is target/gpu-bundle, the modules are every one with tests tagged gpu. -t: also DIR.tar.xz. In the folder:
#   jre/        a run-time image cut from a JDK 25          lib/     jars, JCuda's natives among them
#   tests/M/    test classes of module M, testdata/         ./test   runs the gpu tests; arguments go to JUnit's console
#   ./moe       the command line, where moe-cli was built   ./java   java with the right flags and class path
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
  mapfile -t modules < <(grep -rlE '@GpuTest|@Tag\("gpu"\)' --include='*Test.java' . | sed 's|^\./||; s|/.*||' | sort -u)
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
list=$(IFS=,; echo "${modules[*]}")
if [ -d moe-cli ]; then list=$list,moe-cli; fi
mvn ${MAVEN_ARGS:--q} -pl "$list" -am -DskipTests package dependency:copy-dependencies -DincludeScope=test \
  -DoutputDirectory="$out/lib"
version=$(sed -n 's|.*<junit.version>5\.\(.*\)</junit.version>.*|1.\1|p' pom.xml)
mvn ${MAVEN_ARGS:--q} -N dependency:copy -DoutputDirectory="$out/lib" \
  -Dartifact="org.junit.platform:junit-platform-console-standalone:$version"
# The console brings the whole of JUnit.
find "$out/lib" -name 'junit-*' ! -name 'junit-platform-console-standalone-*' -delete
rm -f "$out"/lib/{apiguardian-api,opentest4j}-*.jar
for m in $(sed -n 's|.*<module>\(.*\)</module>.*|\1|p' pom.xml); do
  find "$m/target" -maxdepth 1 -name '*.jar' ! -name '*-sources.jar' ! -name '*-javadoc.jar' ! -name '*-tests.jar' -exec cp {} "$out/lib/" \; 2> /dev/null || true
done
for m in "${modules[@]}"; do
  cp -r "$m/target/test-classes" "$out/tests/$m"
done
cp -r testdata "$out/"

"$jdk/bin/jlink" --add-modules java.base,java.instrument,java.logging,java.management,java.naming,java.sql,java.xml,jdk.incubator.vector,jdk.management,jdk.unsupported \
  --strip-debug --no-man-pages --no-header-files --compress zip-9 --output "$out/jre"

cat > "$out/java" << 'END'
#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
cp=$(find "$here/lib" -name '*.jar' | sort | tr '\n' ':')$(find "$here/tests" -mindepth 1 -maxdepth 1 -type d | sort | tr '\n' ':')
exec "$here/jre/bin/java" --add-modules=jdk.incubator.vector --enable-native-access=ALL-UNNAMED $JAVA_OPTIONS -cp "$cp" "$@"
END
cat > "$out/test" << 'END'
#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
scan=$(find "$here/tests" -mindepth 1 -maxdepth 1 -type d | sort | tr '\n' ':')
[ $# -gt 0 ] || set -- --scan-classpath "$scan" --include-tag gpu
cd "$here"
exec "$here/java" org.junit.platform.console.ConsoleLauncher execute --disable-banner --disable-ansi-colors --details=tree "$@"
END
cat > "$out/moe" << 'END'
#!/bin/sh
exec "$(dirname "$0")/java" io.moe4j.cli.Moe "$@"
END
chmod +x "$out/java" "$out/test" "$out/moe"
echo "$out: $(du -sh "$out" | cut -f1)"
if $tar; then
  tar -C "$(dirname "$out")" --sort=name -cJf "$out.tar.xz" "$(basename "$out")"
  echo "$out.tar.xz: $(du -sh "$out.tar.xz" | cut -f1)"
fi
