#!/bin/sh
# Installs the jars into a repository of their own, and builds and runs a project that depends on them, offline.
set -eu
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mvn="mvn --batch-mode --no-transfer-progress -q -o"
mine=$($mvn help:evaluate -Dexpression=settings.localRepository -DforceStdout)

# What was fetched before, without this project, should it be installed there.
mkdir -p "$scratch/repository/dev"
for each in "$mine"/*; do
  test "${each##*/}" = dev || ln -s "$each" "$scratch/repository/"
done
for each in "$mine"/dev/*; do
  test ! -e "$each" || test "${each##*/}" = famulus || ln -s "$each" "$scratch/repository/dev/"
done

cp -R packaging/consumer "$scratch/"
mvn="$mvn -Dmaven.repo.local=$scratch/repository"
for classifier in sources javadoc; do
  test -s "$(echo target/famulus-client-*-$classifier.jar)"
done
jar=$(ls target/famulus-client-*.jar | grep -v -e '-sources' -e '-javadoc')
$mvn install:install-file -Dfile="$jar" -DpomFile=pom.xml
$mvn -f "$scratch/consumer/pom.xml" compile dependency:build-classpath -Dmdep.outputFile="$scratch/classpath"
java -cp "$scratch/consumer/target/classes:$(cat "$scratch/classpath")" scratch.Main > "$scratch/said"
grep -qx 'UNAVAILABLE' "$scratch/said"
