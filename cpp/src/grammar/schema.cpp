#include "grammar/schema.h"

#include <algorithm>
#include <array>

#include "grammar/schema_compiler.h"

namespace selm::grammar {
namespace {

constexpr int kDeepest = 100;
constexpr size_t kMostDemands = 200;
constexpr size_t kMostValues = 50'000;
constexpr size_t kMostCompared = 100'000;

// Hold a value to something that an automaton cannot, or that this compiler does not know.
constexpr std::array<std::string_view, 13> kUnsupported = {
    "not",      "if",          "dependentRequired", "dependentSchemas", "dependencies",
    "contains", "minContains", "maxContains",       "$dynamicRef",      "$recursiveRef",
    "extends",  "disallow",    "divisibleBy"};

// What keywords have to be: one that is something else would be left out.
struct Typed {
  std::string_view name;
  Json::Kind kind, other;
};
constexpr std::array kTyped = {
    Typed{"type", Json::Kind::string, Json::Kind::array},
    Typed{"enum", Json::Kind::array, Json::Kind::array},
    Typed{"anyOf", Json::Kind::array, Json::Kind::array},
    Typed{"oneOf", Json::Kind::array, Json::Kind::array},
    Typed{"properties", Json::Kind::object, Json::Kind::object},
    Typed{"patternProperties", Json::Kind::object, Json::Kind::object},
    Typed{"required", Json::Kind::array, Json::Kind::array},
    Typed{"prefixItems", Json::Kind::array, Json::Kind::array},
    Typed{"uniqueItems", Json::Kind::boolean, Json::Kind::boolean},
    Typed{"pattern", Json::Kind::string, Json::Kind::string},
    Typed{"format", Json::Kind::string, Json::Kind::string},
    Typed{"minimum", Json::Kind::number, Json::Kind::number},
    Typed{"maximum", Json::Kind::number, Json::Kind::number},
    Typed{"exclusiveMinimum", Json::Kind::number, Json::Kind::boolean},  // draft 4
    Typed{"exclusiveMaximum", Json::Kind::number, Json::Kind::boolean},
    Typed{"multipleOf", Json::Kind::number, Json::Kind::number},
};

std::string unescaped(std::string_view pointer) {  // ~1, ~0 (RFC 6901) and %41 (RFC 3986)
  std::string found;
  for (size_t i = 0; i < pointer.size(); ++i) {
    const std::string_view rest = pointer.substr(i);
    const auto hex = [&](size_t at) {
      const size_t value = std::string_view("0123456789abcdef").find(static_cast<char>(rest[at] | 0x20));
      return value == std::string_view::npos ? -1 : static_cast<int>(value);
    };
    if (rest.starts_with("~1") || rest.starts_with("~0")) {
      found += rest[1] == '1' ? '/' : '~';
      ++i;
    } else if (rest[0] == '%' && rest.size() > 2 && hex(1) >= 0 && hex(2) >= 0) {
      found += static_cast<char>(hex(1) * 16 + hex(2));
      i += 2;
    } else {
      found += rest[0];
    }
  }
  return found;
}

unsigned kind_named(std::string_view name) {
  if (name == "null") return kinds::null;
  if (name == "boolean") return kinds::boolean;
  if (name == "integer") return kinds::whole;
  if (name == "number") return kinds::number;
  if (name == "string") return kinds::string;
  if (name == "array") return kinds::array;
  return name == "object" ? kinds::object : 0;
}

// What a schema without `type` is about, by its keywords.
unsigned kinds_meant(const Json& schema) {
  unsigned found = 0;
  for (const auto& [name, value] : schema.members) {
    if (name == "properties" || name == "required" || name == "additionalProperties" ||
        name == "patternProperties" || name == "propertyNames" || name == "minProperties" ||
        name == "maxProperties" || name == "unevaluatedProperties")
      found |= kinds::object;
    if (name == "items" || name == "prefixItems" || name == "additionalItems" || name == "minItems" ||
        name == "maxItems" || name == "uniqueItems" || name == "unevaluatedItems")
      found |= kinds::array;
    if (name == "pattern" || name == "minLength" || name == "maxLength" || name == "format")
      found |= kinds::string;
    if (name == "minimum" || name == "maximum" || name == "exclusiveMinimum" || name == "exclusiveMaximum" ||
        name == "multipleOf")
      found |= kinds::number;
  }
  return found == 0 ? kinds::any : found;
}

// The schema that has this $anchor or $id, anywhere in another one.
const Json* named(const Json& schema, std::string_view keyword, std::string_view name) {
  const Json* own = schema.find(keyword);
  if (own && own->is(Json::Kind::string) && own->text == name) return &schema;
  for (const auto& [key, value] : schema.members)
    if (const Json* found = key == "enum" || key == "const" ? nullptr : named(value, keyword, name))
      return found;
  for (const Json& item : schema.items)
    if (const Json* found = named(item, keyword, name)) return found;
  return nullptr;
}

}  // namespace

const Json* keyword(const Json& schema, std::string_view name, Json::Kind kind) {
  const Json* found = schema.find(name);
  return found && found->is(kind) ? found : nullptr;
}

Status SchemaCompiler::unsupported(std::string_view what) const {
  return error(Code::unsupported, "the schema has %.*s at #%s, which cannot be held to while writing",
               static_cast<int>(what.size()), what.data(), path_.c_str());
}

Status SchemaCompiler::wrong(std::string_view what) const {
  return error(Code::invalid_argument, "the schema has %.*s at #%s", static_cast<int>(what.size()),
               what.data(), path_.c_str());
}

Fragment SchemaCompiler::never(Nfa* nfa) {
  const uint32_t from = nfa->add();
  return {from, nfa->add()};
}

Result<Grammar> SchemaCompiler::compile() {
  const uint32_t text = builder_.declare("the text");
  Nfa nfa;
  SELM_ASSIGN(const Fragment whole, value({{&root_}}, &nfa));
  SELM_TRY(builder_.define(text, nfa, whole));
  return builder_.finish();
}

Result<Fragment> SchemaCompiler::value(const Demands& demands, Nfa* nfa) {
  SELM_ASSIGN(const auto flat, flattened(demands));
  return flat ? flat_value(*flat, nfa) : Result(never(nfa));
}

Result<Fragment> SchemaCompiler::flat_value(const Demands& flat, Nfa* nfa) {
  if (depth_ == kDeepest) return unsupported("schemas nested too deeply");
  values_ += flat.size();
  if (values_ > kMostValues) return unsupported("too many schemas, or alternatives of alternatives");
  ++depth_;
  SELM_TRY(check_keywords(flat));
  size_t any = flat.size(), one = flat.size();
  for (size_t i = 0; i < flat.size(); ++i) {
    if (!flat[i].without_any_of && keyword(*flat[i].schema, "anyOf", Json::Kind::array)) any = i;
    if (!flat[i].without_one_of && keyword(*flat[i].schema, "oneOf", Json::Kind::array)) one = i;
  }
  Result<Fragment> found = any < flat.size()   ? alternatives(flat, any, "anyOf", nfa)
                           : one < flat.size() ? alternatives(flat, one, "oneOf", nfa)
                                               : of_kinds(flat, kinds_of(flat), nfa);
  --depth_;
  return found;
}

// Schemas that hold themselves come back to a rule that is there already: whatever they hold themselves in,
// an array or an object, has rules for what is inside.
Result<uint32_t> SchemaCompiler::value_rule(const Demands& demands) {
  SELM_ASSIGN(const auto flat, flattened(demands));
  const auto known = flat ? rules_.find(*flat) : rules_.end();
  if (known != rules_.end()) return known->second;
  const uint32_t rule = builder_.declare("#" + path_);
  Nfa nfa;
  Fragment whole = never(&nfa);
  if (flat) {
    rules_.emplace(*flat, rule);
    SELM_ASSIGN(whole, flat_value(*flat, &nfa));
  }
  SELM_TRY(builder_.define(rule, nfa, whole));
  return rule;
}

Result<std::optional<Demands>> SchemaCompiler::flattened(const Demands& demands) {
  Demands flat;
  bool is_never = false;
  for (const Demand& demand : demands) SELM_TRY(flatten(demand, &flat, &is_never));
  // What is nothing but a reference says nothing itself: all that refer to a schema share one rule.
  std::erase_if(flat, [](const Demand& demand) {
    return demand.schema->members.size() == 1 && demand.schema->members[0].first == "$ref";
  });
  return is_never ? std::optional<Demands>() : std::optional(std::move(flat));
}

// What allOf and $ref bring in stands beside the rest.
Status SchemaCompiler::flatten(const Demand& demand, Demands* flat, bool* is_never) {
  const Json& schema = *demand.schema;
  if (schema.is(Json::Kind::boolean)) {
    *is_never = *is_never || !schema.truth;
    return {};
  }
  if (!schema.is(Json::Kind::object)) return wrong("a schema that is neither an object nor a truth value");
  Demand own = demand;
  own.flat = true;
  if (std::find(flat->begin(), flat->end(), own) != flat->end()) return {};
  if (flat->size() > kMostDemands) return unsupported("too many schemas in one");
  flat->push_back(own);
  if (demand.flat) return {};
  if (const Json* reference = schema.find("$ref")) {
    if (!reference->is(Json::Kind::string)) return wrong("a $ref that is no string");
    SELM_ASSIGN(const Json* found, target(reference->text));
    SELM_TRY(flatten({found}, flat, is_never));
  }
  if (const Json* all = schema.find("allOf")) {
    if (!all->is(Json::Kind::array)) return wrong("an allOf that is no array");
    for (const Json& each : all->items) SELM_TRY(flatten({&each}, flat, is_never));
  }
  return {};
}

Result<const Json*> SchemaCompiler::target(std::string_view reference) const {
  const std::string name(reference);
  const Json* id = keyword(root_, "$id", Json::Kind::string);
  if (id && !id->text.empty() && reference.starts_with(id->text)) reference.remove_prefix(id->text.size());
  if (reference.empty() || reference == "#") return &root_;
  if (!reference.starts_with("#")) {
    if (const Json* found = named(root_, "$id", reference)) return found;
    return error(Code::unsupported, "the schema refers to %s, which is not inside it", name.c_str());
  }
  reference.remove_prefix(1);
  const Json* at = &root_;
  if (!reference.starts_with("/")) {
    at = named(root_, "$anchor", reference);
  } else {
    while (at && !reference.empty()) {
      reference.remove_prefix(1);
      const size_t end = std::min(reference.find('/'), reference.size());
      const std::string key = unescaped(reference.substr(0, end));
      reference.remove_prefix(end);
      if (at->is(Json::Kind::array)) {
        size_t place = 0;
        for (const char c : key)
          place = c >= '0' && c <= '9' && place < 1000000 ? place * 10 + static_cast<size_t>(c - '0')
                                                          : at->items.size();
        at = !key.empty() && place < at->items.size() ? &at->items[place] : nullptr;
      } else {
        at = at->find(key);
      }
    }
  }
  if (!at) return error(Code::invalid_argument, "the schema refers to %s, which is not there", name.c_str());
  return at;
}

Result<Fragment> SchemaCompiler::alternatives(const Demands& demands, size_t which,
                                              std::string_view keyword_name, Nfa* nfa) {
  const bool one = keyword_name == "oneOf";
  const Json& list = *demands[which].schema->find(keyword_name);
  if (list.items.empty()) return wrong("an anyOf or oneOf without schemas");
  std::vector<Demands> each;
  for (const Json& item : list.items) {
    each.push_back(demands);
    (one ? each.back()[which].without_one_of : each.back()[which].without_any_of) = true;
    each.back().push_back({&item});
  }
  if (one) SELM_TRY(check_disjoint(each));
  std::vector<Fragment> found;
  const std::string before = path_;
  for (size_t i = 0; i < each.size(); ++i) {
    path_ = before + "/" + std::string(keyword_name) + "/" + std::to_string(i);
    SELM_ASSIGN(const Fragment alternative, value(each[i], nfa));
    found.push_back(alternative);
  }
  path_ = before;
  return nfa->either(found);
}

Status SchemaCompiler::check_disjoint(const std::vector<Demands>& alternatives) {
  for (size_t i = 0; i < alternatives.size(); ++i) {
    for (size_t j = i + 1; j < alternatives.size(); ++j) {
      SELM_ASSIGN(const bool ok, apart(alternatives[i], alternatives[j]));
      if (ok) continue;
      const std::string what = "a oneOf whose alternatives " + std::to_string(i) + " and " +
                               std::to_string(j) + " may both hold (anyOf would do)";
      return unsupported(what);
    }
  }
  return {};
}

// Whether no value that is written for one of them is valid for the other. Alternatives inside of them are
// not looked into.
Result<bool> SchemaCompiler::apart(const Demands& one, const Demands& other) {
  SELM_ASSIGN(const auto flat_one, flattened(one));
  SELM_ASSIGN(const auto flat_other, flattened(other));
  if (!flat_one || !flat_other) return true;
  // Schemas that hold themselves come back here before it is known: not apart, to be sure.
  const auto [known, fresh] = apart_.emplace(std::pair(*flat_one, *flat_other), false);
  if (!fresh) return known->second;
  if (apart_.size() > kMostCompared) return unsupported("too many alternatives in oneOf");
  SELM_ASSIGN(known->second, flat_apart(*flat_one, *flat_other));
  return known->second;
}

// Whether no value that would be written for the one is valid by the other, either way.
Result<bool> SchemaCompiler::flat_apart(const Demands& a, const Demands& b) {
  const unsigned common = (kinds_of(a) & kinds_valid(b)) | (kinds_valid(a) & kinds_of(b));
  if (common == 0) return true;
  SELM_ASSIGN(const auto listed_a, listed(a));
  SELM_ASSIGN(const auto listed_b, listed(b));
  for (const auto& [values, rest] : {std::pair(&listed_a, &b), std::pair(&listed_b, &a)}) {
    if (!*values) continue;
    for (const Json* each : **values) {
      SELM_ASSIGN(const bool also, meets(*each, *rest));
      if (also) return false;
    }
    return true;
  }
  if (common != kinds::object) return false;
  std::vector<Property> in_a, in_b;
  SELM_TRY(properties(a, &in_a));
  SELM_TRY(properties(b, &in_b));
  for (const Property& property : in_a) {  // what tells them apart, such as {"kind": {"const": ...}}
    for (const Property& same : in_b) {
      if (same.name != property.name || !same.required || !property.required) continue;
      SELM_ASSIGN(const bool differs, apart(property.demands, same.demands));
      if (differs) return true;
    }
  }
  SELM_ASSIGN(const bool never_b, lacks_required(a, in_a, in_b));
  if (!never_b) return false;
  return lacks_required(b, in_b, in_a);
}

// Whether what is written for the demands never has some member that the others require.
Result<bool> SchemaCompiler::lacks_required(const Demands& demands, const std::vector<Property>& own,
                                            const std::vector<Property>& others) {
  for (const Demand& demand : demands) {  // alternatives may add members
    if (!demand.without_any_of && demand.schema->find("anyOf")) return false;
    if (!demand.without_one_of && demand.schema->find("oneOf")) return false;
  }
  std::vector<Extra> more;
  SELM_TRY(extras(demands, own, &more));
  if (!more.empty()) return false;
  return std::any_of(others.begin(), others.end(), [&](const Property& wanted) {
    return wanted.required &&
           std::none_of(own.begin(), own.end(), [&](const Property& p) { return p.name == wanted.name; });
  });
}

Status SchemaCompiler::check_keywords(const Demands& demands) const {
  for (const Demand& demand : demands)
    for (const auto& [name, value] : demand.schema->members)
      if (std::find(kUnsupported.begin(), kUnsupported.end(), name) != kUnsupported.end())
        return unsupported(name);
  for (const Demand& demand : demands) SELM_TRY(check_kinds(*demand.schema));
  return {};
}

Status SchemaCompiler::check_kinds(const Json& schema) const {
  for (const Typed& typed : kTyped) {
    const Json* value = schema.find(typed.name);
    if (value && !value->is(typed.kind) && !value->is(typed.other))
      return wrong("a value of the wrong kind for " + std::string(typed.name));
  }
  const auto texts = [](const Json& list) {
    return std::all_of(list.items.begin(), list.items.end(),
                       [](const Json& each) { return each.is(Json::Kind::string); });
  };
  const Json* required = schema.find("required");
  if (required && !texts(*required)) return wrong("a name in required that is no string");
  if (const Json* type = schema.find("type")) {
    const auto known = [](const Json& name) { return kind_named(name.text) != 0; };
    if (!texts(*type) ||
        !(type->is(Json::Kind::array) ? std::all_of(type->items.begin(), type->items.end(), known)
                                      : known(*type)))
      return wrong("a type that there is not");
  }
  const bool refers =
      schema.find("$ref") || schema.find("allOf") || schema.find("anyOf") || schema.find("oneOf");
  for (const char* name : {"unevaluatedProperties", "unevaluatedItems"})  // others evaluate them there
    if (refers && schema.find(name)) return unsupported(std::string(name) + " beside other schemas");
  return {};
}

unsigned SchemaCompiler::kinds_of(const Demands& demands) const {
  unsigned found = kinds::any, meant = kinds::any;
  bool typed = false;
  for (const Demand& demand : demands) {
    const Json* type = demand.schema->find("type");
    if (!type) {
      meant &= kinds_meant(*demand.schema);
      continue;
    }
    typed = true;
    unsigned own = type->is(Json::Kind::string) ? kind_named(type->text) : 0;
    for (const Json& each : type->items) own |= kind_named(each.text);
    found &= own;
  }
  if (typed) return found;
  return meant == 0 ? kinds::any : meant;  // each speaks of another kind: none says that it is of one
}

// The kinds that a value may be of, whatever is meant.
unsigned SchemaCompiler::kinds_valid(const Demands& demands) const {
  const bool typed = std::any_of(demands.begin(), demands.end(),
                                 [](const Demand& demand) { return demand.schema->find("type") != nullptr; });
  return typed ? kinds_of(demands) : kinds::any;
}

Result<Fragment> SchemaCompiler::of_kinds(const Demands& demands, unsigned kinds, Nfa* nfa) {
  SELM_ASSIGN(const auto values, listed(demands));
  std::vector<Fragment> found;
  if (values) {
    for (const Json* each : *values) found.push_back(written(*each, nfa));
    return nfa->either(found);
  }
  if (kinds == kinds::any && std::all_of(demands.begin(), demands.end(), [](const Demand& demand) {
        return kinds_meant(*demand.schema) == kinds::any;
      }))
    return any_value(nfa);
  const auto add = [&](Result<Fragment> one) -> Status {
    if (one.ok()) found.push_back(one.value());
    return one.status();
  };
  if (kinds & kinds::null) found.push_back(nfa->literal("null"));
  if (kinds & kinds::boolean) found.push_back(nfa->either({nfa->literal("true"), nfa->literal("false")}));
  if (kinds & kinds::number) SELM_TRY(add(number(demands, (kinds & kinds::fractional) == 0, nfa)));
  if (kinds & kinds::string) SELM_TRY(add(string(demands, nfa)));
  if (kinds & kinds::array) SELM_TRY(add(array(demands, nfa)));
  if (kinds & kinds::object) SELM_TRY(add(object(demands, nfa)));
  return nfa->either(found);
}

Result<Fragment> SchemaCompiler::any_value(Nfa* nfa) {
  if (!any_value_) {
    any_value_ = builder_.declare("any value");
    Nfa own;
    SELM_ASSIGN(const Fragment whole,
                of_kinds({}, kinds::any & ~kinds::null, &own));     // null is no special case:
    const Fragment all = own.either({own.literal("null"), whole});  // so that this does not ask for itself
    SELM_TRY(builder_.define(*any_value_, own, all));
  }
  return Builder::calling(*any_value_, nfa);
}

Result<Grammar> json_schema(std::string_view schema) {
  SELM_ASSIGN(const Json root, parse_json(schema));
  return SchemaCompiler(root).compile();
}

}  // namespace selm::grammar
