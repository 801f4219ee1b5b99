// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/**
 * The famulus client: streams that resume by themselves, function tools, typed errors. The messages and stubs are in
 * `@famulus/client/v1`.
 *
 * @packageDocumentation
 */

export { Code, ConnectError } from "@connectrpc/connect";
export {
  FamulusClient,
  type FamulusClientOptions,
  type SignalOptions,
  type StreamOptions,
  type ToolOptions,
} from "./client.js";
export type { ConnectionOptions, TlsOptions, Token } from "./connections.js";
export type { Violation } from "./details.js";
export { codeName, FamulusError, type FamulusErrorOptions, GapError, ToolError } from "./errors.js";
export type { CreateRunInit } from "./following.js";
export { RunResult, textOf } from "./result.js";
export type { RetryPolicy } from "./retry.js";
export type { RunStream } from "./stream.js";
export type { OnToolError, Tool, ToolContext, Tools } from "./tools.js";
export type { RunView } from "./view.js";
