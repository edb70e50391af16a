#include "grammar/json.h"

#include <algorithm>
#include <cstdio>
#include <set>

#include "text/unicode.h"

namespace selm::grammar {
namespace {

constexpr int kDeepest = 200;

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  Result<Json> read() {
    SELM_ASSIGN(Json found, value(0));
    space();
    if (at_ != text_.size()) return fault("something after its end");
    return found;
  }

 private:
  Status fault(const char* what) const {
    return error(Code::invalid_argument, "the JSON has %s at byte %zu", what, at_);
  }
  void space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r'))
      ++at_;
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(std::string_view wanted) {
    if (!text_.substr(at_).starts_with(wanted)) return false;
    at_ += wanted.size();
    return true;
  }

  Result<Json> value(int depth) {
    if (depth > kDeepest) return fault("too deep a nesting");
    space();
    Json found;
    if (take("null")) return found;
    if (take("true") || take("false")) {
      found.kind = Json::Kind::boolean;
      found.truth = text_[at_ - 2] == 'u';
      return found;
    }
    if (peek() == '"') {
      found.kind = Json::Kind::string;
      SELM_TRY(string(&found.text));
      return found;
    }
    if (take("[")) return array(depth);
    if (take("{")) return object(depth);
    SELM_TRY(number(&found));
    return found;
  }

  Result<Json> array(int depth) {
    Json found;
    found.kind = Json::Kind::array;
    space();
    if (take("]")) return found;
    do {
      SELM_ASSIGN(Json item, value(depth + 1));
      found.items.push_back(std::move(item));
      space();
    } while (take(","));
    if (!take("]")) return fault("an array without its ]");
    return found;
  }

  Result<Json> object(int depth) {
    Json found;
    found.kind = Json::Kind::object;
    std::set<std::string> names;
    space();
    if (take("}")) return found;
    do {
      space();
      std::string name;
      SELM_TRY(string(&name));
      space();
      if (!take(":")) return fault("a name without its :");
      SELM_ASSIGN(Json item, value(depth + 1));
      if (!names.insert(name).second)
        std::erase_if(found.members, [&](const auto& member) { return member.first == name; });
      found.members.emplace_back(std::move(name), std::move(item));
      space();
    } while (take(","));
    if (!take("}")) return fault("an object without its }");
    return found;
  }

  Status number(Json* found) {
    const size_t begin = at_;
    const auto digits = [&] {
      const size_t first = at_;
      while (peek() >= '0' && peek() <= '9') ++at_;
      return at_ > first;
    };
    take("-");
    if (!take("0") && !digits()) return fault("no value");
    if (take(".") && !digits()) return fault("a . without digits");
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      if (!digits()) return fault("an exponent without digits");
    }
    found->kind = Json::Kind::number;
    found->text = text_.substr(begin, at_ - begin);
    return {};
  }

  Status string(std::string* found) {
    if (!take("\"")) return fault("a name that is no string");
    while (!take("\"")) {
      if (at_ >= text_.size()) return fault("a string without its end");
      const text::Utf8Char c = text::read_utf8(text_, at_);
      if (!c.valid || c.code < 0x20) return fault("a byte that no string may hold");
      if (c.code != '\\') {
        found->append(text_.substr(at_, c.length));
        at_ += c.length;
        continue;
      }
      ++at_;
      uint32_t code = 0;
      SELM_TRY(escape(&code));
      text::append_utf8(code, *found);
    }
    return {};
  }

  Status escape(uint32_t* code) {
    constexpr std::string_view kLetters = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    const size_t known = at_ < text_.size() ? kLetters.find(text_[at_]) : kLetters.npos;
    if (known != kLetters.npos) {
      ++at_;
      *code = static_cast<uint32_t>(kMeant[known]);
      return {};
    }
    SELM_TRY(four_digits(code));
    if (*code < 0xD800 || *code > 0xDFFF) return {};
    uint32_t low = 0;
    if (*code > 0xDBFF || !take("\\")) return fault("half a surrogate pair");
    SELM_TRY(four_digits(&low));
    if (low < 0xDC00 || low > 0xDFFF) return fault("half a surrogate pair");
    *code = 0x10000 + ((*code - 0xD800) << 10) + (low - 0xDC00);
    return {};
  }

  Status four_digits(uint32_t* code) {
    if (!take("u")) return fault("an unknown escape");
    *code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek(), letter = static_cast<char>(c | 0x20);
      const bool digit = c >= '0' && c <= '9';
      if (!digit && (letter < 'a' || letter > 'f')) return fault("an escape with too few digits");
      *code = *code * 16 + static_cast<uint32_t>(digit ? c - '0' : letter - 'a' + 10);
    }
    return {};
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

const Json* Json::find(std::string_view name) const {
  for (const auto& [each, value] : members)
    if (each == name) return &value;
  return nullptr;
}

Result<Json> parse_json(std::string_view text) { return Reader(text).read(); }

std::string quoted(std::string_view text) {
  std::string found = "\"";
  constexpr std::string_view kMeant = "\"\\\b\f\n\r\t", kLetters = "\"\\bfnrt";
  for (const char c : text) {
    const size_t known = kMeant.find(c);
    char escape[8];
    if (known != kMeant.npos) {
      found += {'\\', kLetters[known]};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
      found += escape;
    } else {
      found += c;
    }
  }
  return found + "\"";
}

}  // namespace selm::grammar
