// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus.examples;

import com.google.gson.Gson;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import dev.famulus.ToolException;
import java.io.IOException;
import java.io.Reader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** Homes for sale, from a file of JSON. */
final class Properties {
  /** What is known of one home; the price in euros. */
  record Property(
      String id, String location, long price, int bedrooms, String title, String description) {}

  private final List<Property> all;

  private Properties(List<Property> all) {
    this.all = all;
  }

  static Properties in(Path file) throws IOException {
    try (Reader reader = Files.newBufferedReader(file)) {
      return new Properties(List.of(new Gson().fromJson(reader, Property[].class)));
    }
  }

  /** The tool {@code search_properties}: what fits, without descriptions. */
  Object search(JsonObject arguments) throws ToolException {
    String location = text(arguments, "location").toLowerCase(Locale.ROOT);
    JsonElement mostExpensive = arguments.get("max_price");
    JsonElement fewestBedrooms = arguments.get("min_bedrooms");
    return all.stream()
        .filter(home -> home.location().toLowerCase(Locale.ROOT).contains(location))
        .filter(home -> isNone(mostExpensive) || home.price() <= mostExpensive.getAsDouble())
        .filter(home -> isNone(fewestBedrooms) || home.bedrooms() >= fewestBedrooms.getAsInt())
        .map(home -> Map.of("id", home.id(), "title", home.title(), "price", home.price()))
        .toList();
  }

  /** The tool {@code get_property_details}. */
  Object details(JsonObject arguments) throws ToolException {
    String id = text(arguments, "property_id");
    return all.stream()
        .filter(home -> home.id().equals(id))
        .findFirst()
        .orElseThrow(() -> new ToolException("there is no property " + id));
  }

  private static String text(JsonObject arguments, String name) throws ToolException {
    if (isNone(arguments.get(name))) {
      throw new ToolException(name + " is missing");
    }
    return arguments.get(name).getAsString();
  }

  private static boolean isNone(JsonElement value) {
    return value == null || value.isJsonNull();
  }
}
