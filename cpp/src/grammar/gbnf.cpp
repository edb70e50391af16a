#include "grammar/gbnf.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>

#include "grammar/spelling.h"
#include "text/unicode.h"

namespace selm::grammar {
namespace {

constexpr uint32_t kMostRepeated = 100'000;
constexpr int kDeepest = 200;

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {
    for (size_t i = 0; i < text.size(); ++i)
      if (text[i] == '\n') line_ends_.push_back(i);
  }

  Result<Grammar> parse() {
    rule_named("root");
    builder_.describe(0, "root");
    space(true);
    while (at_ < text_.size()) {
      SELM_TRY(rule());
      space(true);
    }
    return builder_.finish();
  }

 private:
  Status fault(const char* what) const {
    return error(Code::invalid_argument, "the grammar has %s in line %td", what, line());
  }
  std::ptrdiff_t line() const {
    return 1 + (std::lower_bound(line_ends_.begin(), line_ends_.end(), at_) - line_ends_.begin());
  }

  // And comments; line ends only where they do not end a rule.
  void space(bool lines) {
    for (; at_ < text_.size(); ++at_) {
      if (text_[at_] == '#')
        while (at_ + 1 < text_.size() && text_[at_ + 1] != '\n') ++at_;
      else if (text_[at_] != ' ' && text_[at_] != '\t' &&
               (!lines || (text_[at_] != '\n' && text_[at_] != '\r')))
        return;
    }
  }
  bool take(std::string_view wanted) {
    if (!text_.substr(at_).starts_with(wanted)) return false;
    at_ += wanted.size();
    return true;
  }

  std::string_view name() {
    const size_t begin = at_;
    const auto part = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
             c == '_';
    };
    while (at_ < text_.size() && part(text_[at_])) ++at_;
    return text_.substr(begin, at_ - begin);
  }

  std::string placed(std::string_view name) const {  // for errors
    return std::string(name) + " (line " + std::to_string(line()) + ")";
  }

  uint32_t rule_named(std::string_view name) {
    const auto [at, fresh] = rules_.emplace(std::string(name), 0);
    if (fresh) at->second = builder_.declare(placed(name));
    return at->second;
  }

  Status rule() {
    const std::string_view own = name();
    if (own.empty()) return fault("something that is no rule");
    const uint32_t number = rule_named(own);
    if (std::find(defined_.begin(), defined_.end(), number) != defined_.end())
      return fault("a second rule of one name");
    defined_.push_back(number);
    builder_.describe(number, placed(own));
    space(true);
    if (!take("::=")) return fault("a name without its ::=");
    space(true);
    nfa_ = Nfa();
    SELM_ASSIGN(const Fragment whole, alternatives(0));
    if (at_ < text_.size() && text_[at_] != '\n' && text_[at_] != '\r')
      return fault("something after a rule's end");
    return builder_.define(number, nfa_, whole);
  }

  Result<Fragment> alternatives(int depth) {
    if (depth > kDeepest) return fault("groups nested too deeply");
    std::vector<Fragment> found;
    while (true) {
      SELM_ASSIGN(const Fragment one, sequence(depth));
      found.push_back(one);
      const size_t before = at_;  // a line may begin with the | that goes on with the rule
      space(true);
      if (!take("|")) {
        if (depth == 0) at_ = before;
        return found.size() == 1 ? found[0] : nfa_.either(found);
      }
      space(true);
    }
  }

  Result<Fragment> sequence(int depth) {
    Fragment found = nfa_.nothing();
    while (true) {
      space(depth > 0);
      if (at_ == text_.size() || std::string_view("|)\r\n").find(text_[at_]) != std::string_view::npos)
        return found;
      SELM_ASSIGN(const Fragment one, repeated(depth));
      found = nfa_.then(found, one);
    }
  }

  // Each repetition is read from the text again, as a fragment has one place.
  Result<Fragment> repeated(int depth) {
    const size_t begin = at_;
    SELM_ASSIGN(const Fragment once, item(depth));
    uint32_t least = 1;
    std::optional<uint32_t> most;
    SELM_ASSIGN(const bool several, quantifier(&least, &most));
    if (!several) return once;
    const size_t after = at_;
    const auto again = [&]() -> Result<Fragment> {
      if (nfa_.size() > kMostStates)
        return Status(Code::unsupported, "the grammar repeats too much: it is too large");
      at_ = begin;
      return item(depth);
    };
    SELM_ASSIGN(const Fragment found, nfa_.repeated(least, most, again));
    at_ = after;
    return found;
  }

