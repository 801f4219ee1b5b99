#!/bin/sh
# Compares the dependencies that Maven resolved, with their SHA-256, with dependencies.lock; or writes it.
set -eu
cd "$(dirname "$0")/.."
mvn --batch-mode --no-transfer-progress -q -o -Dstyle.color=never dependency:list \
  -DoutputFile=target/dependencies -DoutputAbsoluteArtifactFilename=true -Dsort=true
sed -n 's/^ *\([a-z][^ ]*:[^ ]*:jar:[^ ]*\):\(\/[^ ]*\.jar\).*/\1 \2/p' target/dependencies |
  while read -r name jar; do
    printf '%s sha256:%s\n' "$name" "$(sha256sum "$jar" | cut -d ' ' -f 1)"
  done > target/dependencies.lock
test -s target/dependencies.lock
case ${1-} in
  write) cp target/dependencies.lock dependencies.lock ;;
  check)
    diff dependencies.lock target/dependencies.lock >&2 ||
      { echo 'the dependencies are not those of dependencies.lock: make lock' >&2; exit 1; } ;;
  *) echo "usage: lock.sh write | check" >&2; exit 2 ;;
esac
