// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.ErrorReason;
import io.grpc.Status;
import java.security.cert.CertificateException;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.regex.Pattern;

/**
 * A call was refused or failed, or a stream broke and could not be resumed.
 *
 * <p>The stubs throw {@link io.grpc.StatusRuntimeException}; {@link #from} tells what is in one.
 */
public class FamulusException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  private static final Set<Status.Code> TRANSPORT_CODES =
      Set.of(Status.Code.INTERNAL, Status.Code.UNKNOWN, Status.Code.CANCELLED);

  /** How gRPC words the end of a connection where it does not call it UNAVAILABLE. */
  private static final Pattern BROKEN_TRANSPORT =
      Pattern.compile(
          "rst[_ ]stream|stream removed|reset|closed|goaway|cancelling all calls"
              + "|http/?2 (error|exception)|unexpected eos|end-of-stream mid-frame",
          Pattern.CASE_INSENSITIVE);

  /** All that a server says of a call which it cut off because it stops. */
  private static final String CUT_OFF = "CANCELLED";

  private final Status.Code code;
  private final String description;
  private final transient ErrorDetails details;

  FamulusException(Status.Code code, String description, Throwable cause) {
    this(code, description, ErrorDetails.NONE, cause);
  }

  FamulusException(Status.Code code, String description, ErrorDetails details, Throwable cause) {
    super(
        code
            + (details.reasonName().isEmpty() ? "" : " / " + details.reasonName())
            + ": "
            + description,
        cause);
    this.code = code;
    this.description = description;
    this.details = details;
  }

  /**
   * What a failed call says, with its details (google.rpc: ErrorInfo, BadRequest, RetryInfo).
   *
   * @param error what a stub threw, or what its future failed with; something that has no gRPC
   *     status counts as UNKNOWN
   * @return the same as an exception of this class; {@code error} itself where it is one
   */
  public static FamulusException from(Throwable error) {
    if (error instanceof FamulusException known) {
      return known;
    }
    Status status = Status.fromThrowable(error);
    String description = described(status);
    ErrorDetails details = ErrorDetails.in(Status.trailersFromThrowable(error));
    return new FamulusException(status.getCode(), description, details, error);
  }

  /**
   * What gRPC says; of a connection that fails also why, as it calls that an "io exception", be it
   * refused or with a certificate that nobody trusts.
   */
  private static String described(Status status) {
    String description = status.getDescription() == null ? "no details" : status.getDescription();
    if (status.getCode() != Status.Code.UNAVAILABLE || status.getCause() == null) {
      return description;
    }
    Throwable root = status.getCause();
    while (root.getCause() != null) {
      root = root.getCause();
    }
    String why = root.getMessage();
    return why == null || description.contains(why)
        ? description
        : description.lines().findFirst().orElse("") + ": " + why;
  }

  /**
   * The waiting thread was interrupted; the exception says so, and the thread goes on being
   * interrupted.
   */
  static FamulusException interrupted(InterruptedException cause) {
    Thread.currentThread().interrupt();
    return new FamulusException(Status.Code.CANCELLED, "the thread was interrupted", cause);
  }

  /**
   * The status of the call.
   *
   * @return its code
   */
  public final Status.Code code() {
    return code;
  }

  /**
   * What the service, or gRPC, says. The sentence may change: decide by {@link #reason} or {@link
   * #code}.
   *
   * @return a sentence for people
   */
  public final String description() {
    return description;
  }

  /**
   * Why the service refused.
   *
   * @return the reason; {@code ERROR_REASON_UNSPECIFIED} where the service gave none (the
   *     connection failed, say) or one that this client does not know yet
   */
  public final ErrorReason reason() {
    return details().reason();
  }

  /**
   * The name of the reason, without its prefix, also where this client does not know it.
   *
   * @return a name such as {@code RATE_LIMITED}; empty where there is none
   */
  public final String reasonName() {
    return details().reasonName();
  }

  /**
   * The facts documented with the reason.
   *
   * @return facts by name
   */
  public final Map<String, String> metadata() {
    return details().metadata();
  }

  /**
   * The fields that were wrong.
   *
   * @return one entry for each
   */
  public final List<Violation> violations() {
    return details().violations();
  }

  /**
   * After which time the service invites another attempt.
   *
   * @return the time; empty where the service names none
   */
  public final Optional<Duration> retryAfter() {
    return Optional.ofNullable(details().retryAfter());
  }

  /**
   * Whether it is the connection or the replica that failed, so that the same call may go well
   * elsewhere; or the credentials ran out in the middle of it, so that it may go well with fresh
   * ones.
   *
   * @return whether another attempt makes sense
   */
  public boolean isTransient() {
    return switch (code) {
      case UNAVAILABLE -> !reasonName().isEmpty() || !isMistrust();
      case ABORTED -> reason() == ErrorReason.ERROR_REASON_SLOW_CONSUMER;
      case UNAUTHENTICATED -> reason() == ErrorReason.ERROR_REASON_CREDENTIALS_EXPIRED;
      default ->
          TRANSPORT_CODES.contains(code)
              && reasonName().isEmpty()
              && (description.equals(CUT_OFF) || BROKEN_TRANSPORT.matcher(description).find());
    };
  }

  /**
   * Whether the server's certificate is not to be trusted: it will not be a moment later either.
   */
  private boolean isMistrust() {
    for (Throwable error = getCause(); error != null; error = error.getCause()) {
      if (error instanceof CertificateException) {
        return true;
      }
    }
    return false;
  }

  private ErrorDetails details() {
    return details == null ? ErrorDetails.NONE : details; // null once it was serialized
  }
}
