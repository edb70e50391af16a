// From a schema to rules: what schema*.cpp share.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "grammar/automaton.h"
#include "grammar/grammar.h"
#include "grammar/json.h"

namespace selm::grammar {

// The kinds of values, as bits; whole numbers are numbers too.
namespace kinds {
inline constexpr unsigned null = 1, boolean = 2, whole = 4, fractional = 8, string = 16, array = 32,
                          object = 64;
inline constexpr unsigned number = whole | fractional, any = 127;
}  // namespace kinds

// One of the schemas that a value has to meet together, and which of its keywords are dealt with already.
struct Demand {
  const Json* schema;
  bool without_any_of = false, without_one_of = false;
  bool flat = false;  // what its allOf and $ref bring in stands beside it
  auto operator<=>(const Demand&) const = default;
};
using Demands = std::vector<Demand>;

class SchemaCompiler {
 public:
  explicit SchemaCompiler(const Json& root) : root_(root) {}
  Result<Grammar> compile();

 private:
  // How many of something there may be.
  struct Count {
    uint32_t least = 0;
    std::optional<uint32_t> most;
  };

  // --- schema.cpp: demands and alternatives
  Result<Fragment> value(const Demands& demands, Nfa* nfa);
  Result<Fragment> flat_value(const Demands& flat, Nfa* nfa);
  Result<uint32_t> value_rule(const Demands& demands);               // the same, as a rule of its own
  Result<std::optional<Demands>> flattened(const Demands& demands);  // nothing: no value is valid
  Status flatten(const Demand& demand, Demands* flat, bool* never);
  Result<const Json*> target(std::string_view reference) const;
  Result<Fragment> alternatives(const Demands& demands, size_t which, std::string_view keyword, Nfa* nfa);
  Status check_disjoint(const std::vector<Demands>& alternatives);
  Result<bool> apart(const Demands& one, const Demands& other);
  Result<bool> flat_apart(const Demands& a, const Demands& b);
  Status check_keywords(const Demands& demands) const;
  Status check_kinds(const Json& schema) const;
  unsigned kinds_of(const Demands& demands) const;
  unsigned kinds_valid(const Demands& demands) const;
  Result<Fragment> of_kinds(const Demands& demands, unsigned kinds, Nfa* nfa);
  Result<Fragment> any_value(Nfa* nfa);
  Status unsupported(std::string_view what) const;
  Status wrong(std::string_view what) const;

  // --- schema_values.cpp: single values
  // The values that enum and const leave; nothing where neither is there.
  Result<std::optional<std::vector<const Json*>>> listed(const Demands& demands);
  Result<bool> meets(const Json& value, const Demands& demands, const Json* source = nullptr);
  Fragment written(const Json& value, Nfa* nfa) const;
  Result<Fragment> number(const Demands& demands, bool whole_only, Nfa* nfa);
  Result<Fragment> string(const Demands& demands, Nfa* nfa);
  static std::string string_key(const Demands& demands);  // the same for the same strings
  // Nothing where any string is meant; kept.
  Result<const std::optional<Dfa>*> string_dfa(const Demands& demands);
  Result<std::optional<Dfa>> new_string_dfa(const Demands& demands) const;
  Result<Count> count(const Demands& demands, std::string_view least, std::string_view most) const;

  // --- schema_containers.cpp: arrays and objects
  Result<Fragment> array(const Demands& demands, Nfa* nfa);
  Result<Fragment> unique_items(const Demands& items, const Count& count, Nfa* nfa);
  Demands item_demands(const Demands& demands, size_t place) const;
  struct Property {
    std::string name;
    Demands demands;
    bool required = false;
  };
  struct Extra {  // members with other names
    Dfa names;
    Demands demands;
  };
  Result<Fragment> object(const Demands& demands, Nfa* nfa);
  Status properties(const Demands& demands, std::vector<Property>* found);
  Result<std::optional<Dfa>> allowed_names(const Demands& demands, std::vector<std::string>* listed_names);
  Result<bool> lacks_required(const Demands& demands, const std::vector<Property>& own,
                              const std::vector<Property>& others);
  Status extras(const Demands& demands, const std::vector<Property>& properties, std::vector<Extra>* found);
  static const Json* additional(const Json& schema);
  static const Json* additional_items(const Json& schema);
  Fragment separator(char c, Nfa* nfa) const;  // and a space, or none

  static Fragment never(Nfa* nfa);

  const Json& root_;
  Builder builder_;
  std::map<Demands, uint32_t> rules_;  // so that schemas may hold themselves
  std::map<std::pair<Demands, Demands>, bool> apart_;
  std::map<std::string, std::optional<Dfa>> string_dfas_;  // by string_key
  std::map<std::string, uint32_t> strings_;                // rules, so that what they allow is found out once
  std::optional<uint32_t> any_value_;
  std::string path_;
  int depth_ = 0;
  size_t values_ = 0;  // schemas compiled, with those that hold beside them
};

bool same(const Json& a, const Json& b);  // as values
// Keywords whose value is of a kind; nullptr where they are not there, or are of another.
const Json* keyword(const Json& schema, std::string_view name, Json::Kind kind);

}  // namespace selm::grammar
