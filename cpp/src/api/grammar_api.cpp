// The C API's grammars.
#include <string_view>
#include <utility>

#include "api/handles.h"
#include "api/report.h"
#include "grammar/gbnf.h"
#include "grammar/schema.h"

using selm::Code;
using selm::api::invalid;
using selm::api::report;
namespace grammar_of = selm::grammar;

namespace {

[[maybe_unused]] std::shared_ptr<const grammar_of::TokenTrie> trie_of(const selm_tokenizer& tokenizer) {
  const std::lock_guard lock(tokenizer.mutex);
  if (!tokenizer.trie)
    tokenizer.trie =
        std::make_shared<const grammar_of::TokenTrie>(grammar_of::TokenTrie::of(tokenizer.get()));
  return tokenizer.trie;
}

}  // namespace

selm_status selm_grammar_create(const selm_tokenizer* tokenizer, selm_grammar_kind kind, const char* text,
                                size_t length, selm_grammar** grammar) {
  if (tokenizer == nullptr || (text == nullptr && length > 0) || grammar == nullptr)
    return invalid("an argument is NULL");
  *grammar = nullptr;
  if (kind != SELM_GRAMMAR_JSON_SCHEMA && kind != SELM_GRAMMAR_GBNF)
    return invalid("an unknown kind of grammar");
#ifdef SELM_NO_GRAMMAR
  return report(
      selm::error(Code::unsupported, "this library was built without grammars (SELM_WITH_GRAMMAR)"));
#else
  const std::string_view source(text, length);
  auto made = kind == SELM_GRAMMAR_GBNF ? grammar_of::gbnf(source) : grammar_of::json_schema(source);
  if (!made.ok()) return report(made.status());
  *grammar = new selm_grammar{std::make_shared<const grammar_of::Constraint>(
      std::move(made.value()), tokenizer->get(), trie_of(*tokenizer))};
  return SELM_OK;
#endif
}

void selm_grammar_free(selm_grammar* grammar) { delete grammar; }

selm_status selm_matcher_create(const selm_grammar* grammar, selm_matcher** matcher) {
  if (grammar == nullptr || matcher == nullptr) return invalid("an argument is NULL");
  *matcher = new selm_matcher{grammar_of::Matcher(grammar->constraint)};
  return SELM_OK;
}

void selm_matcher_free(selm_matcher* matcher) { delete matcher; }

selm_status selm_matcher_mask(selm_matcher* matcher, float* logits) {
  if (matcher == nullptr || logits == nullptr) return invalid("an argument is NULL");
  return report(matcher->matcher.mask({logits, matcher->matcher.constraint().trie().vocabulary()}));
}

selm_status selm_matcher_read(selm_matcher* matcher, selm_token token) {
  if (matcher == nullptr) return invalid("an argument is NULL");
  const size_t n_vocab = matcher->matcher.constraint().trie().vocabulary();
  if (token < 0 || static_cast<size_t>(token) >= n_vocab)
    return report(selm::error(Code::invalid_argument, "the token %d is not in the vocabulary", token));
  const auto read = matcher->matcher.read(token);
  if (!read.ok()) return report(read.status());
  if (read.value()) return SELM_OK;
  return report(selm::error(Code::invalid_argument, "the grammar does not allow the token %d here", token));
}

bool selm_matcher_complete(const selm_matcher* matcher) {
  return matcher != nullptr && matcher->matcher.complete();
}
