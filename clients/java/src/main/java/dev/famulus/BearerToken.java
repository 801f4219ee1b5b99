// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import io.grpc.CallCredentials;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.util.concurrent.Executor;
import java.util.function.Supplier;

/** Shows a token with each call. */
final class BearerToken {
  private static final Metadata.Key<String> KEY =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  private final Supplier<String> token;

  BearerToken(Supplier<String> token) {
    this.token = token;
  }

  /**
   * The header that shows a token.
   *
   * @throws IllegalArgumentException for a text that is no token
   */
  static String header(String token) {
    String bare = token.strip(); // files end with a newline
    if (bare.isEmpty() || !bare.chars().allMatch(letter -> letter > ' ' && letter <= '~')) {
      throw new IllegalArgumentException("the token is empty, or not all of printable ASCII");
    }
    return "Bearer " + bare;
  }

  /** Asks for the token in a thread of {@code executor}: to get a fresh one may take time. */
  ClientInterceptor on(Executor executor) {
    CallCredentials credentials = new Credentials(executor);
    return new ClientInterceptor() {
      @Override
      public <Q, R> ClientCall<Q, R> interceptCall(
          MethodDescriptor<Q, R> method, CallOptions options, Channel next) {
        return next.newCall(
            method,
            options.getCredentials() == null ? options.withCallCredentials(credentials) : options);
      }
    };
  }

  private final class Credentials extends CallCredentials {
    private final Executor executor;

    Credentials(Executor executor) {
      this.executor = executor;
    }

    @Override
    public void applyRequestMetadata(
        RequestInfo request, Executor ignored, MetadataApplier applier) {
      try {
        executor.execute(() -> apply(applier));
      } catch (RuntimeException closed) {
        applier.fail(Status.UNAVAILABLE.withDescription("the client is closed").withCause(closed));
      }
    }

    private void apply(MetadataApplier applier) {
      Metadata headers = new Metadata();
      try {
        headers.put(KEY, header(token.get()));
      } catch (Throwable failed) { // whatever it is, it ends the call and nothing else
        applier.fail(
            Status.UNAVAILABLE // a moment later there may be one
                .withDescription("there is no token: " + failed)
                .withCause(failed));
        return;
      }
      applier.apply(headers);
    }
  }
}
