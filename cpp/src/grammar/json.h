// JSON (RFC 8259), as far as a schema needs it: read strictly, numbers as they are written.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"

namespace selm::grammar {

struct Json {
  enum class Kind { null, boolean, number, string, array, object };

  Kind kind = Kind::null;
  bool truth = false;
  std::string text;  // of a string; of a number, as written
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;  // a name that stands twice counts where it stands last

  bool is(Kind wanted) const { return kind == wanted; }
  const Json* find(std::string_view name) const;  // of an object; nullptr where it is not there
  bool operator==(const Json&) const = default;
};

// Error: invalid_argument, with the byte.
Result<Json> parse_json(std::string_view text);
// A string with its quotes, as this core writes JSON (spelling.h).
std::string quoted(std::string_view text);

}  // namespace selm::grammar
