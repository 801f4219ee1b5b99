// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannelBuilder;
import io.grpc.TlsChannelCredentials;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Objects;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.function.Supplier;

/** Sets up a {@link FamulusClient}. Without credentials the connection is not encrypted. */
public final class ClientBuilder {
  private static final int LARGEST_MESSAGE =
      64 << 20; // bytes; a Snapshot holds all messages of a run

  private final String target;
  private ChannelCredentials credentials;
  private Supplier<String> token;
  private boolean tokenInPlaintext;
  private RetryPolicy policy = RetryPolicy.defaults();
  private Consumer<ManagedChannelBuilder<?>> configuration = channel -> {};

  ClientBuilder(String target) {
    Target.check(target);
    this.target = target;
  }

  /**
   * Encrypts with TLS; trusted are the authorities that Java trusts.
   *
   * @return this
   */
  public ClientBuilder tls() {
    return credentials(TlsChannelCredentials.create());
  }

  /**
   * Encrypts with TLS.
   *
   * @param authority PEM file with the certificates of the authorities to trust
   * @return this
   * @throws IOException where the file cannot be read
   */
  public ClientBuilder tls(Path authority) throws IOException {
    return credentials(TlsChannelCredentials.newBuilder().trustManager(authority.toFile()).build());
  }

  /**
   * Encrypts with TLS and shows a certificate (mTLS).
   *
   * @param authority PEM file with the certificates of the authorities to trust
   * @param certificate PEM file with the certificate to show, and those between it and its
   *     authority
   * @param key PEM file with its key, PKCS #8, not encrypted
   * @return this
   * @throws IOException where a file cannot be read
   */
  public ClientBuilder tls(Path authority, Path certificate, Path key) throws IOException {
    return credentials(
        TlsChannelCredentials.newBuilder()
            .trustManager(authority.toFile())
            .keyManager(certificate.toFile(), key.toFile())
            .build());
  }

  /**
   * Secures the connection in any way that gRPC knows.
   *
   * @param own the credentials
   * @return this
   */
  public ClientBuilder credentials(ChannelCredentials own) {
    credentials = Objects.requireNonNull(own);
    return this;
  }

  /**
   * Shows a token with every call.
   *
   * @param bearer the token; white space around it is taken off
   * @return this
   * @throws IllegalArgumentException where it is empty, or not all of printable ASCII
   */
  public ClientBuilder token(String bearer) {
    BearerToken.header(bearer);
    return token(() -> bearer);
  }

  /**
   * Shows a token with every call, where tokens run out before the client does.
   *
   * @param bearer gives a token that is good; asked before each call, by several threads at a time.
   *     If it throws, that is an outage: UNAVAILABLE, and tried again
   * @return this
   */
  public ClientBuilder token(Supplier<String> bearer) {
    token = Objects.requireNonNull(bearer);
    return this;
  }

  /**
   * Sends the token over connections that are not encrypted, too, also to other machines: for
   * networks that encrypt by themselves. To this machine it is sent anyway.
   *
   * @return this
   */
  public ClientBuilder allowTokenInPlaintext() {
    tokenInPlaintext = true;
    return this;
  }

  /**
   * Bears outages in another way than {@link RetryPolicy#defaults}.
   *
   * @param own the policy
   * @return this
   */
  public ClientBuilder retry(RetryPolicy own) {
    policy = Objects.requireNonNull(own);
    return this;
  }

  /**
   * Changes the channel beyond that, such as its {@code overrideAuthority}.
   *
   * @param change called once, after the settings of this client
   * @return this
   */
  public ClientBuilder configure(Consumer<ManagedChannelBuilder<?>> change) {
    configuration = configuration.andThen(change);
    return this;
  }

  /**
   * Makes the client. It connects with its first call.
   *
   * @return a client; close it
   * @throws IllegalStateException where a token would leave this machine without encryption
   */
  public FamulusClient build() {
    if (token != null && credentials == null && !tokenInPlaintext && !Target.isLoopback(target)) {
      throw new IllegalStateException(
          "a token is only sent over an encrypted connection: call tls(), too");
    }
    ManagedChannelBuilder<?> channel =
        Grpc.newChannelBuilder(
                target, credentials == null ? InsecureChannelCredentials.create() : credentials)
            // A dead connection is noticed after 20 + 10 seconds; the server allows pings 10
            // seconds apart.
            .keepAliveTime(20, TimeUnit.SECONDS)
            .keepAliveTimeout(10, TimeUnit.SECONDS)
            .keepAliveWithoutCalls(true)
            .disableRetry()
            .maxInboundMessageSize(LARGEST_MESSAGE)
            .defaultLoadBalancingPolicy("round_robin");
    configuration.accept(channel);
    return new FamulusClient(
        new Connection(channel.build(), token == null ? null : new BearerToken(token)), policy);
  }
}
