// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** The client. */

import { setMaxListeners } from "node:events";
import { type Client, Code, createClient, type Transport } from "@connectrpc/connect";
import { type ConnectionOptions, Connections } from "./connections.js";
import { FamulusError } from "./errors.js";
import { type CreateRunInit, type Followed, Following, repeatable } from "./following.js";
import { AssistantService } from "./gen/famulus/v1/assistant_service_pb.js";
import { RunService } from "./gen/famulus/v1/run_service_pb.js";
import { ThreadService } from "./gen/famulus/v1/thread_service_pb.js";
import { UsageService } from "./gen/famulus/v1/usage_service_pb.js";
import { UserDataService } from "./gen/famulus/v1/user_data_service_pb.js";
import { RunResult } from "./result.js";
import { type RetryPolicy, retryPolicy } from "./retry.js";
import { RunStream } from "./stream.js";
import { logToolError, type OnToolError, Toolbox, type Tools } from "./tools.js";
import { type Sending, send, sendWait } from "./unary.js";
import { link } from "./waiting.js";

const TOOL_TIMEOUT_MS = 60_000;

/** Options of a client. */
export interface FamulusClientOptions extends ConnectionOptions {
  /** How outages are borne; what is left out has its default. */
  readonly retry?: Partial<RetryPolicy> | undefined;
}

/** Options of calls that answer function calls. */
export interface ToolOptions {
  /** Answers the run's function calls. */
  readonly tools?: Tools | undefined;
  /** Gets what a tool threw, where that is no ToolError; the model is told its class only. `console.error` by default. */
  readonly onToolError?: OnToolError | undefined;
  /** How long each tool may take, in milliseconds. 60,000 by default. */
  readonly toolTimeoutMs?: number | undefined;
}

/** Options of calls that can be given up. */
export interface SignalOptions {
  /** Gives the call up; it then throws the signal's reason. The run goes on. */
  readonly signal?: AbortSignal | undefined;
}

/** Options of streams. */
export interface StreamOptions extends ToolOptions, SignalOptions {
  /** Sequence of the last event seen before. 0 by default: from the first. */
  readonly afterSequence?: bigint | undefined;
  /** Cancels the run when the stream is left before its end. */
  readonly cancelOnExit?: boolean | undefined;
}

/**
 * Connections to famulus, the typed stubs on them, and helpers that follow runs through broken connections.
 *
 * Calls on the stubs throw ConnectError, the methods FamulusError. Close it (`await using`, or `close`).
 */
export class FamulusClient implements AsyncDisposable {
  /** Assistants and their versions. */
  readonly assistants: Client<typeof AssistantService>;
  /** Threads and their messages. */
  readonly threads: Client<typeof ThreadService>;
  /** Runs. */
  readonly runs: Client<typeof RunService>;
  /** What runs used. */
  readonly usage: Client<typeof UsageService>;
  /** What is stored of users: its export and its deletion. */
  readonly userData: Client<typeof UserDataService>;
  readonly #connections: Connections;
  readonly #policy: RetryPolicy;
  readonly #closing = new AbortController();

  /**
   * `baseUrl` is `http://host:port`, or `https://host:port` for TLS. Of several ones, one is used until it fails, then
   * the next. Throws TypeError where they do not fit the options.
   */
  constructor(baseUrl: string | readonly string[], options: FamulusClientOptions = {}) {
    this.#policy = retryPolicy(options.retry);
    setMaxListeners(0, this.#closing.signal); // one of each stream
    this.#connections = new Connections(typeof baseUrl === "string" ? [baseUrl] : baseUrl, options);
    this.assistants = createClient(AssistantService, this.#connections);
    this.threads = createClient(ThreadService, this.#connections);
    this.runs = createClient(RunService, this.#connections);
    this.usage = createClient(UsageService, this.#connections);
    this.userData = createClient(UserDataService, this.#connections);
  }

  /** The transport of all calls, for stubs of other services: `createClient(Service, client.transport)`. */
  get transport(): Transport {
    return this.#connections;
  }

  /** Closes the connections; open calls and streams end with an error. */
  close(): void {
    this.#closing.abort(new FamulusError("the client was closed", { code: Code.Canceled, transient: false }));
    this.#connections.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }

  /**
   * Starts a run and follows it to its end.
   *
   * With a `requestId` in `create`, the same call joins the run that an earlier one started; without one, each call
   * starts a run. Nothing is sent before the first event is asked for.
   */
  streamRun({ create, ...options }: StreamOptions & { readonly create: CreateRunInit }): RunStream {
    return this.#stream({ create }, options);
  }

  /** Follows a run that exists, from after a sequence to its end; otherwise like `streamRun`. */
  watchRun({ runId, ...options }: StreamOptions & { readonly runId: string }): RunStream {
    return this.#stream({ runId }, options);
  }

  /** Starts a run; its result when it has ended. Without `tools` it also resolves in REQUIRES_ACTION. */
  async runToEnd(options: ToolOptions & SignalOptions & { readonly create: CreateRunInit }): Promise<RunResult> {
    if (options.tools === undefined) {
      const request = repeatable(options.create);
      const { run } = await this.#sending(options, (sending) =>
        send((callOptions) => this.runs.createRun(request, callOptions), sending),
      );
      return this.waitRun({ ...options, runId: run?.id ?? "" });
    }
    const stream = this.streamRun(options);
    for await (const _ of stream);
    return stream.view.result();
  }

  /** The result of a run when it has ended or needs action. Giving up the wait does not stop the run. */
  async waitRun(options: SignalOptions & { readonly runId: string }): Promise<RunResult> {
    const { runId } = options;
    const { run, messages } = await this.#sending(options, (sending) =>
      sendWait((callOptions) => this.runs.waitRun({ runId }, callOptions), {
        ...sending,
        timeoutMs: this.#policy.silenceMs,
      }),
    );
    if (run === undefined) {
      throw new FamulusError("the service answered without a run", { code: Code.Internal });
    }
    return new RunResult(run, messages);
  }

  #stream(followed: Followed, options: StreamOptions): RunStream {
    const { tools, toolTimeoutMs = TOOL_TIMEOUT_MS, onToolError = logToolError } = options;
    return new RunStream({
      runs: this.runs,
      following: new Following(followed, options.afterSequence ?? 0n, this.#policy),
      policy: this.#policy,
      toolbox: tools && new Toolbox(tools, toolTimeoutMs, onToolError),
      cancelOnExit: options.cancelOnExit ?? false,
      signals: [options.signal, this.#closing.signal],
    });
  }

  async #sending<T>({ signal }: SignalOptions, work: (sending: Sending) => Promise<T>): Promise<T> {
    const stop = new AbortController();
    const unlink = link(stop, signal, this.#closing.signal);
    try {
      return await work({ policy: this.#policy, signal: stop.signal });
    } finally {
      unlink();
    }
  }
}
