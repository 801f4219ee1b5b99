// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** A small RunService on a real port, which tells a log kept in memory and breaks its streams as planned. */

import { once } from "node:events";
import { createServer, type Http2Server, type Http2ServerRequest, type ServerHttp2Session } from "node:http2";
import type { AddressInfo } from "node:net";
import type { TestContext } from "node:test";
import { create } from "@bufbuild/protobuf";
import { type ConnectRouter, createContextKey, createContextValues, type HandlerContext } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { FamulusClient, type FamulusClientOptions } from "../src/index.js";
import {
  type CreateRunRequest,
  type Message,
  type Run,
  type RunEvent,
  RunSchema,
  RunService,
  RunState,
  type SubmitToolOutputsRequest,
} from "../src/v1.js";
import { RUN_ID } from "./story.js";

/** Waits that are short, without chance in them. */
export const HASTY = { initialDelayMs: 1, maxDelayMs: 2, jitter: 0, giveUpAfterMs: 20_000, silenceMs: 10_000 };

const REQUEST = createContextKey<Http2ServerRequest | undefined>(undefined);
const STOPS = new Set([RunState.REQUIRES_ACTION, RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED]);

export type Serving = (stream: ServedStream) => AsyncIterable<RunEvent[]>;

/** One stream that is served. */
export class ServedStream {
  readonly closed: Promise<unknown>;

  constructor(
    readonly runs: ScriptedRuns,
    readonly kind: "stream" | "watch",
    readonly after: bigint,
    readonly create: CreateRunRequest | undefined,
    readonly context: HandlerContext,
  ) {
    this.closed = context.signal.aborted ? Promise.resolve() : once(context.signal, "abort");
  }

  /** What follows the sequence that the client named, as it is published, to the end of the run. */
  async *events(): AsyncGenerator<RunEvent> {
    for await (const event of this.runs.published(this.context.signal)) {
      if (event.sequence > this.after) {
        yield event;
      }
    }
  }

  /** Ends the stream with an RST_STREAM, once the client has seen an event. */
  async reset(code: number, seen: bigint): Promise<never> {
    await this.runs.seen(seen);
    this.context.values.get(REQUEST)?.stream.close(code);
    return new Promise(() => {});
  }

  /** Destroys the connection, once the client has seen an event. */
  async disconnect(seen: bigint): Promise<never> {
    await this.runs.seen(seen);
    this.context.values.get(REQUEST)?.stream.session?.destroy();
    return new Promise(() => {});
  }
}

/** Serves each stream by the next entry of the plan; wholly, when the plan is used up. */
export class ScriptedRuns {
  readonly streams: ServedStream[] = [];
  readonly created: CreateRunRequest[] = [];
  readonly submitted: SubmitToolOutputsRequest[] = [];
  readonly cancelled: string[] = [];
  readonly headers: Headers[] = [];
  /** Errors with which the next unary calls are refused. */
  readonly refusals: Error[] = [];
  lookups = 0;
  #seen = 0n;
  waits = 0;
  #visible: number;
  #changed = withResolvers();

  /** The log is published up to the first event at which the run waits for outputs; submitting publishes the rest. */
  constructor(
    readonly log: RunEvent[],
    readonly plan: Serving[] = [],
  ) {
    this.#visible = this.#pauseAfter(0);
  }

  get open(): number {
    return this.streams.filter((stream) => !stream.context.signal.aborted).length;
  }

