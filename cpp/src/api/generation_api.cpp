// The C API's replies: sampling, and generations.
#include <memory>
#include <span>
#include <utility>

#include "api/handles.h"
#include "api/log.h"
#include "api/options.h"
#include "api/report.h"
#include "engine/generation.h"

using selm::Code;
using selm::Result;
using selm::api::invalid;
using selm::api::read_options;
using selm::api::report;
using selm::api::write_struct;
namespace engine = selm::engine;

static_assert(static_cast<int>(engine::Finish::deadline) == SELM_FINISH_DEADLINE);

struct selm_generation {
  std::unique_ptr<engine::Generation> generation;
  selm_log log;  // of its session
};

namespace {

Result<engine::Sampling> sampling_options(const selm_sampling* given) {
  selm_sampling s = SELM_SAMPLING_INIT;
  SELM_TRY(read_options(given, &s));
  engine::Sampling out;
  out.temperature = s.temperature;
  out.top_k = s.top_k;
  out.top_p = s.top_p;
  out.min_p = s.min_p;
  out.typical_p = s.typical_p;
  out.repeat_penalty = s.repeat_penalty;
  out.frequency_penalty = s.frequency_penalty;
  out.presence_penalty = s.presence_penalty;
  out.penalty_last_n = s.penalty_last_n;
  out.seed = s.seed;
  for (size_t i = 0; s.bias != nullptr && i < s.n_bias; ++i) {
    out.bias.emplace_back(s.bias[i].token, s.bias[i].bias);
  }
  SELM_TRY(out.check());
  return out;
}

Result<engine::GenerationOptions> generation_options(const selm_generation_options* given) {
  selm_generation_options o = SELM_GENERATION_OPTIONS_INIT;
  SELM_TRY(read_options(given, &o));
  if (o.draft > SELM_DRAFT_CALIBRATED)
    return selm::error(Code::invalid_argument, "unknown draft %d", o.draft);
  engine::GenerationOptions out{o.max_tokens,     {},
                                o.ignore_end,     o.special,
                                o.reuse_prefix,   static_cast<engine::Draft>(o.draft),
                                o.exit_threshold, o.grammar != nullptr ? o.grammar->constraint : nullptr};
  for (size_t i = 0; o.stop != nullptr && i < o.n_stop; ++i) {
    if (o.stop[i] == nullptr) return selm::error(Code::invalid_argument, "a stop string is NULL");
    out.stop.emplace_back(o.stop[i]);
  }
  return out;
}

void describe(const selm_generation& reply) {
  constexpr const char* kNames[] = {"", "stop", "length", "context", "cancelled", "deadline"};
  const engine::GenerationStats& s = reply.generation->stats();
  selm::api::tell(reply.log, SELM_LOG_DEBUG,
                  "reply: prompt of %u tokens (%u held before) in %.3f s, %u tokens in %.3f s, %s",
                  s.prompt_tokens, s.cached_tokens, s.prompt_seconds, s.tokens, s.decode_seconds,
                  kNames[static_cast<size_t>(s.finish)]);
}

}  // namespace

selm_status selm_sample(const selm_sampling* sampling, const float* logits, size_t n_vocab,
                        const selm_token* history, size_t n_history, uint64_t draw, selm_token* token) {
  if (logits == nullptr || n_vocab == 0 || token == nullptr || (history == nullptr && n_history > 0)) {
    return invalid("logits, history and token must not be NULL");
  }
  auto options = sampling_options(sampling);
  if (!options.ok()) return report(options.status());
  engine::Sampler sampler(std::move(options.value()));
  const auto picked = sampler.pick(std::span(logits, n_vocab), std::span(history, n_history), draw);
  if (!picked.ok()) return report(picked.status());
  *token = picked.value();
  return SELM_OK;
}

selm_status selm_generation_create(selm_session* session, const selm_token* prompt, size_t n_prompt,
                                   const selm_sampling* sampling, const selm_generation_options* options,
                                   selm_generation** generation) {
  if (session == nullptr || prompt == nullptr || generation == nullptr) return invalid("an argument is NULL");
  *generation = nullptr;
  auto picking = sampling_options(sampling);
  if (!picking.ok()) return report(picking.status());
  auto wanted = generation_options(options);
  if (!wanted.ok()) return report(wanted.status());
  auto created = engine::Generation::create(*session->session, std::span(prompt, n_prompt),
                                            std::move(picking.value()), std::move(wanted.value()));
  if (!created.ok()) return report(created.status());
  *generation = new selm_generation{std::move(created.value()), session->log};
  return SELM_OK;
}

selm_status selm_generation_next(selm_generation* generation, const char** text, size_t* length,
                                 selm_token* token, selm_finish* finish) {
  if (generation == nullptr || text == nullptr || length == nullptr || finish == nullptr) {
    return invalid("an argument is NULL");
  }
  const auto step = generation->generation->next();
  if (!step.ok()) return report(step.status());
  *text = step.value().text.data();
  *length = step.value().text.size();
  if (token != nullptr) *token = step.value().token;
  *finish = static_cast<selm_finish>(step.value().finish);
  if (*finish != SELM_FINISH_NONE) describe(*generation);
  return SELM_OK;
}

selm_status selm_generation_get_stats(const selm_generation* generation, selm_generation_stats* stats) {
  if (generation == nullptr || stats == nullptr) return invalid("an argument is NULL");
  const engine::GenerationStats& s = generation->generation->stats();
  const double n = s.judged > 0 ? s.judged : 1;
  return write_struct(
      selm_generation_stats{sizeof(selm_generation_stats), s.prompt_tokens, s.cached_tokens, s.tokens,
                            s.prompt_seconds, s.decode_seconds, s.first_token_seconds,
                            static_cast<selm_finish>(s.finish), s.decode_steps, s.drafted, s.accepted,
                            s.early, s.early_wrong, s.entropy / n, s.margin / n},
      stats);
}

void selm_generation_free(selm_generation* generation) { delete generation; }
