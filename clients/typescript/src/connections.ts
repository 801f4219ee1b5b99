// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** Connections to one or several replicas of famulus, as one transport of Connect. */

import type { ClientHttp2Session, ClientHttp2Stream, SecureClientSessionOptions } from "node:http2";
import { Code, ConnectError, type Interceptor, type Transport } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { FamulusError } from "./errors.js";

const CONNECT_WITHIN_MS = 10_000;
const LARGEST_RESPONSE = 64 << 20; // bytes: a Snapshot holds all messages of a run
// A dead connection is noticed after 20 + 10 seconds; the server allows pings 10 seconds apart.
const KEEPALIVE = { pingIntervalMs: 20_000, pingTimeoutMs: 10_000, pingIdleConnection: true };

/**
 * A bearer token; or what gives a good one, where tokens run out: it is called before each call. White space around it is
 * taken off. Where the function fails, that is an outage.
 */
export type Token = string | (() => string | Promise<string>);

/** Keys and certificates, as PEM. */
export interface TlsOptions {
  /** Certificates of the authorities to trust. Left out: those that Node.js trusts. */
  readonly ca?: string | Uint8Array;
  /** The client's own certificate, with its chain, for mTLS. */
  readonly cert?: string | Uint8Array;
  /** The key of the client's own certificate. */
  readonly key?: string | Uint8Array;
  /** The name that the server's certificate has to have. Left out: the host of the URL. */
  readonly serverName?: string;
}

/** How to connect. */
export interface ConnectionOptions {
  readonly tls?: TlsOptions | undefined;
  readonly token?: Token | undefined;
  /** Sends the token over connections without TLS, too, to other hosts than this one: anybody on the way can read it. */
  readonly allowInsecureToken?: boolean | undefined;
  /** Interceptors of Connect, around all calls. */
  readonly interceptors?: readonly Interceptor[] | undefined;
}

interface Endpoint {
  readonly sessions: Http2SessionManager;
  readonly transport: Transport;
}

/**
 * Sessions whose late errors end no process. Connect takes its listener off a session that has broken as soon as it
 * opens the next one, or is closed; Node.js may tell of the break only then.
 */
class Sessions extends Http2SessionManager {
  readonly #heard = new WeakSet<ClientHttp2Session>();

  override async request(...call: Parameters<Http2SessionManager["request"]>): Promise<ClientHttp2Stream> {
    const stream = await super.request(...call);
    const { session } = stream;
    if (session !== undefined && !this.#heard.has(session as ClientHttp2Session)) {
      this.#heard.add(session as ClientHttp2Session);
      session.on("error", () => {}); // its streams have ended with the error
    }
    return stream;
  }
}

/** Calls the same replica until it fails, then the next one of the list. */
export class Connections implements Transport {
  readonly #endpoints: readonly Endpoint[];
  #current: number;
  #closed = false;

  /** Throws TypeError where the URLs and the options make no sense, or not together. */
  constructor(baseUrls: readonly string[], options: ConnectionOptions, random: () => number = Math.random) {
    if (baseUrls.length === 0) {
      throw new TypeError("no URL to connect to");
    }
    if (typeof options.token === "string") {
      authorization(options.token);
    }
    this.#endpoints = baseUrls.map((baseUrl) => this.#endpoint(checked(baseUrl, options), options));
    // Many clients of the same list should not all begin with the first.
    this.#current = Math.floor(random() * baseUrls.length);
  }

  unary: Transport["unary"] = async (...call) => {
    const endpoint = this.#pick();
    try {
      return await endpoint.transport.unary(...call);
    } catch (error) {
      this.#failed(endpoint, error);
      throw error;
    }
  };

  stream: Transport["stream"] = async (...call) => {
    const endpoint = this.#pick();
    try {
      const response = await endpoint.transport.stream(...call);
      return { ...response, message: this.#watched(endpoint, response.message) };
    } catch (error) {
      this.#failed(endpoint, error);
      throw error;
    }
  };

  /** Closes all connections; open calls end. */
  close(): void {
    this.#closed = true;
    for (const { sessions } of this.#endpoints) {
      sessions.abort(closedError());
    }
  }

  #endpoint(baseUrl: string, options: ConnectionOptions): Endpoint {
    const sessions = new Sessions(baseUrl, KEEPALIVE, sessionOptions(options.tls));
    const interceptors = [...(options.interceptors ?? []), reached(sessions)];
    if (options.token !== undefined) {
      interceptors.push(bearer(options.token));
    }
    const transport = createGrpcTransport({
      baseUrl,
      sessionManager: sessions,
      readMaxBytes: LARGEST_RESPONSE,
      interceptors,
    });
    return { sessions, transport };
  }

