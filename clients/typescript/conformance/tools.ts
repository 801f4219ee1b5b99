// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** The tools that every runner has. */

import { setTimeout as pause } from "node:timers/promises";
import { type Tool, ToolError, type Tools } from "@famulus/client";

const TOOLS: Readonly<Record<string, Tool>> = {
  echo: ({ text }: { text: string }) => `echo:${text}`,
  add: ({ a, b }: { a: number; b: number }) => a + b,
  tell: () => ({ told: true }),
  refuse: () => {
    throw new ToolError("told to refuse");
  },
  slow: async (_, { signal }) => {
    await pause(30_000, undefined, { signal });
    return "late";
  },
  large: () => "x".repeat((1 << 20) + 1),
};

/** Those tools that a step names. */
export function toolsOf(names: readonly string[] | undefined): Tools | undefined {
  return names && Object.fromEntries(Object.entries(TOOLS).filter(([name]) => names.includes(name)));
}
