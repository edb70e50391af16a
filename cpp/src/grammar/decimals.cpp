#include "grammar/decimals.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>

namespace selm::grammar {
namespace {

constexpr size_t kMostDigits = 15, kMostWholeDigits = 18;

int compare_digits(const Decimal& a, const Decimal& b) {
  if (a.whole.size() != b.whole.size()) return a.whole.size() < b.whole.size() ? -1 : 1;
  const int whole = a.whole.compare(b.whole);
  if (whole != 0) return whole < 0 ? -1 : 1;
  const int fraction = a.fraction.compare(b.fraction);
  return fraction == 0 ? 0 : fraction < 0 ? -1 : 1;
}

// Numbers from 0 up, with as many digits before the point as `digits`: a walk along the digits of both
// bounds, as long as they are what was written.
class Magnitudes {
 public:
  Magnitudes(const std::optional<Bound>& low, const std::optional<Bound>& high, const Numbers& wanted,
             Nfa* nfa)
      : low_(low), high_(high), wanted_(wanted), nfa_(nfa), end_(nfa->add()) {}

  uint32_t end() const { return end_; }

  void add(uint32_t from) {
    const size_t most = wanted_.whole_only ? kMostWholeDigits : kMostDigits;
    const size_t least = low_ ? low_->at.whole.size() : 1;
    for (digits_ = least; digits_ <= (high_ ? std::min(most, high_->at.whole.size()) : most); ++digits_) {
      const bool at_low = low_ && digits_ == low_->at.whole.size();
      const bool at_high = high_ && digits_ == high_->at.whole.size();
      nfa_->empty(from, state({0, at_low, at_high, 0}));
    }
  }

 private:
  struct Place {
    size_t read;  // digits, those after the point too
    bool at_low, at_high;
    uint32_t rest;  // of what was read, divided by multiple_of
    auto operator<=>(const Place&) const = default;
  };

  // The digit of a bound at a place: 0 after its last.
  static int digit(const Bound& bound, size_t place) {
    const Decimal& at = bound.at;
    if (place < at.whole.size()) return at.whole[place] - '0';
    return place - at.whole.size() < at.fraction.size() ? at.fraction[place - at.whole.size()] - '0' : 0;
  }
  static size_t length(const Bound& bound) { return bound.at.whole.size() + bound.at.fraction.size(); }

  bool may_end(const Place& place) const {
    if (place.rest != 0) return false;
    // Equal to the low bound so far: below it, if the bound goes on.
    if (place.at_low && (place.read < length(*low_) || low_->open)) return false;
    return !(place.at_high && place.read >= length(*high_) && high_->open);
  }

  uint32_t state(const Place& place) {
    // Free of both bounds, a whole number goes on in the same way however long it is going to be.
    const bool free = wanted_.whole_only && !place.at_low && !place.at_high && place.read > 0;
    const auto key = std::pair(free ? digits_ - place.read + 1000 : digits_,
                               free ? Place{0, false, false, place.rest} : place);
    const auto known = states_.find(key);
    if (known != states_.end()) return known->second;
    const uint32_t found = nfa_->add();
    states_.emplace(key, found);
    if (place.read < digits_) {
      read_digit(found, place);
      return found;
    }
    const bool after_point = place.read > digits_;
    if (may_end(place)) nfa_->empty(found, end_);
    if (wanted_.whole_only || place.read >= kMostDigits) return found;
    uint32_t at = found;
    if (!after_point) {
      at = nfa_->add();
      nfa_->edge(found, {'.', '.'}, at);
    }
    read_digit(at, place);
    return found;
  }

  void read_digit(uint32_t from, const Place& place) {
    const bool first_of_many = place.read == 0 && digits_ > 1;
    for (int d = first_of_many ? 1 : 0; d <= 9; ++d) {
      if (place.at_low && d < digit(*low_, place.read)) continue;
      if (place.at_high && d > digit(*high_, place.read)) continue;
      const Place next = {place.read + 1, place.at_low && d == digit(*low_, place.read),
                          place.at_high && d == digit(*high_, place.read),
                          (place.rest * 10 + static_cast<uint32_t>(d)) % wanted_.multiple_of};
      const auto symbol = static_cast<uint32_t>('0' + d);
      nfa_->edge(from, {symbol, symbol}, state(next));
    }
  }

  const std::optional<Bound>&low_, &high_;
  const Numbers& wanted_;
  Nfa* nfa_;
  uint32_t end_;
  size_t digits_ = 0;
  std::map<std::pair<size_t, Place>, uint32_t> states_;
};

std::optional<Bound> negated(const std::optional<Bound>& bound) {
  if (!bound) return bound;
  Bound found = *bound;
  found.at.negative = !found.at.negative && !found.at.zero();
  return found;
}

// Those of [low, high] from `zero` up.
void add_magnitudes(std::optional<Bound> low, const std::optional<Bound>& high, const Bound& zero,
                    const Numbers& wanted, uint32_t from, uint32_t to, Nfa* nfa) {
  if (!low || low->at.negative || (low->at.zero() && zero.open)) low = zero;
  if (high && high->at.negative) return;
  Magnitudes found(low, high, wanted, nfa);
  found.add(from);
  nfa->empty(found.end(), to);
}

}  // namespace

int Decimal::compare(const Decimal& a, const Decimal& b) {
  if (a.negative != b.negative) return a.negative ? -1 : 1;
  return a.negative ? compare_digits(b, a) : compare_digits(a, b);
}

Result<Decimal> decimal(std::string_view json) {
  Decimal found;
  if (json.starts_with('-')) {
    found.negative = true;
    json.remove_prefix(1);
  }
  const size_t e = std::min(json.find_first_of("eE"), json.size());
  const long power = e < json.size() ? std::strtol(std::string(json.substr(e + 1)).c_str(), nullptr, 10) : 0;
  const size_t point = std::min(json.find('.'), e);
  std::string digits(json.substr(0, point));
  if (point < e) digits += json.substr(point + 1, e - point - 1);
  if (digits.size() > 300 || power > 300 || power < -300)
    return error(Code::unsupported, "the number %.*s is too large or too long", 40,
                 std::string(json).c_str());
  long whole = static_cast<long>(point) + power;  // how many digits stand before the point
  if (whole < 1) {
    digits.insert(0, static_cast<size_t>(1 - whole), '0');
    whole = 1;
  }
  if (digits.size() < static_cast<size_t>(whole))
    digits.append(static_cast<size_t>(whole) - digits.size(), '0');
  found.whole = digits.substr(0, static_cast<size_t>(whole));
  found.fraction = digits.substr(static_cast<size_t>(whole));
  found.whole.erase(0, std::min(found.whole.find_first_not_of('0'), found.whole.size() - 1));
  found.fraction.erase(found.fraction.find_last_not_of('0') + 1);
  if (found.zero()) found.negative = false;
  return found;
}

Fragment numbers(const Numbers& wanted, Nfa* nfa) {
  const uint32_t from = nfa->add(), minus = nfa->add(), to = nfa->add();
  add_magnitudes(wanted.low, wanted.high, {{}, false}, wanted, from, to, nfa);
  nfa->edge(from, {'-', '-'}, minus);
  add_magnitudes(negated(wanted.high), negated(wanted.low), {{}, true}, wanted, minus, to, nfa);  // no -0
  return {from, to};
}

}  // namespace selm::grammar
