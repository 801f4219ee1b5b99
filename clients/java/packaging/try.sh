#!/bin/sh
# Installs the jar into a repository of its own, and builds and runs, offline, a project that depends on it.
set -eu
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mvn="mvn --batch-mode --no-transfer-progress -q -Dstyle.color=never"
$mvn org.apache.maven.plugins:maven-help-plugin:3.5.1:evaluate -Dexpression=settings.localRepository -Doutput="$scratch/mine"
mine=$(cat "$scratch/mine")

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
$mvn org.apache.maven.plugins:maven-install-plugin:3.2.0:install-file -Dfile="$jar" -DpomFile=pom.xml
$mvn -o -f "$scratch/consumer/pom.xml" compile dependency:build-classpath -Dmdep.outputFile="$scratch/classpath"
java -cp "$scratch/consumer/target/classes:$(cat "$scratch/classpath")" scratch.Main > "$scratch/said"
grep -qx 'UNAVAILABLE' "$scratch/said"
