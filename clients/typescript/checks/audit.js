// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/**
 * Looks for known vulnerabilities in the locked packages: run it by `make audit`.
 *
 * Exit code 1 where there are some. Where the registry does not answer that, it says so, loudly, and exits with 0, or
 * with 1 if it is told `strict`: nobody should take silence for health.
 */

import { spawnSync } from "node:child_process";

const strict = process.argv.includes("strict");
const { stdout } = spawnSync("npm", ["audit", "--json", "--loglevel=error"], { encoding: "utf8", timeout: 300_000 });
const answer = parsed(stdout);
if (answer.vulnerabilities === undefined) {
  process.stderr.write(`*** NOT AUDITED: ${answer.message ?? "the registry gave no answer"} ***\n`);
  process.exitCode = strict ? 1 : 0;
} else {
  const found = Object.values(answer.vulnerabilities);
  for (const { name, severity, range } of found) {
    process.stdout.write(`VULNERABLE: ${name} ${range}: ${severity}\n`);
  }
  process.stdout.write(`${answer.metadata.dependencies.total} packages audited, ${found.length} vulnerable\n`);
  process.exitCode = found.length > 0 ? 1 : 0;
}

function parsed(json) {
  try {
    return JSON.parse(json);
  } catch {
    return {};
  }
}
