// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** What can be told from the name of a server without resolving it. */
final class Target {
  /**
   * {@code host:port} or {@code [v6]:port}, perhaps behind a scheme of gRPC's, such as {@code
   * dns:///}.
   */
  private static final Pattern TARGET =
      Pattern.compile(
          "(?:(?:dns|ipv4|ipv6):(?://[^/]*/)?)?(?:\\[(?<v6>[^]]+)]|(?<host>[^:/]+))(?::\\w+)?");

  private static final Pattern LOOPBACK =
      Pattern.compile("localhost|127(?:\\.\\d{1,3}){3}|(?:0*:)*:?0*1");

  private static final Pattern URL = Pattern.compile("https?://.*", Pattern.CASE_INSENSITIVE);

  private Target() {}

  /**
   * Refuses what is no target: gRPC would look for it in the DNS, again and again.
   *
   * @throws IllegalArgumentException for a URL, or nothing
   */
  static void check(String target) {
    if (target.isBlank() || URL.matcher(target).matches()) {
      throw new IllegalArgumentException(
          "the target is not host:port, nor a name such as dns:///host:port: \"" + target + '"');
    }
  }

  /** Whether it names this machine. */
  static boolean isLoopback(String target) {
    Matcher parts = TARGET.matcher(target);
    if (!parts.matches()) {
      return false;
    }
    String address = parts.group("v6");
    return LOOPBACK.matcher(address == null ? parts.group("host") : address).matches();
  }
}
