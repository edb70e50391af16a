// Arrays and objects.
#include <algorithm>
#include <map>

#include "grammar/regex.h"
#include "grammar/schema_compiler.h"
#include "grammar/spelling.h"
#include "text/unicode.h"

namespace selm::grammar {
namespace {

constexpr size_t kMostNameStates = 20'000;
constexpr uint32_t kMostCounted = 10'000;  // items or members that a state is kept for
constexpr size_t kMostUnique = 10, kMostMembers = 2000, kMostObjectStates = 100'000;

const Json kNever = [] {
  Json found;
  found.kind = Json::Kind::boolean;
  return found;
}();

// These strings and no others, by their code points.
Result<Dfa> just(const std::vector<std::string>& texts) {
  Nfa nfa;
  const uint32_t from = nfa.add(), to = nfa.add();
  for (const std::string& text : texts) {
    uint32_t at = from;
    for (size_t i = 0; i < text.size();) {
      const text::Utf8Char c = text::read_utf8(text, i);
      const uint32_t next = nfa.add();
      nfa.edge(at, {c.code, c.code}, next);
      at = next;
      i += c.length;
    }
    nfa.empty(at, to);
  }
  return deterministic(nfa, {from, to}, kMostNameStates);
}

}  // namespace

Fragment SchemaCompiler::separator(char c, Nfa* nfa) const {
  return nfa->then(nfa->literal(std::string(1, c)), nfa->maybe(nfa->literal(" ")));
}

// --- arrays ------------------------------------------------------------------------------------------------

// What the schema says of the items after those that it lists.
const Json* SchemaCompiler::additional_items(const Json& schema) {
  const Json* found = schema.find("items");
  if (found && found->is(Json::Kind::array)) found = schema.find("additionalItems");
  return found ? found : schema.find("unevaluatedItems");
}

// What the item at a place has to meet: prefixItems, or draft 4's list of items; then items, or
// additionalItems.
Demands SchemaCompiler::item_demands(const Demands& demands, size_t place) const {
  Demands found;
  for (const Demand& demand : demands) {
    const Json* prefix = keyword(*demand.schema, "prefixItems", Json::Kind::array);
    if (const Json* list = keyword(*demand.schema, "items", Json::Kind::array)) prefix = list;
    const Json* rest = additional_items(*demand.schema);
    if (prefix && place < prefix->items.size())
      found.push_back({&prefix->items[place]});
    else if (rest)
      found.push_back({rest});
  }
  return found;
}

Result<Fragment> SchemaCompiler::array(const Demands& demands, Nfa* nfa) {
  SELM_ASSIGN(Count length, count(demands, "minItems", "maxItems"));
  size_t prefix = 0;
  bool open = true, unique = false;  // items after the prefix, too
  for (const Demand& demand : demands) {
    const Json* list = keyword(*demand.schema, "prefixItems", Json::Kind::array);
    if (!list) list = keyword(*demand.schema, "items", Json::Kind::array);
    if (list) prefix = std::max(prefix, list->items.size());
    if (list && !additional_items(*demand.schema)) open = false;
    const Json* distinct = keyword(*demand.schema, "uniqueItems", Json::Kind::boolean);
    unique = unique || (distinct && distinct->truth);
  }
  if (!open && length.least <= prefix)
    length.most = std::min<uint32_t>(length.most.value_or(kMostCounted), static_cast<uint32_t>(prefix));
  if (length.least > kMostCounted) return unsupported("a minItems of more than 10000");
  if (length.most && *length.most > kMostCounted) length.most = kMostCounted;
  if (unique && length.most.value_or(2) > 1) {
    if (prefix > 0) return unsupported("uniqueItems of a list of different items");
    return unique_items(item_demands(demands, 0), length, nfa);
  }
  const std::string before = path_;
  // Places that have states of their own; those after them are all alike.
  const uint32_t places =
      std::max({length.least, length.most.value_or(0), static_cast<uint32_t>(prefix), 1u});
  const Fragment whole = {nfa->add(), nfa->add()};
  const Fragment opening = nfa->literal("["), closing = nfa->literal("]");
  nfa->empty(whole.from, opening.from);
  nfa->empty(closing.to, whole.to);
  uint32_t at = opening.to;  // where the item of this place begins
  if (length.least == 0) nfa->empty(at, closing.from);
  uint32_t rest_rule = 0;
  for (uint32_t i = 0; i < places && i < length.most.value_or(places); ++i) {
    path_ = before + (i < prefix ? "/prefixItems/" + std::to_string(i) : "/items");
    if (i <= prefix) {
      SELM_ASSIGN(rest_rule, value_rule(item_demands(demands, i)));
    }
    const Fragment item = Builder::calling(rest_rule, nfa);
    nfa->empty(at, item.from);
    if (i + 1 >= length.least) nfa->empty(item.to, closing.from);
    const Fragment comma = separator(',', nfa);
    if (i + 1 < length.most.value_or(i + 2)) nfa->empty(item.to, comma.from);
    at = comma.to;
  }
  if (!length.most) {
    path_ = before + "/items";
    if (places <= prefix) {
      SELM_ASSIGN(rest_rule, value_rule(item_demands(demands, prefix)));
    }
    const Fragment item = Builder::calling(rest_rule, nfa), comma = separator(',', nfa);
    nfa->empty(at, item.from);
    nfa->empty(item.to, closing.from);
    nfa->empty(item.to, comma.from);
    nfa->empty(comma.to, item.from);
  }
  path_ = before;
  return whole;
}

// Of few values each at most once: a state for each set of those that are there.
Result<Fragment> SchemaCompiler::unique_items(const Demands& items, const Count& count, Nfa* nfa) {
  SELM_ASSIGN(const auto flat, flattened(items));
  if (!flat) return unsupported("uniqueItems of items that cannot be");
  SELM_TRY(check_keywords(*flat));
  for (const Demand& demand : *flat)
    if (demand.schema->find("anyOf") || demand.schema->find("oneOf"))
      return unsupported("uniqueItems of items with alternatives");
  SELM_ASSIGN(auto values, listed(*flat));
  if (!values || values->size() > kMostUnique) return unsupported("uniqueItems of more than ten values");
  for (size_t i = 0; i < values->size(); ++i)  // a value may stand twice in an enum
    values->erase(std::remove_if(values->begin() + static_cast<std::ptrdiff_t>(i) + 1, values->end(),
                                 [&](const Json* other) { return same(*(*values)[i], *other); }),
                  values->end());
  const size_t sets = size_t{1} << values->size();
  const Fragment opening = nfa->literal("["), closing = nfa->literal("]");
  std::vector<uint32_t> state(sets);
  for (uint32_t& each : state) each = nfa->add();
  nfa->empty(opening.to, state[0]);
  for (size_t set = 0; set < sets; ++set) {
    const auto size = static_cast<uint32_t>(__builtin_popcountll(set));
    if (size >= count.least && size <= count.most.value_or(size)) nfa->empty(state[set], closing.from);
    if (size >= count.most.value_or(size + 1)) continue;
    uint32_t from = state[set];
    if (size > 0) {
      const Fragment comma = separator(',', nfa);
      nfa->empty(from, comma.from);
      from = comma.to;
    }
    for (size_t i = 0; i < values->size(); ++i) {
      if (set >> i & 1) continue;
      const Fragment item = written(*(*values)[i], nfa);
      nfa->empty(from, item.from);
      nfa->empty(item.to, state[set | size_t{1} << i]);
    }
  }
  return Fragment{opening.from, closing.to};
}

// --- objects -----------------------------------------------------------------------------------------------

// What the schema says of members that it does not name.
const Json* SchemaCompiler::additional(const Json& schema) {
  const Json* found = schema.find("additionalProperties");
  return found ? found : schema.find("unevaluatedProperties");
}

// The declared members in their order; what each schema says of a name holds, the others' word for unnamed
// members too.
Status SchemaCompiler::properties(const Demands& demands, std::vector<Property>* found) {
  const auto add = [&](const std::string& name) -> Property& {
    for (Property& known : *found)
      if (known.name == name) return known;
    found->push_back({name, {}, false});
    return found->back();
  };
  for (const Demand& demand : demands)
    for (const char* name : {"properties", "required"})
      if (const Json* list = demand.schema->find(name))
        if (list->members.size() + list->items.size() > kMostMembers)
          return unsupported("more than 2000 members");
  for (const Demand& demand : demands) {
    const Json* declared = keyword(*demand.schema, "properties", Json::Kind::object);
    if (declared)
      for (const auto& member : declared->members) add(member.first);
    const Json* required = keyword(*demand.schema, "required", Json::Kind::array);
    if (required)
      for (const Json& name : required->items) add(name.text).required = true;
  }
  std::vector<std::string> listed_names;
  SELM_ASSIGN(const std::optional<Dfa> names, allowed_names(demands, &listed_names));
  for (const std::string& name : listed_names) add(name);
  std::map<const Json*, Dfa> patterns;  // by the schema of the members
  for (const Demand& demand : demands) {
    const Json* own = keyword(*demand.schema, "patternProperties", Json::Kind::object);
    if (!own) continue;
    for (const auto& [pattern, value] : own->members) {
      SELM_ASSIGN(patterns[&value], regex(pattern, kMostNameStates));
    }
  }
  for (Property& property : *found) {
    const auto is_of = [&](const Dfa& names) -> Result<bool> {
      SELM_ASSIGN(const Dfa name, just({property.name}));
      SELM_ASSIGN(const Dfa common, both(name, names, kMostNameStates));
      return !common.accepts_nothing();
    };
    for (const Demand& demand : demands) {
      const Json* declared = keyword(*demand.schema, "properties", Json::Kind::object);
      const Json* own = declared ? declared->find(property.name) : nullptr;
      bool named = own != nullptr;
      if (own) property.demands.push_back({own});
      if (const Json* more = keyword(*demand.schema, "patternProperties", Json::Kind::object)) {
        for (const auto& [pattern, value] : more->members) {
          SELM_ASSIGN(const bool matches, is_of(patterns[&value]));
          if (!matches) continue;
          property.demands.push_back({&value});
          named = true;
        }
      }
      if (const Json* rest = named ? nullptr : additional(*demand.schema)) property.demands.push_back({rest});
    }
    if (!names) continue;
    SELM_ASSIGN(const bool may_be, is_of(*names));
    if (!may_be) property.demands.push_back({&kNever});
  }
  return {};
}

// The names that all propertyNames leave, each by itself too where there is an enum of them; nothing where
// any name is meant.
Result<std::optional<Dfa>> SchemaCompiler::allowed_names(const Demands& demands,
                                                         std::vector<std::string>* listed_names) {
  Demands wanted;
  for (const Demand& demand : demands)
    if (const Json* name = demand.schema->find("propertyNames")) wanted.push_back({name});
  if (wanted.empty()) return std::optional<Dfa>();
  SELM_ASSIGN(const auto flat, flattened(wanted));
  if (!flat || (kinds_valid(*flat) & kinds::string) == 0) {
    SELM_ASSIGN(Dfa none, just({}));
    return std::optional(std::move(none));
  }
  SELM_TRY(check_keywords(*flat));
  for (const Demand& demand : *flat)
    if (demand.schema->find("anyOf") || demand.schema->find("oneOf"))
      return unsupported("propertyNames with alternatives");
  SELM_ASSIGN(const auto values, listed(*flat));
  if (!values) {
    SELM_ASSIGN(const std::optional<Dfa>* strings, string_dfa(*flat));
    return *strings;
  }
  for (const Json* each : *values)
    if (each->is(Json::Kind::string)) listed_names->push_back(each->text);
  SELM_ASSIGN(Dfa found, just(*listed_names));
  return std::optional(std::move(found));
}

// Members with names that are not declared: written only where the schema speaks of them.
Status SchemaCompiler::extras(const Demands& demands, const std::vector<Property>& properties,
                              std::vector<Extra>* found) {
  bool spoken_of = false, declared = false;
  Demands rest, beside_patterns;  // what holds for other names, and for those of a pattern
  const Json* patterns = nullptr;
  for (const Demand& demand : demands) {
    const Json& schema = *demand.schema;
    declared = declared || schema.find("properties");
    const Json* own = additional(schema);
    if (own && !(own->is(Json::Kind::boolean) && !own->truth)) spoken_of = true;
    if (schema.find("propertyNames") || schema.find("minProperties")) spoken_of = true;
    const Json* more = keyword(schema, "patternProperties", Json::Kind::object);
    if (more && patterns) return unsupported("patternProperties in several schemas of one value");
    if (more) patterns = more;
    if (own) rest.push_back({own});
    if (own && !more) beside_patterns.push_back({own});
  }
  if (declared && !spoken_of && !patterns) return {};
  std::vector<std::string> taken;
  for (const Property& property : properties) taken.push_back(property.name);
  SELM_ASSIGN(const Dfa known, just(taken));
  Dfa free = inverted(known);
  SELM_ASSIGN(const std::optional<Dfa> names, allowed_names(demands, &taken));
  if (names) {
    SELM_ASSIGN(free, both(free, *names, kMostNameStates));
  }
  if (patterns) {
    std::vector<Dfa> matching;
    for (const auto& [pattern, value] : patterns->members) {
      SELM_ASSIGN(Dfa own, regex(pattern, kMostNameStates));
      matching.push_back(std::move(own));
    }
    const Dfa all = free;
    for (size_t i = 0; i < matching.size(); ++i) {
      SELM_ASSIGN(free, both(free, inverted(matching[i]), kMostNameStates));
      SELM_ASSIGN(Dfa own, both(all, matching[i], kMostNameStates));
      for (size_t j = 0; j < matching.size();
           ++j) {  // a name of two patterns, for which both hold, is left out
        if (i == j) continue;
        SELM_ASSIGN(own, both(own, inverted(matching[j]), kMostNameStates));
      }
      Demands wanted = beside_patterns;
      wanted.push_back({&patterns->members[i].second});
      if (!own.accepts_nothing()) found->push_back({std::move(own), std::move(wanted)});
    }
  }
  const bool closed = std::any_of(rest.begin(), rest.end(), [](const Demand& demand) {
    return demand.schema->is(Json::Kind::boolean) && !demand.schema->truth;
  });
  if (!closed && (spoken_of || !declared) && !free.accepts_nothing() && !(patterns && !spoken_of))
    found->push_back({std::move(free), rest});
  return {};
}

// A state for each declared member that comes next and each count of members written. A name that is not
// declared may stand twice, which no automaton can keep apart: towards minProperties one of them counts.
Result<Fragment> SchemaCompiler::object(const Demands& demands, Nfa* nfa) {
  std::vector<Property> members;
  std::vector<Extra> others;
  SELM_TRY(properties(demands, &members));
  SELM_TRY(extras(demands, members, &others));
  SELM_ASSIGN(Count size, count(demands, "minProperties", "maxProperties"));
  if (!others.empty() && size.least > members.size() + 1)
    return unsupported("a minProperties of members that are not named: names might repeat");
  if (size.least > members.size() + others.size()) return never(nfa);
  if (size.most && others.empty() && *size.most >= members.size()) size.most.reset();
  if (size.most) size.most = std::min(*size.most, kMostCounted);
  const uint32_t last = size.most.value_or(std::max(size.least, 1u));  // from there on no count matters
  if (members.size() * last > kMostObjectStates) return unsupported("too many members to be counted");
  const std::string before = path_;
  const Fragment opening = nfa->literal("{"), closing = nfa->literal("}");
  std::vector<uint32_t> at(last + 1), next(last + 1);  // by how many are written
  for (uint32_t& state : at) state = nfa->add();
  nfa->empty(opening.to, at[0]);
  const auto write = [&](uint32_t count_now, uint32_t to, Fragment name, uint32_t rule) {
    uint32_t from = at[count_now];
    if (count_now > 0) {
      const Fragment comma = separator(',', nfa);
      nfa->empty(from, comma.from);
      from = comma.to;
    }
    nfa->empty(from, name.from);
    const Fragment member = nfa->then(nfa->then(name, separator(':', nfa)), Builder::calling(rule, nfa));
    nfa->empty(member.to, to);
  };
  const uint32_t end = size.most ? last : last + 1;  // at the last count no more are allowed, or any number
  for (uint32_t i = 0; i < members.size(); ++i) {
    path_ = before + "/properties/" + members[i].name;
    SELM_ASSIGN(const uint32_t rule, value_rule(members[i].demands));
    for (uint32_t& state : next) state = nfa->add();
    for (uint32_t c = 0; c <= std::min(i, last); ++c) {
      if (!members[i].required) nfa->empty(at[c], next[c]);
      if (c < end) write(c, next[std::min(c + 1, last)], nfa->literal(quoted(members[i].name)), rule);
    }
    at = next;
  }
  for (const Extra& other : others) {
    path_ = before + "/additionalProperties";
    SELM_ASSIGN(const uint32_t rule, value_rule(other.demands));
    const uint32_t name = builder_.declare("a name in #" + before);
    Nfa own;
    const Fragment inner = spelled(other.names, Spelling::json, &own);
    SELM_TRY(builder_.define(name, own, own.then(own.then(own.literal("\""), inner), own.literal("\""))));
    for (uint32_t c = std::max(size.least, 1u) - 1; c < end; ++c)
      write(c, at[std::min(c + 1, last)], Builder::calling(name, nfa), rule);
  }
  path_ = before;
  for (uint32_t c = size.least; c <= last; ++c) nfa->empty(at[c], closing.from);
  return Fragment{opening.from, closing.to};
}

}  // namespace selm::grammar
