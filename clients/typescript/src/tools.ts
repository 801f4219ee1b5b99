// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** Your functions as tools: arguments in, outputs out, errors told to the model. */

import { create } from "@bufbuild/protobuf";
import { ToolError } from "./errors.js";
import { type ToolCall, type ToolOutput, ToolOutputSchema } from "./gen/famulus/v1/tool_pb.js";
import { link } from "./waiting.js";

const LARGEST_OUTPUT = 1 << 20; // bytes; the service takes no more

/** What a tool is told about its call besides the arguments. */
export interface ToolContext {
  /** Id of the call: the same if it is made again, after a crash say. */
  readonly callId: string;
  /** Aborted when the tool takes too long or the stream is left. What the tool returns after that is dropped. */
  readonly signal: AbortSignal;
}

/**
 * A tool. It gets the arguments as the object that the model wrote, which may not be what the schema says, and returns
 * text, or something that JSON can say, or a promise of that. Throw a ToolError to tell the model what is wrong.
 */
// biome-ignore lint/suspicious/noExplicitAny: lets tools name the type of their arguments
export type Tool = (args: any, context: ToolContext) => unknown;

/** Tools by name. */
export type Tools = Readonly<Record<string, Tool>>;

/** Gets what a tool threw, with the tool's name and the id of the call. */
export type OnToolError = (error: unknown, tool: string, callId: string) => void;

/** Writes the error with its stack to standard error. */
export function logToolError(error: unknown, tool: string, callId: string): void {
  // biome-ignore lint/suspicious/noConsole: where nobody asks for it, it should not be lost
  console.error(`famulus: the tool ${tool} failed, in the call ${callId}:`, error);
}

/** Answers function calls with tools by name; the timeout holds for each call by itself. */
export class Toolbox {
  readonly #tools: Tools;
  readonly #timeoutMs: number;
  readonly #onToolError: OnToolError;
  readonly #claimed = new Set<string>();

  constructor(tools: Tools, timeoutMs: number, onToolError: OnToolError) {
    this.#tools = { ...tools };
    this.#timeoutMs = timeoutMs;
    this.#onToolError = onToolError;
  }

  /** Ids of those calls that nobody claimed before: the caller must answer them. */
  claim(calls: readonly ToolCall[]): Set<string> {
    const fresh = calls.map((call) => call.id).filter((id) => !this.#claimed.has(id));
    for (const id of fresh) {
      this.#claimed.add(id);
    }
    return new Set(fresh);
  }

  /** Runs the calls in parallel. Rejects only when the signal is aborted. */
  answerAll(calls: readonly ToolCall[], signal: AbortSignal): Promise<ToolOutput[]> {
    return Promise.all(calls.map((call) => this.#answer(call, signal)));
  }

  async #answer(call: ToolCall, signal: AbortSignal): Promise<ToolOutput> {
    try {
      return output(call, written(await this.#run(call, signal)));
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof ToolError)) {
        this.#onToolError(error, call.call.case === "function" ? call.call.value.name : "", call.id);
      }
      return output(call, toldOf(error), true);
    }
  }

  async #run(call: ToolCall, signal: AbortSignal): Promise<unknown> {
    const { name, argumentsJson } = call.call.case === "function" ? call.call.value : { name: "", argumentsJson: "" };
    // Only what the caller put there: every object has a `toString`.
    const tool = Object.hasOwn(this.#tools, name) ? this.#tools[name] : undefined;
    if (tool === undefined) {
      throw new ToolError("there is no tool of this name");
    }
    const args = parsed(argumentsJson);
    const stop = new AbortController();
    const unlink = link(stop, signal);
    const tooSlow = new ToolError(`the tool took longer than ${this.#timeoutMs / 1_000} seconds`);
    const timer = setTimeout(() => stop.abort(tooSlow), this.#timeoutMs);
    try {
      return await new Promise((resolve, reject) => {
        stop.signal.addEventListener("abort", () => reject(stop.signal.reason), { once: true });
        Promise.resolve(tool(args, { callId: call.id, signal: stop.signal })).then(resolve, reject);
      });
    } finally {
      clearTimeout(timer);
      unlink();
    }
  }
}

function parsed(json: string): object {
  let args: unknown;
  try {
    args = JSON.parse(json || "{}");
  } catch {
    throw new ToolError("the arguments are not JSON");
  }
  if (typeof args !== "object" || args === null || Array.isArray(args)) {
    throw new ToolError("the arguments are not a JSON object");
  }
  return args;
}

/** Text as it is, anything else as JSON, nothing as `null`. */
function written(result: unknown): string {
  const text = typeof result === "string" ? result : jsonOf(result ?? null);
  if (Buffer.byteLength(clean(text)) > LARGEST_OUTPUT) {
    throw new ToolError("the tool's result is larger than 1 MiB");
  }
  return text;
}

function jsonOf(result: unknown): string {
  let json: string | undefined;
  try {
    json = JSON.stringify(result);
  } catch {
    // A bigint, or a circle.
  }
  if (json === undefined) {
    throw new ToolError("the tool's result cannot be written as JSON");
  }
  return json;
}

/** What the model may know of an error: the text of most may hold what is not the model's to see. */
function toldOf(error: unknown): string {
  if (error instanceof ToolError) {
    return error.message;
  }
  return `the tool failed: ${error instanceof Error ? error.constructor.name || "Error" : typeof error}`;
}

function output(call: ToolCall, text: string, isError = false): ToolOutput {
  return create(ToolOutputSchema, { callId: call.id, output: clean(text), isError });
}

/** The text without what the service would refuse: lone surrogates and NUL. */
function clean(text: string): string {
  return text.toWellFormed().replaceAll("\0", "\u{FFFD}");
}
