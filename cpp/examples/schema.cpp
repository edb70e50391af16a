// A reply that a program can read, through the C++ header:
//   schema MODEL.gguf '{"type": "object", "properties": {...}}' "Tell me about Paris"
#include <cstdio>
#include <selm/selm.hpp>
#include <string>

namespace {

int failed(const selm::Error& error) {
  std::fprintf(stderr, "%s [%s]\n", error.message.c_str(), selm_status_name(error.status));
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s MODEL.gguf SCHEMA QUESTION\n", argv[0]);
    return 2;
  }
  selm::Result<selm::Model> model = selm::Model::open(argv[1]);
  if (!model) return failed(model.error());
  selm::Result<selm::Grammar> grammar = selm::Grammar::json_schema(model->tokenizer(), argv[2]);
  if (!grammar) return failed(grammar.error());
  selm::Result<std::vector<selm_token>> tokens = model->read_chat({{"user", argv[3]}});
  if (!tokens) return failed(tokens.error());

  selm_generation_options options = SELM_GENERATION_OPTIONS_INIT;
  options.grammar = grammar->get();
  options.max_tokens = 256;
  selm::Result<selm::Session> session = model->session();
  if (!session) return failed(session.error());
  selm::Result<selm::Generation> reply = session->generate(*tokens, options);
  if (!reply) return failed(reply.error());
  for (selm_finish finish = SELM_FINISH_NONE; finish == SELM_FINISH_NONE;) {
    selm::Result<selm::Generation::Step> step = reply->next();
    if (!step) return failed(step.error());
    std::fwrite(step->text.data(), 1, step->text.size(), stdout);
    finish = step->finish;
  }
  std::puts("");
  return reply->stats().finish == SELM_FINISH_STOP ? 0 : 1;  // cut off, it is no JSON
}
