// Single values: enum and const, numbers, strings.
#include <algorithm>
#include <array>

#include "grammar/decimals.h"
#include "grammar/regex.h"
#include "grammar/schema_compiler.h"
#include "grammar/spelling.h"
#include "text/unicode.h"

namespace selm::grammar {
namespace {

constexpr size_t kMostPatternStates = 20'000;
constexpr uint32_t kLongest = 4096;  // a larger maxLength is held to this one
constexpr uint32_t kMostCounted = 1'000'000;
constexpr uint32_t kMostMultiple = 1000;

// What is said of the inside of arrays and objects.
constexpr std::array<std::string_view, 14> kInside = {"properties",
                                                      "additionalProperties",
                                                      "patternProperties",
                                                      "unevaluatedProperties",
                                                      "propertyNames",
                                                      "required",
                                                      "minProperties",
                                                      "maxProperties",
                                                      "items",
                                                      "prefixItems",
                                                      "unevaluatedItems",
                                                      "minItems",
                                                      "maxItems",
                                                      "uniqueItems"};

struct Format {
  std::string_view name, pattern;
};
// Narrower than their standards where a reader might be: every text is one by all of them.
#define SELM_DATE                                                                                            \
  "[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-" \
  "(?:0[1-9]|1[0-9]|2[0-8]))"
#define SELM_TIME \
  "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
#define SELM_OCTET "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
#define SELM_LABEL "[a-z0-9](?:[a-z0-9-]{0,20}[a-z0-9])?"
#define SELM_HOST SELM_LABEL "(?:\\." SELM_LABEL "){0,3}"
#define SELM_POINTER "(?:/(?:[^~/\"\\\\\\x00-\\x1f\\x7f-\\uffff]|~[01])*)*"
constexpr std::array kFormats = {
    Format{"date", SELM_DATE},
    Format{"time", SELM_TIME},
    Format{"date-time", SELM_DATE "T" SELM_TIME},
    Format{"duration", "P(?:[0-9]{1,4}W|[0-9]{1,4}D(?:T[0-9]{1,4}[HMS])?|T[0-9]{1,4}[HMS])"},
    Format{"uuid", "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"},
    Format{"email", "[A-Za-z0-9]+(?:[._%+-][A-Za-z0-9]+)*@" SELM_LABEL "(?:\\." SELM_LABEL "){1,3}"},
    Format{"hostname", SELM_HOST},
    Format{"ipv4", SELM_OCTET "(?:\\." SELM_OCTET "){3}"},
    Format{"ipv6", "(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}"},
    Format{"uri",
           "https?://" SELM_HOST "(?::[1-9][0-9]{1,3})?(?:/[A-Za-z0-9._~-]*)*(?:\\?[A-Za-z0-9=&_-]*)?"},
    Format{"uri-reference", "(?:https?://" SELM_HOST ")?(?:/[A-Za-z0-9._~-]+)+"},
    Format{"json-pointer", SELM_POINTER},
    Format{"relative-json-pointer", "(?:0|[1-9][0-9]{0,3})(?:#|" SELM_POINTER ")"},
    Format{"regex", "[A-Za-z0-9 _-]*"},
};
// Those of more characters: what is written is of fewer.
constexpr std::array kWiderFormats = {
    std::pair<std::string_view, std::string_view>{"idn-email", "email"},
    std::pair<std::string_view, std::string_view>{"idn-hostname", "hostname"},
    std::pair<std::string_view, std::string_view>{"iri", "uri"},
    std::pair<std::string_view, std::string_view>{"iri-reference", "uri-reference"},
    std::pair<std::string_view, std::string_view>{"uri-template", "uri"},
};
#undef SELM_POINTER
#undef SELM_DATE
#undef SELM_TIME
#undef SELM_OCTET
#undef SELM_LABEL
#undef SELM_HOST

bool accepts(const Dfa& dfa, std::string_view text) {
  int64_t state = 0;
  for (size_t at = 0; at < text.size() && state >= 0;) {
    const text::Utf8Char c = text::read_utf8(text, at);
    state = dfa.step(static_cast<uint32_t>(state), c.code);
    at += c.length;
  }
  return state >= 0 && dfa.states[static_cast<size_t>(state)].accepts;
}

Dfa of_length(uint32_t least, std::optional<uint32_t> most) {
  Dfa found;
  const uint32_t last = most.value_or(least);
  const Ranges any = complement({});
  for (uint32_t i = 0; i <= last; ++i) {
    Dfa::State state{{}, i >= least};
    if (i < last || !most)
      for (const Range& range : any) state.edges.push_back({range, std::min(i + 1, last)});
    found.states.push_back(std::move(state));
  }
  return found;
}

unsigned kind_of(const Json& value) {
  switch (value.kind) {
    case Json::Kind::null:
      return kinds::null;
    case Json::Kind::boolean:
      return kinds::boolean;
    case Json::Kind::string:
      return kinds::string;
    case Json::Kind::array:
      return kinds::array;
    case Json::Kind::object:
      return kinds::object;
    case Json::Kind::number:
      break;
  }
  const Result<Decimal> number = decimal(value.text);
  return number.ok() && number.value().fraction.empty() ? kinds::whole : kinds::fractional;
}

bool same_number(const Json& a, const Json& b) {
  const Result<Decimal> x = decimal(a.text), y = decimal(b.text);
  return x.ok() && y.ok() && Decimal::compare(x.value(), y.value()) == 0;
}

// The bounds of all demands; the narrower of two holds.
Status narrow(const Json& schema, Numbers* wanted) {
  const auto bound = [&](const char* name, const char* exclusive, bool low) -> Status {
    std::optional<Bound>& held = low ? wanted->low : wanted->high;
    const auto take = [&](const Json* value, bool open) -> Status {
      if (!value) return {};
      SELM_ASSIGN(const Decimal at, decimal(value->text));
      const int order = held ? Decimal::compare(at, held->at) * (low ? 1 : -1) : 1;
      if (order > 0 || (order == 0 && open)) held = Bound{at, open};
      return {};
    };
    const Json* draft4 = keyword(schema, exclusive, Json::Kind::boolean);
    SELM_TRY(take(keyword(schema, name, Json::Kind::number), draft4 && draft4->truth));
    return take(keyword(schema, exclusive, Json::Kind::number), true);
  };
  SELM_TRY(bound("minimum", "exclusiveMinimum", true));
  return bound("maximum", "exclusiveMaximum", false);
}

bool within(const Decimal& number, const Numbers& wanted) {
  if (wanted.low) {
    const int order = Decimal::compare(number, wanted.low->at);
    if (order < 0 || (order == 0 && wanted.low->open)) return false;
  }
  if (!wanted.high) return true;
  const int order = Decimal::compare(number, wanted.high->at);
  return order < 0 || (order == 0 && !wanted.high->open);
}

}  // namespace

// As values, so that 1 is 1.0, and the order of members means nothing.
bool same(const Json& a, const Json& b) {
  if (a.kind != b.kind) return false;
  if (a.is(Json::Kind::number)) return same_number(a, b);
  const auto same_member = [&](const auto& member) {
    const Json* other = b.find(member.first);
    return other && same(member.second, *other);
  };
  return a.truth == b.truth && a.text == b.text && a.members.size() == b.members.size() &&
         std::equal(a.items.begin(), a.items.end(), b.items.begin(), b.items.end(), same) &&
         std::all_of(a.members.begin(), a.members.end(), same_member);
}

Result<std::optional<std::vector<const Json*>>> SchemaCompiler::listed(const Demands& demands) {
  const Json* list = nullptr;
  std::vector<const Json*> values;
  for (const Demand& demand : demands) {
    if (const Json* value = demand.schema->find("const")) {
      values.assign(1, value);
      list = value;
      break;
    }
    const Json* all = keyword(*demand.schema, "enum", Json::Kind::array);
    if (!all || list) continue;
    list = all;
    for (const Json& item : all->items) values.push_back(&item);
  }
  if (!list) return std::optional<std::vector<const Json*>>();
  std::vector<const Json*> found;
  for (const Json* value : values) {
    SELM_ASSIGN(const bool ok, meets(*value, demands, list));
    if (ok) found.push_back(value);
  }
  return std::optional(std::move(found));
}

// Whether a value that is written out in the schema is valid. What a schema says of the inside of arrays and
// objects is not looked at: enough to refuse is that it says anything. `source`: the enum that the value is
// of.
Result<bool> SchemaCompiler::meets(const Json& value, const Demands& demands, const Json* source) {
  if ((kinds_of(demands) & kind_of(value)) == 0) {
    const bool typed = std::any_of(demands.begin(), demands.end(), [](const Demand& demand) {
      return demand.schema->find("type") != nullptr;
    });
    if (typed) return false;
  }
  Numbers bounds;
  for (const Demand& demand : demands) {
    const Json& schema = *demand.schema;
    if (const Json* only = schema.find("const"); only && !same(*only, value)) return false;
    if (const Json* list = keyword(schema, "enum", Json::Kind::array); list && list != source)
      if (std::none_of(list->items.begin(), list->items.end(),
                       [&](const Json& one) { return same(one, value); }))
        return false;
    SELM_TRY(narrow(schema, &bounds));
    if (value.is(Json::Kind::number) && schema.find("multipleOf")) return unsupported("enum with multipleOf");
    const bool inside = std::any_of(kInside.begin(), kInside.end(),
                                    [&](std::string_view name) { return schema.find(name) != nullptr; });
    if (inside && (value.is(Json::Kind::object) || value.is(Json::Kind::array)))
      return unsupported("enum or const of objects or arrays, with rules for what is inside");
  }
  if (value.is(Json::Kind::number)) {
    SELM_ASSIGN(const Decimal number, decimal(value.text));
    return within(number, bounds);
  }
  if (!value.is(Json::Kind::string)) return true;
  SELM_ASSIGN(const std::optional<Dfa>* strings, string_dfa(demands));
  return !*strings || accepts(**strings, value.text);
}

Fragment SchemaCompiler::written(const Json& value, Nfa* nfa) const {
  switch (value.kind) {
    case Json::Kind::null:
      return nfa->literal("null");
    case Json::Kind::boolean:
      return nfa->literal(value.truth ? "true" : "false");
    case Json::Kind::number:
      return nfa->literal(value.text);
    case Json::Kind::string:
      return nfa->literal(quoted(value.text));
    case Json::Kind::array:
    case Json::Kind::object:
      break;
  }
  const bool array = value.is(Json::Kind::array);
  Fragment found = nfa->literal(array ? "[" : "{");
  const size_t count = array ? value.items.size() : value.members.size();
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) found = nfa->then(found, separator(',', nfa));
    if (!array) {
      found = nfa->then(found, nfa->literal(quoted(value.members[i].first)));
      found = nfa->then(found, separator(':', nfa));
    }
    found = nfa->then(found, written(array ? value.items[i] : value.members[i].second, nfa));
  }
  return nfa->then(found, nfa->literal(array ? "]" : "}"));
}

