// One model, grammar and adapterless sessions on several threads at once: for ThreadSanitizer, and that each
// reply is what it is alone.
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "selm/selm.h"
#include "tiny_model.h"

using selm::test::TempFile;
using selm::test::tiny_model;
using selm::test::tiny_selm;
using selm::test::TinyShape;

namespace {

// A reply of 24 tokens to a prompt of its own; "" on any error.
std::string reply(selm_model* model, const selm_grammar* grammar, uint32_t threads, selm_token first) {
  selm_session_options options = SELM_SESSION_OPTIONS_INIT;
  options.threads = threads;
  selm_session* session = nullptr;
  selm_generation* generation = nullptr;
  selm_sampling sampling = SELM_SAMPLING_INIT;
  sampling.seed = static_cast<uint64_t>(first);
  selm_generation_options how = SELM_GENERATION_OPTIONS_INIT;
  how.max_tokens = 24;
  how.ignore_end = grammar == nullptr;
  how.grammar = grammar;
  std::string said;
  const char text[] = "abcabc";
  selm_token prompt[8];
  size_t n = 0;
  if (selm_tokenize(selm_model_tokenizer(model), text, 6, false, false, prompt + 1, 7, &n) == SELM_OK &&
      selm_session_create(model, &options, &session) == SELM_OK) {
    prompt[0] = first;
    selm_status status = selm_generation_create(session, prompt, n + 1, &sampling, &how, &generation);
    selm_finish finish = SELM_FINISH_NONE;
    while (status == SELM_OK && finish == SELM_FINISH_NONE) {
      const char* piece = nullptr;
      size_t length = 0;
      status = selm_generation_next(generation, &piece, &length, nullptr, &finish);
      if (status == SELM_OK) said.append(piece, length);
    }
    if (status != SELM_OK) said.clear();
  }
  selm_generation_free(generation);
  selm_session_free(session);
  return said;
}

}  // namespace

TEST("sessions on threads of their own share a model and a grammar") {
  const std::string schema = R"({"type":"array","items":{"enum":["ab","cd",17,null]},"maxItems":4})";
  for (const TinyShape& shape : {TinyShape(), tiny_selm()}) {
    const TempFile file(tiny_model(shape));
    selm_model* model = nullptr;
    selm_grammar* grammar = nullptr;
    REQUIRE(selm_model_open(file.path().c_str(), nullptr, &model) == SELM_OK);
    for (int round = 0; round < 8; ++round) {
      // A new one each round: what it learns about the vocabulary is learnt by all at once.
      selm_status status = selm_grammar_create(selm_model_tokenizer(model), SELM_GRAMMAR_JSON_SCHEMA,
                                               schema.data(), schema.size(), &grammar);
      if (status == SELM_ERROR_UNSUPPORTED) grammar = nullptr;  // built without grammars
      std::vector<std::string> together(4), alone(4);
      std::vector<std::thread> threads;
      const auto one = [&](size_t i, uint32_t workers) {
        return reply(model, i % 2 == 0 ? grammar : nullptr, workers, static_cast<selm_token>('a' + i));
      };
      for (size_t i = 0; i < together.size(); ++i)
        threads.emplace_back([&, i] { together[i] = one(i, i < 2 ? 2 : 1); });
      for (std::thread& thread : threads) thread.join();
      for (size_t i = 0; i < alone.size(); ++i) alone[i] = one(i, 1);
      CHECK(together == alone && !alone[1].empty());
      selm_grammar_free(grammar);
      grammar = nullptr;
    }
    selm_model_free(model);
  }
}

TEST("a session is cancelled from another thread while it works") {
  const TempFile file(tiny_model());
  selm_model* model = nullptr;
  selm_session* session = nullptr;
  REQUIRE(selm_model_open(file.path().c_str(), nullptr, &model) == SELM_OK);
  REQUIRE(selm_session_create(model, nullptr, &session) == SELM_OK);
  const std::vector<selm_token> tokens(48, 'a');
  for (int round = 0; round < 100; ++round) {
    std::thread other([&] { selm_session_cancel(session); });
    const selm_status status =
        selm_session_eval(session, tokens.data(), tokens.size(), SELM_LOGITS_NONE, nullptr);
    other.join();
    CHECK(status == SELM_OK || status == SELM_ERROR_CANCELLED);
    selm_session_clear_cancel(session);
    CHECK(selm_session_truncate(session, 0) == SELM_OK);
  }
  selm_session_free(session);
  selm_model_free(model);
}

SELM_TEST_MAIN