  /** The run as it is now. */
  get run(): Run {
    for (const { event } of this.log.slice(0, this.#visible).reverse()) {
      if (event.case === "runStateChanged" && event.value.run) {
        return event.value.run;
      }
    }
    return create(RunSchema, { id: RUN_ID, state: RunState.QUEUED });
  }

  async *published(signal: AbortSignal): AsyncGenerator<RunEvent> {
    let position = 0;
    while (position < this.log.length && !signal.aborted) {
      const fresh = this.log.slice(position, this.#visible);
      position += fresh.length;
      yield* fresh;
      if (position === this.#visible && position < this.log.length) {
        await Promise.race([this.#changed.promise, once(signal, "abort")]);
      }
    }
  }

  /** Publishes up to the next pause. */
  publish(): void {
    this.#visible = this.#pauseAfter(this.#visible);
    this.#changed.resolve();
    this.#changed = withResolvers();
  }

  /** The client has seen the events up to this one: what was sent before a reset may otherwise never reach it. */
  see(sequence: bigint): void {
    this.#seen = sequence;
    this.#changed.resolve();
    this.#changed = withResolvers();
  }

  async seen(sequence: bigint): Promise<void> {
    while (this.#seen < sequence) {
      await this.#changed.promise;
    }
  }

  routes = (router: ConnectRouter): void => {
    router.service(RunService, {
      streamRun: (request, context) =>
        this.#serve(new ServedStream(this, "stream", request.afterSequence, request.create, context)),
      watchRun: (request, context) =>
        this.#serve(new ServedStream(this, "watch", request.afterSequence, undefined, context)),
      createRun: (request) => {
        this.#mayRefuse();
        this.created.push(request);
        return { run: this.run };
      },
      getRun: (_, context) => {
        this.lookups += 1;
        this.headers.push(context.requestHeader);
        return { run: this.run };
      },
      waitRun: async (_, context) => {
        this.waits += 1;
        this.#mayRefuse();
        while (!STOPS.has(this.run.state)) {
          await Promise.race([this.#changed.promise, once(context.signal, "abort")]);
          context.signal.throwIfAborted();
        }
        return { run: this.run, messages: this.#messages() };
      },
      submitToolOutputs: (request) => {
        this.#mayRefuse();
        this.submitted.push(request);
        this.publish();
        return { run: this.run };
      },
      cancelRun: ({ runId }) => {
        this.cancelled.push(runId);
        return { run: this.run };
      },
    });
  };

  async *#serve(stream: ServedStream): AsyncGenerator<{ events: RunEvent[] }> {
    this.streams.push(stream);
    for await (const events of (this.plan.shift() ?? whole)(stream)) {
      yield { events };
    }
  }

  #mayRefuse(): void {
    const refusal = this.refusals.shift();
    if (refusal) {
      throw refusal;
    }
  }

  #pauseAfter(index: number): number {
    const pause = this.log.findIndex(
      ({ event }, position) =>
        position >= index && event.case === "runStateChanged" && event.value.run?.state === RunState.REQUIRES_ACTION,
    );
    return pause < 0 ? this.log.length : pause + 1;
  }

  #messages(): Message[] {
    return this.log.flatMap(({ event }) =>
      event.case === "messageCompleted" && event.value.message ? [event.value.message] : [],
    );
  }
}

export async function* whole(stream: ServedStream): AsyncGenerator<RunEvent[]> {
  for await (const event of stream.events()) {
    yield [event];
  }
}

/** Serves some events, then does something else. */
export function after(count: number, then: (stream: ServedStream) => unknown): Serving {
  return async function* (stream) {
    let served = 0;
    for await (const event of stream.events()) {
      if (served === count) {
        break;
      }
      served += 1;
      yield [event];
    }
    await then(stream);
  };
}

export function throwing(error: Error): () => never {
  return () => {
    throw error;
  };
}

/** Serves on a port of its own until the test ends; gives the URL. */
export async function serving(t: TestContext, runs: ScriptedRuns): Promise<string> {
  const server = createServer(
    connectNodeAdapter({
      routes: runs.routes,
      contextValues: (request) => createContextValues().set(REQUEST, request as Http2ServerRequest),
    }),
  );
  await listening(t, server);
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** A client of scripted runs, closed when the test ends. */
export async function clientOf(
  t: TestContext,
  runs: ScriptedRuns,
  options: FamulusClientOptions = {},
): Promise<FamulusClient> {
  const client = new FamulusClient(await serving(t, runs), { ...options, retry: { ...HASTY, ...options.retry } });
  t.after(() => client.close());
  return client;
}

export async function gather(stream: AsyncIterable<RunEvent>, runs?: ScriptedRuns): Promise<bigint[]> {
  const sequences: bigint[] = [];
  for await (const { sequence } of stream) {
    sequences.push(sequence);
    runs?.see(sequence);
  }
  return sequences;
}

async function listening(t: TestContext, server: Http2Server): Promise<void> {
  const sessions = new Set<ServerHttp2Session>();
  server.on("session", (session) => {
    sessions.add(session);
    session.once("close", () => sessions.delete(session));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.close();
    for (const session of sessions) {
      session.destroy();
    }
  });
}

function withResolvers() {
  let resolve = () => {};
  const promise = new Promise<void>((done) => {
    resolve = done;
  });
  return { promise, resolve };
}