Result<Fragment> SchemaCompiler::number(const Demands& demands, bool whole_only, Nfa* nfa) {
  Numbers wanted;
  wanted.whole_only = whole_only;
  for (const Demand& demand : demands) {
    SELM_TRY(narrow(*demand.schema, &wanted));
    const Json* multiple = keyword(*demand.schema, "multipleOf", Json::Kind::number);
    if (!multiple) continue;
    SELM_ASSIGN(const Decimal of, decimal(multiple->text));
    if (!of.fraction.empty() || of.negative || of.zero() || of.whole.size() > 4 ||
        std::stoul(of.whole) > kMostMultiple)
      return unsupported("a multipleOf that is not a whole number up to 1000");
    const auto own = static_cast<uint32_t>(std::stoul(of.whole));
    if (wanted.multiple_of != 1 && own != 1 && wanted.multiple_of != own)
      return unsupported("two multipleOf");
    wanted.multiple_of = std::max(wanted.multiple_of, own);
    wanted.whole_only = true;
  }
  return numbers(wanted, nfa);
}

Result<SchemaCompiler::Count> SchemaCompiler::count(const Demands& demands, std::string_view least,
                                                    std::string_view most) const {
  Count found;
  for (const Demand& demand : demands) {
    for (const auto& [name, low] : {std::pair(least, true), std::pair(most, false)}) {
      const Json* value = demand.schema->find(name);
      if (!value) continue;
      if (!value->is(Json::Kind::number)) return wrong("a count that is no number");
      SELM_ASSIGN(const Decimal number, decimal(value->text));
      if (!number.fraction.empty() || number.negative) return wrong("a count that is no count");
      const uint32_t own =
          number.whole.size() > 6 ? kMostCounted : static_cast<uint32_t>(std::stoul(number.whole));
      if (low)
        found.least = std::max(found.least, own);
      else
        found.most = std::min(found.most.value_or(own), own);
    }
  }
  return found;
}

