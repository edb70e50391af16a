// Numbers within bounds, as automata over their digits.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "grammar/automaton.h"

namespace selm::grammar {

// A number without a power of ten: sign, digits before the point (without zeros in front, at least one) and
// after it (without zeros at the end).
struct Decimal {
  bool negative = false;
  std::string whole = "0", fraction;

  bool zero() const { return whole == "0" && fraction.empty(); }
  static int compare(const Decimal& a, const Decimal& b);  // -1, 0, 1
};
// Of a number as JSON writes it. Error: unsupported, where it has more than 300 digits.
Result<Decimal> decimal(std::string_view json);

struct Bound {
  Decimal at;
  bool open = false;  // `at` itself is beyond it
};
struct Numbers {
  std::optional<Bound> low, high;
  bool whole_only = false;
  uint32_t multiple_of = 1;  // of whole numbers
};

// Written without a power of ten, with at most 15 digits (18 where only whole numbers are wanted), so that a
// reader who makes a double of it finds it on the right side of every bound.
Fragment numbers(const Numbers& wanted, Nfa* nfa);

}  // namespace selm::grammar