  Result<bool> quantifier(uint32_t* least, std::optional<uint32_t>* most) {
    const size_t before = at_;
    space(false);
    if (take("*")) {
      *least = 0;
    } else if (take("+")) {
      *least = 1;
    } else if (take("?")) {
      *least = 0, *most = 1;
    } else if (take("{")) {
      space(false);
      if (!count(least)) return fault("a { without a number");
      *most = *least;
      space(false);
      if (take(",")) {
        space(false);
        uint32_t value = 0;
        *most = count(&value) ? std::optional(value) : std::nullopt;
        space(false);
      }
      if (!take("}")) return fault("a { without its }");
      if (std::max(*least, most->value_or(0)) > kMostRepeated) return fault("more than 100000 repetitions");
      if (*most && **most < *least) return fault("a {m,n} with n < m");
    } else {
      at_ = before;
      return false;
    }
    return true;
  }

  bool count(uint32_t* value) {
    const size_t begin = at_;
    uint32_t found = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_)
      found = std::min(found * 10 + static_cast<uint32_t>(text_[at_] - '0'), kMostRepeated + 1);
    if (at_ > begin) *value = found;
    return at_ > begin;
  }

  Result<Fragment> item(int depth) {
    if (take("\"")) return literal();
    if (take("[")) return char_class();
    if (take(".")) return characters(complement({}));
    if (take("(")) {
      space(true);
      SELM_ASSIGN(const Fragment found, alternatives(depth + 1));
      space(true);
      if (!take(")")) return fault("a ( without its )");
      return found;
    }
    const std::string_view own = name();
    if (own.empty()) return fault("something that is neither text nor a rule's name");
    return Builder::calling(rule_named(own), &nfa_);
  }

  Fragment characters(const Ranges& ranges) {
    const Fragment found = {nfa_.add(), nfa_.add()};
    for (const Range& range : ranges) spell(range, Spelling::plain, found.from, found.to, &nfa_);
    return found;
  }

  Result<Fragment> literal() {
    Fragment found = nfa_.nothing();
    while (!take("\"")) {
      uint32_t code = 0;
      SELM_TRY(character(&code));
      found = nfa_.then(found, characters({{code, code}}));
    }
    return found;
  }

  Result<Fragment> char_class() {
    const bool negated = take("^");
    Ranges ranges;
    while (!take("]")) {
      Range range{};
      SELM_TRY(character(&range.low));
      range.high = range.low;
      if (at_ + 1 < text_.size() && text_[at_] == '-' && text_[at_ + 1] != ']') {
        ++at_;
        SELM_TRY(character(&range.high));
        if (range.high < range.low) return fault("a range of no characters");
      }
      ranges.push_back(range);
    }
    return characters(negated ? complement(ranges) : normalised(std::move(ranges)));
  }

  // One of a literal or a class.
  Status character(uint32_t* code) {
    if (at_ >= text_.size() || text_[at_] == '\n') return fault("a text or class without its end");
    if (!take("\\")) {
      const text::Utf8Char found = text::read_utf8(text_, at_);
      at_ += found.length;
      *code = found.code;
      return {};
    }
    if (at_ >= text_.size()) return fault("a \\ before nothing");
    const char c = text_[at_++];
    constexpr std::string_view kLetters = "nrt\"\\[]-^", kMeant = "\n\r\t\"\\[]-^";
    const size_t known = kLetters.find(c);
    if (known != kLetters.npos) {
      *code = static_cast<uint32_t>(kMeant[known]);
      return {};
    }
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0) return fault("an unknown escape");
    uint64_t value = 0;
    for (size_t i = 0; i < digits; ++i, ++at_) {
      const size_t digit =
          at_ < text_.size() ? std::string_view("0123456789abcdef").find(static_cast<char>(text_[at_] | 0x20))
                             : std::string_view::npos;
      if (digit == std::string_view::npos) return fault("an escape with too few digits");
      value = value * 16 + digit;
    }
    if (value > kLastCodePoint || (value >= 0xD800 && value <= 0xDFFF))
      return fault("an escape of no character");
    *code = static_cast<uint32_t>(value);
    return {};
  }

  std::string_view text_;
  std::vector<size_t> line_ends_;
  size_t at_ = 0;
  std::map<std::string, uint32_t> rules_;
  std::vector<uint32_t> defined_;
  Builder builder_;
  Nfa nfa_;
};

}  // namespace

Result<Grammar> gbnf(std::string_view text) { return Parser(text).parse(); }

}  // namespace selm::grammar