std::string SchemaCompiler::string_key(const Demands& demands) {
  std::string found;
  for (const Demand& demand : demands)
    for (const char* name : {"pattern", "format", "minLength", "maxLength"})
      if (const Json* value = demand.schema->find(name)) found += name + quoted(value->text);
  return found;
}

Result<const std::optional<Dfa>*> SchemaCompiler::string_dfa(const Demands& demands) {
  const std::string key = string_key(demands);
  auto known = string_dfas_.find(key);
  if (known == string_dfas_.end()) {
    SELM_ASSIGN(std::optional<Dfa> made, new_string_dfa(demands));
    known = string_dfas_.emplace(key, std::move(made)).first;
  }
  return &known->second;
}

Result<std::optional<Dfa>> SchemaCompiler::new_string_dfa(const Demands& demands) const {
  SELM_ASSIGN(Count length, count(demands, "minLength", "maxLength"));
  if (length.least > kLongest) return unsupported("a minLength of more than 4096");
  if (length.most && *length.most > kLongest) length.most = kLongest;
  std::optional<Dfa> found;
  const auto add = [&](const Dfa& own) -> Status {
    if (!found) {
      found = own;
      return {};
    }
    SELM_ASSIGN(found, both(*found, own, kMostPatternStates));
    return {};
  };
  for (const Demand& demand : demands) {
    if (const Json* pattern = keyword(*demand.schema, "pattern", Json::Kind::string)) {
      SELM_ASSIGN(const Dfa own, regex(pattern->text, kMostPatternStates));
      SELM_TRY(add(own));
    }
    const Json* format = keyword(*demand.schema, "format", Json::Kind::string);
    std::string_view name = format ? format->text : std::string_view();
    for (const auto& [wider, own] : kWiderFormats)
      if (name == wider) name = own;
    for (const Format& known : kFormats) {  // others are remarks
      if (name != known.name) continue;
      SELM_ASSIGN(const Dfa own, regex("^(?:" + std::string(known.pattern) + ")$", kMostPatternStates));
      SELM_TRY(add(own));
    }
  }
  if (length.least > 0 || length.most) {
    if (length.most && *length.most < length.least) {
      Dfa none;
      none.states.resize(1);
      return std::optional(none);
    }
    SELM_TRY(add(of_length(length.least, length.most)));
  }
  return found;
}

Result<Fragment> SchemaCompiler::string(const Demands& demands, Nfa* nfa) {
  SELM_ASSIGN(const std::optional<Dfa>* wanted, string_dfa(demands));
  const auto [at, fresh] = strings_.emplace(string_key(demands), 0);
  if (fresh) {
    at->second = builder_.declare("a string of #" + path_);
    Nfa own;
    const Fragment inner = spelled(*wanted ? **wanted : of_length(0, std::nullopt), Spelling::json, &own);
    SELM_TRY(
        builder_.define(at->second, own, own.then(own.then(own.literal("\""), inner), own.literal("\""))));
  }
  return Builder::calling(at->second, nfa);
}

}  // namespace selm::grammar
