// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { Code } from "@connectrpc/connect";
import { FamulusError } from "../src/index.js";
import { Outage, retryPolicy } from "../src/retry.js";

const down = new FamulusError("down", { code: Code.Unavailable });

function outage({ random = 0.5, clock = (): number => 0 } = {}) {
  return new Outage(retryPolicy(), clock, () => random);
}

test("waits double from 0.1 s to 5 s", () => {
  const counting = outage();
  const waits = Array.from({ length: 8 }, () => counting.delay(down));
  assert.deepEqual(waits, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
  counting.over();
  assert.equal(counting.delay(down), 100);
});

test("jitter makes waits half as long to half longer", () => {
  assert.equal(outage({ random: 0 }).delay(down), 50);
  assert.equal(outage({ random: 1 }).delay(down), 150);
});

test("waits are at least as long as the service asks for, and up to half longer", () => {
  const told = new FamulusError("down", { code: Code.Unavailable, retryAfterMs: 2_000 });
  assert.equal(outage({ random: 0.5 }).delay(told), 2_000);
  assert.equal(outage({ random: 0 }).delay(told), 3_000);
  assert.equal(outage({ random: 1 }).delay(told), 3_000);
});

test("after 60 s the last error is thrown", () => {
  let now = 0;
  const counting = outage({ clock: () => now });
  counting.delay(down);
  now = 59_000;
  counting.delay(down);
  now = 60_000;
  assert.throws(() => counting.delay(down), down);
});

test("what is no outage is thrown at once", () => {
  const wrong = new FamulusError("wrong", { code: Code.InvalidArgument });
  assert.throws(() => outage().delay(wrong), wrong);
  assert.throws(() => outage().delayOfWait(wrong), wrong);
});

test("policies that make no sense are refused", () => {
  for (const own of [
    { multiplier: 0.5 },
    { jitter: 2 },
    { silenceMs: 0 },
    { maxDelayMs: -1 },
    { jitter: Number.NaN },
  ]) {
    assert.throws(() => retryPolicy(own), RangeError);
  }
});
