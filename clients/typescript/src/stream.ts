// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** The events of a run. */

import { setMaxListeners } from "node:events";
import { type Client, Code, ConnectError } from "@connectrpc/connect";
import { FamulusError } from "./errors.js";
import { type Following, openCalls, requestedCalls } from "./following.js";
import { ErrorReason } from "./gen/famulus/v1/error_reason_pb.js";
import type { RunEvent } from "./gen/famulus/v1/run_event_pb.js";
import type { Run } from "./gen/famulus/v1/run_pb.js";
import type { RunService } from "./gen/famulus/v1/run_service_pb.js";
import type { ToolCall } from "./gen/famulus/v1/tool_pb.js";
import type { RetryPolicy } from "./retry.js";
import type { Toolbox } from "./tools.js";
import { type Sending, send } from "./unary.js";
import type { RunView } from "./view.js";
import { link, sleep, within } from "./waiting.js";

const LAST_WORD_MS = 1_000; // that a server has to end a stream after the last event
const CANCEL_WITHIN_MS = 5_000;
// The run has ended, or somebody else was faster: the stream tells.
const ANSWERED: ReadonlySet<ErrorReason> = new Set([
  ErrorReason.RUN_NOT_WAITING,
  ErrorReason.TOOL_OUTPUT_CONFLICT,
  ErrorReason.RUN_EXPIRED,
]);
const LEFT = new ConnectError("the stream was left", Code.Canceled);

/** What a stream works with. */
export interface Streaming {
  readonly runs: Client<typeof RunService>;
  readonly following: Following;
  readonly policy: RetryPolicy;
  readonly toolbox: Toolbox | undefined;
  readonly cancelOnExit: boolean;
  /** End the stream when they are aborted; the iteration then throws their reason. */
  readonly signals: readonly (AbortSignal | undefined)[];
}

type Responses = AsyncIterator<{ readonly events: RunEvent[] }>;

/**
 * The events of one run in order, each once, over as many streams as it takes.
 *
 * Iterate it with `for await`; leaving the loop cancels the open call and the tools that still run. The iteration ends
 * after the last event of the run, and throws FamulusError where the run cannot be followed any more.
 */
export class RunStream implements AsyncIterator<RunEvent, undefined>, AsyncIterable<RunEvent>, AsyncDisposable {
  readonly #with: Streaming;
  readonly #following: Following;
  readonly #sending: Sending;
  readonly #stop = new AbortController();
  readonly #answering = new Set<Promise<void>>();
  readonly #toolsStop = new AbortController();
  #events: AsyncGenerator<RunEvent, undefined> | undefined;
  #closed = false;
  #closing: Promise<void> = Promise.resolve();
  #unlink = () => {};

