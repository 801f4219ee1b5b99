// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** The runner of the conformance suite: `runner HOST:PORT < scenario.json > transcript.jsonl`. */

import { text } from "node:stream/consumers";
import { FamulusClient } from "@famulus/client";
import type { Scenario } from "./scenario.js";
import { run } from "./steps.js";

const [target] = process.argv.slice(2);
const scenario = JSON.parse(await text(process.stdin)) as Scenario;
await using client = new FamulusClient(`http://${target}`, { token: scenario.token, allowInsecureToken: true });
for (const [index, step] of scenario.steps.entries()) {
  await run(client, step, (line) => process.stdout.write(`${JSON.stringify({ step: index, ...line })}\n`));
}
