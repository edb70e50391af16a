// Arrays and objects.
#include <algorithm>

#include "grammar/regex.h"
#include "grammar/schema_compiler.h"
#include "grammar/spelling.h"
#include "text/unicode.h"

namespace selm::grammar {
namespace {

constexpr size_t kMostNameStates = 20'000;
constexpr uint32_t kMostCounted = 10'000;  // items or members that a state is kept for
constexpr size_t kMostUnique = 10;

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

// What the item at a place has to meet: prefixItems, or draft 4's list of items; then items, or
// additionalItems.
Demands SchemaCompiler::item_demands(const Demands& demands, size_t place) const {
  Demands found;
  for (const Demand& demand : demands) {
    const Json* prefix = keyword(*demand.schema, "prefixItems", Json::Kind::array);
    const Json* rest = demand.schema->find("items");
    if (rest && rest->is(Json::Kind::array)) {
      prefix = rest;
      rest = demand.schema->find("additionalItems");
    }
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
    const Json* items = demand.schema->find("items");
    const bool draft4 = !list && items && items->is(Json::Kind::array);
    if (draft4) list = items;
    if (list) prefix = std::max(prefix, list->items.size());
    if (list && !(draft4 ? demand.schema->find("additionalItems") : items)) open = false;
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
  SELM_ASSIGN(const auto values, listed(*flat));
  if (!values || values->size() > kMostUnique) return unsupported("uniqueItems of more than ten values");
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
  for (const Demand& demand : demands) {
    const Json* declared = keyword(*demand.schema, "properties", Json::Kind::object);
    if (declared)
      for (const auto& member : declared->members) add(member.first);
    const Json* required = keyword(*demand.schema, "required", Json::Kind::array);
    if (required)
      for (const Json& name : required->items) add(name.text).required = true;
  }
  for (Property& property : *found) {
    for (const Demand& demand : demands) {
      const Json* declared = keyword(*demand.schema, "properties", Json::Kind::object);
      const Json* own = declared ? declared->find(property.name) : nullptr;
      bool named = own != nullptr;
      if (own) property.demands.push_back({own});
      if (const Json* patterns = keyword(*demand.schema, "patternProperties", Json::Kind::object)) {
        SELM_ASSIGN(const Dfa name, just({property.name}));
        for (const auto& [pattern, value] : patterns->members) {
          SELM_ASSIGN(const Dfa matching, regex(pattern, kMostNameStates));
          SELM_ASSIGN(const Dfa common, both(name, matching, kMostNameStates));
          if (common.accepts_nothing()) continue;
          property.demands.push_back({&value});
          named = true;
        }
      }
      if (const Json* rest = named ? nullptr : additional(*demand.schema)) property.demands.push_back({rest});
    }
  }
  return {};
}

// Members with names that are not declared: written only where the schema speaks of them.
Status SchemaCompiler::extras(const Demands& demands, const std::vector<Property>& properties,
                              std::vector<Extra>* found) {
  bool spoken_of = false, declared = false;
  Demands rest, names;
  const Json* patterns = nullptr;
  for (const Demand& demand : demands) {
    const Json& schema = *demand.schema;
    declared = declared || schema.find("properties");
    const Json* own = additional(schema);
    if (own && !(own->is(Json::Kind::boolean) && !own->truth)) spoken_of = true;
    if (own) rest.push_back({own});
    if (const Json* name = schema.find("propertyNames")) names.push_back({name});
    if (schema.find("propertyNames") || schema.find("minProperties")) spoken_of = true;
    const Json* more = keyword(schema, "patternProperties", Json::Kind::object);
    if (more && patterns) return unsupported("patternProperties in several schemas of one value");
    if (more) patterns = more;
  }
  if (declared && !spoken_of && !patterns) return {};
  std::vector<std::string> taken;
  for (const Property& property : properties) taken.push_back(property.name);
  SELM_ASSIGN(const Dfa known, just(taken));
  Dfa free = inverted(known);
  SELM_ASSIGN(const auto flat, flattened(names));
  if (!flat) return {};
  SELM_ASSIGN(const auto listed_names, listed(*flat));
  if (listed_names) {
    std::vector<std::string> texts;
    for (const Json* each : *listed_names)
      if (each->is(Json::Kind::string)) texts.push_back(each->text);
    SELM_ASSIGN(const Dfa own, just(texts));
    SELM_ASSIGN(free, both(free, own, kMostNameStates));
  } else {
    SELM_ASSIGN(const std::optional<Dfa> wanted, string_dfa(*flat));
    if (wanted) {
      SELM_ASSIGN(free, both(free, *wanted, kMostNameStates));
    }
  }
  if (patterns) {
    for (const auto& [pattern, value] : patterns->members) {
      SELM_ASSIGN(const Dfa matching, regex(pattern, kMostNameStates));
      SELM_ASSIGN(Dfa own, both(free, matching, kMostNameStates));
      SELM_ASSIGN(free, both(free, inverted(matching), kMostNameStates));
      // A name of two patterns is of the first one's here, and would have to meet the second one's too.
      for (const auto& [other, unused] : patterns->members) {
        if (other == pattern) continue;
        SELM_ASSIGN(const Dfa second, regex(other, kMostNameStates));
        SELM_ASSIGN(own, both(own, inverted(second), kMostNameStates));
      }
      if (!own.accepts_nothing()) found->push_back({std::move(own), {{&value}}});
    }
  }
  const bool closed = std::any_of(rest.begin(), rest.end(), [](const Demand& demand) {
    return demand.schema->is(Json::Kind::boolean) && !demand.schema->truth;
  });
  if (!closed && (spoken_of || !declared) && !free.accepts_nothing() && !(patterns && !spoken_of))
    found->push_back({std::move(free), rest});
  return {};
}

// A state for each declared member that comes next and each count of members written.
Result<Fragment> SchemaCompiler::object(const Demands& demands, Nfa* nfa) {
  std::vector<Property> members;
  std::vector<Extra> others;
  SELM_TRY(properties(demands, &members));
  SELM_TRY(extras(demands, members, &others));
  SELM_ASSIGN(const Count size, count(demands, "minProperties", "maxProperties"));
  if (size.least > kMostCounted) return unsupported("a minProperties of more than 10000");
  const uint32_t most = std::min(size.most.value_or(kMostCounted), kMostCounted);
  // From here on it does not matter how many there are.
  const uint32_t last = size.most && *size.most < kMostCounted ? most : std::max(size.least, 1u);
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
  for (const Property& member : members) {
    path_ = before + "/properties/" + member.name;
    SELM_ASSIGN(const uint32_t rule, value_rule(member.demands));
    for (uint32_t& state : next) state = nfa->add();
    for (uint32_t c = 0; c <= last; ++c) {
      if (!member.required) nfa->empty(at[c], next[c]);
      if (c == last && size.most && last == most) continue;  // no more are allowed
      write(c, next[std::min(c + 1, last)], nfa->literal(quoted(member.name)), rule);
    }
    at = next;
  }
  for (const Extra& other : others) {
    path_ = before + "/additionalProperties";
    SELM_ASSIGN(const uint32_t rule, value_rule(other.demands));
    for (uint32_t c = 0; c <= last; ++c) {
      if (c == last && size.most && last == most) continue;
      const Fragment name = nfa->then(nfa->literal("\""), spelled(other.names, Spelling::json, nfa));
      write(c, at[std::min(c + 1, last)], nfa->then(name, nfa->literal("\"")), rule);
    }
  }
  path_ = before;
  for (uint32_t c = size.least; c <= last; ++c) nfa->empty(at[c], closing.from);
  return Fragment{opening.from, closing.to};
}

}  // namespace selm::grammar