  #pick(): Endpoint {
    const endpoint = this.#endpoints[this.#current];
    if (this.#closed || endpoint === undefined) {
      throw closedError();
    }
    return endpoint;
  }

  #failed(endpoint: Endpoint, error: unknown): void {
    if (this.#endpoints[this.#current] === endpoint && FamulusError.from(error).transient) {
      this.#current = (this.#current + 1) % this.#endpoints.length;
    }
  }

  async *#watched<T>(endpoint: Endpoint, messages: AsyncIterable<T>): AsyncGenerator<T> {
    try {
      yield* messages;
    } catch (error) {
      this.#failed(endpoint, error);
      throw error;
    }
  }
}

/** Whether a URL names this machine, as far as can be told without resolving names. */
export function isLoopback(url: URL): boolean {
  return url.hostname === "localhost" || url.hostname === "[::1]" || /^127(\.\d+){3}$/.test(url.hostname);
}

function checked(baseUrl: string, { tls, token, allowInsecureToken }: ConnectionOptions): string {
  const url = URL.canParse(baseUrl) ? new URL(baseUrl) : undefined; // 127.0.0.1:7461 is none, localhost:7461 one
  if (url?.protocol !== "http:" && url?.protocol !== "https:") {
    throw new TypeError(`the URL must begin with http:// or https://, as in http://127.0.0.1:7461: ${baseUrl}`);
  }
  if (url.protocol === "https:") {
    return baseUrl;
  }
  if (tls !== undefined) {
    throw new TypeError(`TLS needs a URL that begins with https://: ${baseUrl}`);
  }
  if (token !== undefined && !allowInsecureToken && !isLoopback(url)) {
    throw new TypeError(`a token is sent over TLS only, and to this machine: ${baseUrl}`);
  }
  return baseUrl;
}

function sessionOptions({ ca, cert, key, serverName }: TlsOptions = {}): SecureClientSessionOptions {
  return {
    ...(ca === undefined ? {} : { ca: Buffer.from(ca) }),
    ...(cert === undefined ? {} : { cert: Buffer.from(cert) }),
    ...(key === undefined ? {} : { key: Buffer.from(key) }),
    ...(serverName === undefined ? {} : { servername: serverName }),
  };
}

/** Shows the token with each call. */
function bearer(token: Token): Interceptor {
  return (next) => async (request) => {
    let header: string;
    try {
      header = authorization(typeof token === "string" ? token : await token());
    } catch (error) {
      // A moment later there may be one.
      throw new ConnectError(`there is no token: ${error}`, Code.Unavailable, undefined, undefined, error);
    }
    request.header.set("authorization", header);
    return next(request);
  };
}

function authorization(token: string): string {
  const bare = token.trim(); // files end with a newline
  if (!/^[!-~]+$/.test(bare)) {
    throw new TypeError("the token is empty, or not all of printable ASCII");
  }
  return `Bearer ${bare}`;
}

/** Gives up on a connection that does not come about: the system would try for minutes. */
function reached(sessions: Http2SessionManager): Interceptor {
  return (next) => (request) => {
    const connecting = sessions.connect(); // its failure is that of the call, too
    if (sessions.state() === "connecting") {
      const timer = setTimeout(() => {
        if (sessions.state() === "connecting") {
          sessions.abort(new ConnectError(`no connection within ${CONNECT_WITHIN_MS / 1_000} s`, Code.Unavailable));
        }
      }, CONNECT_WITHIN_MS);
      timer.unref();
      void connecting.finally(() => clearTimeout(timer));
    }
    return next(request);
  };
}

function closedError(): ConnectError {
  return new ConnectError("this client is no longer in use", Code.Canceled);
}