  /** @internal */
  constructor(streaming: Streaming) {
    this.#with = streaming;
    this.#following = streaming.following;
    this.#sending = { policy: streaming.policy, signal: this.#stop.signal };
    setMaxListeners(0, this.#stop.signal, this.#toolsStop.signal);
  }

  /** The run as of the event that the iteration gave last. */
  get view(): RunView {
    return this.#following.view;
  }

  /** Sequence of the last event: `afterSequence` with which to go on later, from another process too. */
  get lastSequence(): bigint {
    return this.#following.lastSequence;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async next(): Promise<IteratorResult<RunEvent, undefined>> {
    try {
      const result = await this.#start().next();
      if (result.done && !this.#following.finished) {
        this.#stop.signal.throwIfAborted(); // closed meanwhile, and perhaps not by the caller
      }
      if (result.done) {
        await this.close();
      }
      return result;
    } catch (error) {
      await this.close();
      if (error === LEFT) {
        return { done: true, value: undefined };
      }
      throw error;
    }
  }

  async return(): Promise<IteratorResult<RunEvent, undefined>> {
    await this.close();
    return { done: true, value: undefined };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Leaves the stream: cancels the call and the tools at once. The run goes on, unless `cancelOnExit`. */
  close(): Promise<void> {
    if (!this.#closed) {
      this.#closed = true; // at once: aborting calls this again
      this.#closing = this.#close();
    }
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#stop.abort(LEFT);
    this.#toolsStop.abort(LEFT);
    this.#unlink();
    await this.#events?.return(undefined).catch(() => {});
    await this.#stopAnswering();
    if (this.#with.cancelOnExit && this.#following.mayGoOn) {
      await this.#cancelRun().catch(() => {}); // best effort: the run ends by itself
    }
  }

  #start(): AsyncGenerator<RunEvent, undefined> {
    if (this.#events === undefined) {
      this.#events = this.#follow();
      this.#unlink = link(this.#stop, ...this.#with.signals);
      // Who waits for something else when the signal comes may never ask for another event.
      this.#stop.signal.addEventListener("abort", () => void this.close(), { once: true });
    }
    return this.#events;
  }

  async *#follow(): AsyncGenerator<RunEvent, undefined> {
    const following = this.#following;
    this.#stop.signal.throwIfAborted();
    if (this.#with.toolbox && this.lastSequence > 0n) {
      // The event that asked for outputs may be among those seen before.
      this.#answer(openCalls(await this.#lookUp(this.#sending)));
    }
    while (!following.finished) {
      const call = new AbortController();
      const unlink = link(call, this.#stop.signal);
      let delayMs = 0;
      try {
        const responses = this.#join(call.signal);
        while (!following.finished) {
          for (const event of await this.#read(responses)) {
            if (following.take(event)) {
              this.#answer(requestedCalls(event));
              yield event;
            }
          }
        }
        await this.#stopAnswering();
        await drain(responses);
      } catch (error) {
        this.#stop.signal.throwIfAborted();
        if (!(error instanceof FamulusError)) {
          throw error;
        }
        delayMs = following.lost(error);
      } finally {
        unlink();
        call.abort(LEFT);
      }
      if (delayMs > 0) {
        await sleep(delayMs, this.#stop.signal);
      }
    }
    return undefined;
  }

  #join(signal: AbortSignal): Responses {
    this.#following.joining();
    const target = this.#following.target();
    const request = { ...target, afterSequence: this.lastSequence };
    const { runs } = this.#with;
    const responses = "create" in request ? runs.streamRun(request, { signal }) : runs.watchRun(request, { signal });
    return responses[Symbol.asyncIterator]();
  }

  /** The next events; none for a heartbeat. Throws FamulusError where the stream broke. */
  async #read(responses: Responses): Promise<readonly RunEvent[]> {
    let result: Awaited<ReturnType<Responses["next"]>>;
    try {
      result = await within(this.#with.policy.silenceMs, responses.next(), () => silence(this.#with.policy));
    } catch (error) {
      throw FamulusError.from(error);
    }
    if (result.done) {
      this.#following.ended(await this.#lookUp(this.#sending));
      return [];
    }
    const { events } = result.value;
    if (events.length === 0) {
      this.#following.heard();
    }
    return events;
  }

  /** The run as it is now. CreateRun shares its request ids with StreamRun. */
  async #lookUp(sending: Sending): Promise<Run> {
    const { runs, following } = this.#with;
    const target = following.target();
    const { run } =
      "create" in target
        ? await send((options) => runs.createRun(target.create, options), sending)
        : await send((options) => runs.getRun(target, options), sending);
    if (run === undefined) {
      throw new FamulusError("the service answered without a run", { code: Code.Internal });
    }
    following.view.name(run.id);
    return run;
  }

  /** Starts to answer those calls that no earlier event asked for. */
  #answer(calls: readonly ToolCall[]): void {
    const { toolbox } = this.#with;
    const claimed = toolbox?.claim(calls);
    if (toolbox === undefined || !claimed?.size) {
      return;
    }
    const task = this.#runTools(toolbox, claimed)
      .catch((error: unknown) => {
        if (!this.#toolsStop.signal.aborted) {
          this.#stop.abort(error); // nobody would answer the run: the caller has to know
        }
      })
      .finally(() => this.#answering.delete(task));
    this.#answering.add(task);
  }

  async #runTools(toolbox: Toolbox, claimed: ReadonlySet<string>): Promise<void> {
    const { policy, runs } = this.#with;
    const { signal } = this.#toolsStop;
    // An old event may ask for what was answered long ago: a tool must not run again for it.
    const run = await this.#lookUp({ policy, signal });
    const calls = openCalls(run).filter((call) => claimed.has(call.id));
    if (calls.length === 0) {
      return;
    }
    const toolOutputs = await toolbox.answerAll(calls, signal);
    try {
      await send((options) => runs.submitToolOutputs({ runId: run.id, toolOutputs }, options), { policy, signal });
    } catch (error) {
      if (!(error instanceof FamulusError && ANSWERED.has(error.reason))) {
        throw error;
      }
    }
  }

  async #stopAnswering(): Promise<void> {
    this.#toolsStop.abort(LEFT);
    await Promise.all(this.#answering);
  }

  async #cancelRun(): Promise<void> {
    const signal = AbortSignal.timeout(CANCEL_WITHIN_MS);
    const sending: Sending = { policy: this.#with.policy, signal };
    const runId = this.view.runId || (await this.#lookUp(sending)).id;
    await send((options) => this.#with.runs.cancelRun({ runId }, options), sending);
  }
}

/** Lets the server end the call: cancelled, it would count as failed there. */
async function drain(responses: Responses): Promise<void> {
  const end = async () => {
    while (!(await responses.next()).done);
  };
  await within(LAST_WORD_MS, end(), () => LEFT).catch(() => {});
}

function silence({ silenceMs }: RetryPolicy): FamulusError {
  return new FamulusError(`nothing came for ${silenceMs / 1_000} seconds`, { code: Code.Unavailable });
}
