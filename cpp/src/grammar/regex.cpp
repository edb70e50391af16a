#include "grammar/regex.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "text/unicode.h"

namespace selm::grammar {
namespace {

// Stand before and after the string, any number of times, so that ^ and $ are symbols like any other.
constexpr uint32_t kBegin = kLastCodePoint + 1, kEnd = kLastCodePoint + 2;
constexpr uint32_t kMostRepeated = 10'000;
constexpr int kDeepest = 200;

Ranges digits() { return {{'0', '9'}}; }
Ranges word_characters() { return {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}}; }
Ranges line_ends() { return {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}; }
Ranges spaces() {
  return {{9, 13},          {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680}, {0x2000, 0x200A},
          {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
}

class Parser {
 public:
  Parser(std::string_view pattern, size_t limit) : text_(pattern), limit_(limit) {}

  Result<Dfa> parse() {
    SELM_ASSIGN(const Fragment pattern, alternatives(0));
    if (at_ != text_.size()) return fault("a ) without its (");
    const Fragment before = nfa_.any_number(nfa_.one_of({{0, kLastCodePoint}, {kBegin, kBegin}}));
    const Fragment after = nfa_.any_number(nfa_.one_of({{0, kEnd}}));
    const Fragment found = nfa_.then(nfa_.then(before, pattern), after);
    SELM_ASSIGN(const Dfa anywhere, deterministic(nfa_, found, limit_, after.from));
    return without_marks(anywhere);
  }

 private:
  Status fault(const char* what) const {
    return error(Code::invalid_argument, "the pattern \"%.*s\" has %s at byte %zu",
                 static_cast<int>(std::min<size_t>(text_.size(), 100)), text_.data(), what, at_);
  }
  Status cannot(const char* what) const {
    return error(Code::unsupported, "the pattern \"%.*s\" has %s, which an automaton cannot hold to",
                 static_cast<int>(std::min<size_t>(text_.size(), 100)), text_.data(), what);
  }

  // Only marks before the string and after it; then they are read as nothing.
  Result<Dfa> without_marks(const Dfa& anywhere) const {
    Dfa framed;
    framed.states.resize(3);
    framed.states[0] = {{{{0, kLastCodePoint}, 1}, {{kBegin, kBegin}, 0}, {{kEnd, kEnd}, 2}}, true};
    framed.states[1] = {{{{0, kLastCodePoint}, 1}, {{kEnd, kEnd}, 2}}, true};
    framed.states[2] = {{{{kEnd, kEnd}, 2}}, true};
    SELM_ASSIGN(const Dfa marked, both(anywhere, framed, limit_));
    Nfa bare;
    std::vector<uint32_t> number(marked.states.size());
    for (uint32_t& state : number) state = bare.add();
    const uint32_t end = bare.add();
    for (size_t i = 0; i < number.size(); ++i) {
      for (const Nfa::Edge& edge : marked.states[i].edges) {
        if (edge.on.high > kLastCodePoint) bare.empty(number[i], number[edge.to]);
        if (edge.on.low > kLastCodePoint) continue;
        const uint32_t high = std::min(edge.on.high, kLastCodePoint);
        for (const Range& range : complement(complement({{edge.on.low, high}})))  // no surrogates
          bare.edge(number[i], range, number[edge.to]);
      }
      if (marked.states[i].accepts) bare.empty(number[i], end);
    }
    return deterministic(bare, {number[0], end}, limit_);
  }

  bool more() const { return at_ < text_.size(); }
  bool take(char wanted) {
    if (!more() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }
  uint32_t next() {
    const text::Utf8Char found = text::read_utf8(text_, at_);
    at_ += found.length;
    return found.code;
  }

  Result<Fragment> alternatives(int depth) {
    if (depth > kDeepest) return cannot("too many nested groups");
    std::vector<Fragment> found;
    do {
      SELM_ASSIGN(const Fragment one, sequence(depth));
      found.push_back(one);
    } while (take('|'));
    return found.size() == 1 ? found[0] : nfa_.either(found);
  }

  Result<Fragment> sequence(int depth) {
    Fragment found = nfa_.nothing();
    while (more() && text_[at_] != '|' && text_[at_] != ')') {
      SELM_ASSIGN(const Fragment item, repeated(depth));
      found = nfa_.then(found, item);
    }
    return found;
  }

  // An atom and how often. Each repetition is read from the text again, as a fragment has one place.
  Result<Fragment> repeated(int depth) {
    const size_t begin = at_;
    SELM_ASSIGN(Fragment found, atom(depth));
    uint32_t least = 1;
    std::optional<uint32_t> most;
    SELM_ASSIGN(const bool several, quantifier(&least, &most));
    if (!several) return found;
    const size_t after = at_;
    const auto again = [&]() -> Result<Fragment> {
      if (nfa_.size() > limit_ * 4) return cannot("too many repetitions");
      at_ = begin;
      return atom(depth);
    };
    SELM_ASSIGN(found, nfa_.repeated(least, most, again));
    at_ = after;
    return found;
  }

  Result<bool> quantifier(uint32_t* least, std::optional<uint32_t>* most) {
    if (take('*')) {
      *least = 0;
    } else if (take('+')) {
      *least = 1;
    } else if (take('?')) {
      *least = 0, *most = 1;
    } else if (take('{')) {
      if (!count(least)) return fault("a { without a number");
      *most = *least;
      if (take(',')) {
        uint32_t value = 0;
        const bool limited = count(&value);
        *most = limited ? std::optional(value) : std::nullopt;
      }
      if (!take('}')) return fault("a { without its }");
      if (std::max(*least, most->value_or(0)) > kMostRepeated) return cannot("more than 10000 repetitions");
      if (*most && **most < *least) return fault("a {n,m} with m < n");
    } else {
      return false;
    }
    take('?');  // the shorter match first: the same strings
    return true;
  }

  bool count(uint32_t* value) {
    const size_t begin = at_;
    *value = 0;
    for (; more() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_)
      *value = std::min(*value * 10 + static_cast<uint32_t>(text_[at_] - '0'), kMostRepeated + 1);
    return at_ > begin;
  }

  Result<Fragment> atom(int depth) {
    switch (const char c = text_[at_]) {
      case '(':
        return group(depth);
      case '^':
        ++at_;
        return nfa_.one_of({{kBegin, kBegin}});
      case '$':
        ++at_;
        return nfa_.one_of({{kEnd, kEnd}});
      case '.':
        ++at_;
        return nfa_.one_of(complement(line_ends()));
      case '*':
      case '+':
      case '?':
        return fault("nothing to repeat");
      case '[': {
        ++at_;
        SELM_ASSIGN(const Ranges ranges, char_class());
        return nfa_.one_of(ranges);
      }
      case '\\': {
        ++at_;
        SELM_ASSIGN(const Ranges ranges, escape(false));
        return nfa_.one_of(ranges);
      }
      default: {
        (void)c;
        const uint32_t code = next();
        return nfa_.one_of({{code, code}});
      }
    }
  }

  Result<Fragment> group(int depth) {
    ++at_;
    if (take('?')) {
      const std::string_view rest = text_.substr(at_);
      if (rest.starts_with("=") || rest.starts_with("!") || rest.starts_with("<=") || rest.starts_with("<!"))
        return cannot("look-around");
      if (take('<')) {
        while (more() && text_[at_] != '>') ++at_;
        if (!take('>')) return fault("a group's name without its >");
      } else if (!take(':')) {
        return fault("a group of an unknown kind");
      }
    }
    SELM_ASSIGN(const Fragment found, alternatives(depth + 1));
    if (!take(')')) return fault("a ( without its )");
    return found;
  }

  Result<Ranges> char_class() {
    const bool negated = take('^');
    Ranges found;
    while (!take(']')) {
      SELM_ASSIGN(const Ranges low, class_atom());
      const bool range = more() && text_[at_] == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']';
      if (!range) {
        found.insert(found.end(), low.begin(), low.end());
        continue;
      }
      ++at_;
      SELM_ASSIGN(const Ranges high, class_atom());
      const bool single =
          low.size() == 1 && high.size() == 1 && low[0].low == low[0].high && high[0].low == high[0].high;
      if (!single || high[0].low < low[0].low) return fault("a range of no characters");
      found.push_back({low[0].low, high[0].low});
    }
    found = normalised(std::move(found));
    return negated ? complement(found) : found;
  }

  Result<Ranges> class_atom() {
    if (!more()) return fault("a [ without its ]");
    if (take('\\')) return escape(true);
    const uint32_t code = next();
    return Ranges{{code, code}};
  }

  Result<Ranges> escape(bool in_class) {
    if (!more()) return fault("a \\ before nothing");
    const char c = text_[at_];
    if (static_cast<unsigned char>(c) >= 0x80) {
      const uint32_t code = next();
      return Ranges{{code, code}};
    }
    ++at_;
    const auto just = [](uint32_t code) { return Ranges{{code, code}}; };
    switch (c) {
      case 'd':
        return digits();
      case 'D':
        return complement(digits());
      case 'w':
        return word_characters();
      case 'W':
        return complement(word_characters());
      case 's':
        return spaces();
      case 'S':
        return complement(spaces());
      case 't':
        return just('\t');
      case 'n':
        return just('\n');
      case 'r':
        return just('\r');
      case 'v':
        return just('\v');
      case 'f':
        return just('\f');
      case '0':
        return just(0);
      case 'x':
        return hex(2);
      case 'u':
        return unicode();
      case 'c':
        return more() ? just(static_cast<uint32_t>(text_[at_++]) & 31) : Result<Ranges>(fault("a \\c"));
      case 'b':
        if (in_class) return just('\b');
        return cannot("a word boundary");
      case 'B':
        return cannot("a word boundary");
      case 'p':
      case 'P':
        return cannot("a class of Unicode (\\p)");
      default:
        break;
    }
    if (c >= '1' && c <= '9') return cannot("a back reference");
    if (c == 'k' && !in_class) return cannot("a back reference");
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) return fault("an unknown escape");
    return just(static_cast<uint32_t>(c));
  }

  Result<Ranges> hex(size_t digits) {
    uint32_t code = 0;
    for (size_t i = 0; i < digits; ++i, ++at_) {
      const int digit = more() ? hex_digit(text_[at_]) : -1;
      if (digit < 0) return fault("an escape with too few digits");
      code = code * 16 + static_cast<uint32_t>(digit);
    }
    return Ranges{{code, code}};
  }

  static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c = static_cast<char>(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  }

  Result<Ranges> unicode() {
    if (!take('{')) {
      SELM_ASSIGN(const Ranges high, hex(4));
      if (high[0].low < 0xD800 || high[0].low > 0xDBFF || !text_.substr(at_).starts_with("\\u")) return high;
      at_ += 2;
      SELM_ASSIGN(const Ranges low, hex(4));  // a pair of surrogates is one code point
      if (low[0].low < 0xDC00 || low[0].low > 0xDFFF) return fault("half a surrogate pair");
      const uint32_t code = 0x10000 + ((high[0].low - 0xD800) << 10) + (low[0].low - 0xDC00);
      return Ranges{{code, code}};
    }
    uint32_t code = 0;
    const size_t begin = at_;
    for (; more() && hex_digit(text_[at_]) >= 0 && code <= kLastCodePoint; ++at_)
      code = code * 16 + static_cast<uint32_t>(hex_digit(text_[at_]));
    if (at_ == begin || code > kLastCodePoint || !take('}')) return fault("a \\u{} that is no code point");
    return Ranges{{code, code}};
  }

  std::string_view text_;
  size_t limit_;
  size_t at_ = 0;
  Nfa nfa_;
};

}  // namespace

Result<Dfa> regex(std::string_view pattern, size_t limit) { return Parser(pattern, limit).parse(); }

}  // namespace selm::grammar
