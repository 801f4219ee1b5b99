// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { createSecureServer } from "node:http2";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { promisify } from "node:util";
import { Code } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { Connections } from "../src/connections.js";
import { FamulusClient } from "../src/index.js";
import { refusal } from "./refusals.js";
import { after, gather, HASTY, ScriptedRuns, serving, throwing } from "./scripted_runs.js";
import { plain, RUN_ID } from "./story.js";

const LOG = plain();

test("a token goes with every call; a function is asked each time", async (t) => {
  const runs = new ScriptedRuns(LOG);
  const url = await serving(t, runs);
  let count = 0;
  const token = async () => {
    count += 1;
    return `t${count}`;
  };
  await using client = new FamulusClient(url, { token });
  await client.runs.getRun({ runId: RUN_ID });
  await client.runs.getRun({ runId: RUN_ID });
  assert.deepEqual(
    runs.headers.map((header) => header.get("authorization")),
    ["Bearer t1", "Bearer t2"],
  );
});

test("a source of tokens that fails is asked again", async (t) => {
  const runs = new ScriptedRuns(LOG);
  let count = 0;
  const token = async () => {
    count += 1;
    if (count === 1) {
      throw new Error("the door is closed");
    }
    return `t${count}\n`; // as files end
  };
  await using client = new FamulusClient(await serving(t, runs), { token, retry: HASTY });
  assert.equal((await gather(client.watchRun({ runId: RUN_ID }))).length, LOG.length);
  await client.runs.getRun({ runId: RUN_ID });
  assert.deepEqual(
    runs.headers.map((header) => header.get("authorization")),
    ["Bearer t3"],
  );
});

test("a source of tokens that goes on failing is told when patience ends", async (t) => {
  const url = await serving(t, new ScriptedRuns(LOG));
  const broken = () => {
    throw new Error("the door is closed");
  };
  const sources: [() => string, RegExp][] = [
    [broken, /there is no token: Error: the door is closed/],
    [() => "no token", /there is no token: TypeError/],
  ];
  for (const [token, message] of sources) {
    await using client = new FamulusClient(url, { token, retry: { ...HASTY, giveUpAfterMs: 0 } });
    await assert.rejects(gather(client.watchRun({ runId: RUN_ID })), { code: Code.Unavailable, message });
  }
});

test("a text that is no token is refused at once", () => {
  for (const token of ["", " \n", "two words", "line\nbreak", "tök"]) {
    assert.throws(() => new FamulusClient("http://127.0.0.1:1", { token }), TypeError, token);
  }
});

test("a token leaves this machine over TLS only, unless that is allowed", () => {
  const token = "secret";
  assert.throws(() => new FamulusClient("http://famulus.example:80", { token }), TypeError);
  for (const url of ["http://localhost:1", "http://127.0.0.2:1", "http://[::1]:1", "https://famulus.example"]) {
    new FamulusClient(url, { token }).close();
  }
  new FamulusClient("http://famulus.example:80", { token, allowInsecureToken: true }).close();
  assert.throws(() => new FamulusClient("http://127.0.0.1.example.com", { token }), TypeError);
});

test("URLs that make no sense are refused", () => {
  assert.throws(() => new FamulusClient(""), TypeError);
  for (const url of ["127.0.0.1:7461", "localhost:7461", "ftp://127.0.0.1"]) {
    assert.throws(() => new FamulusClient(url), { name: "TypeError", message: /must begin with http:/ });
  }
  assert.throws(() => new FamulusClient([]), TypeError);
  assert.throws(() => new FamulusClient("http://127.0.0.1:1", { tls: {} }), TypeError);
});

test("a server that speaks no HTTP/2 fails calls, and not the process", async (t) => {
  const server = createServer().listen(0, "127.0.0.1");
  t.after(() => server.close());
  await once(server, "listening");
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const calls = `
    import { FamulusClient } from ${JSON.stringify(new URL("../src/index.js", import.meta.url))};
    const client = new FamulusClient(${JSON.stringify(url)});
    for (let call = 0; call < 3; call += 1) {
      await client.runs.getRun({}).catch(() => process.stdout.write("failed "));
    }
    client.close();
    setTimeout(() => process.stdout.write("alive"), 100);
  `;
  const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "--eval", calls]);
  assert.equal(stdout, "failed failed failed alive");
});

test("of several replicas the next one is used when one fails", async (t) => {
  const draining = new ScriptedRuns(LOG, Array(9).fill(after(4, throwing(refusal({ reason: "SERVER_DRAINING" })))));
  const healthy = new ScriptedRuns(LOG);
  const urls = [await serving(t, draining), await serving(t, healthy)];
  const connections = new Connections(urls, {}, () => 0);
  t.after(() => connections.close());
  const { createClient } = await import("@connectrpc/connect");
  const { RunService } = await import("../src/v1.js");
  const { Following } = await import("../src/following.js");
  const { RunStream } = await import("../src/stream.js");
  const { retryPolicy } = await import("../src/retry.js");
  const policy = retryPolicy(HASTY);
  const stream = new RunStream({
    runs: createClient(RunService, connections),
    following: new Following({ runId: RUN_ID }, 0n, policy),
    policy,
    toolbox: undefined,
    cancelOnExit: false,
    signals: [],
  });
  assert.equal((await gather(stream)).length, LOG.length);
  assert.deepEqual(
    healthy.streams.map((served) => served.after),
    [4n],
  );
});

test("TLS with an own authority, and mTLS", async (t) => {
  const { ca, cert, key } = certificates(t);
  const handler = connectNodeAdapter({ routes: new ScriptedRuns(LOG).routes });
  const server = createSecureServer({ cert, key, ca, requestCert: true, rejectUnauthorized: true }, handler);
  server.on("sessionError", () => {});
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const url = `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
  {
    await using client = new FamulusClient(url, { tls: { ca, cert, key }, token: "secret" });
    assert.equal((await gather(client.watchRun({ runId: RUN_ID }))).length, LOG.length);
  }
  await using distrustful = new FamulusClient(url, { tls: { cert, key } });
  await assert.rejects(gather(distrustful.watchRun({ runId: RUN_ID })), { code: Code.Internal }); // and no retries
  server.close();
});

/** A certificate that is its own authority, for 127.0.0.1. */
function certificates(t: TestContext) {
  const folder = mkdtempSync(join(tmpdir(), "famulus-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const [keyFile, certFile] = [join(folder, "key.pem"), join(folder, "cert.pem")];
  const subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"];
  const algorithm = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  const files = ["-keyout", keyFile, "-out", certFile];
  execFileSync("openssl", ["req", "-x509", "-days", "1", ...algorithm, ...subject, ...files], { stdio: "ignore" });
  const cert = readFileSync(certFile, "utf8");
  return { ca: cert, cert, key: readFileSync(keyFile, "utf8") };
}
