// The handles that more than one file of the C API opens.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "engine/session.h"
#include "grammar/matcher.h"
#include "model/model.h"
#include "selm/selm.h"
#include "text/tokenizer.h"

// Its own vocabulary, or a view of a model's.
struct selm_tokenizer {
  std::optional<selm::text::Tokenizer> own;
  const selm::text::Tokenizer* view = nullptr;
  std::string model, pre;
  mutable std::mutex mutex;
  mutable std::shared_ptr<const selm::grammar::TokenTrie> trie;  // made for the first grammar

  const selm::text::Tokenizer& get() const { return own ? *own : *view; }
  void name() {  // once there is one
    model = std::string(get().model());
    pre = std::string(get().pre());
  }
};

struct selm_model {
  std::unique_ptr<selm::model::Model> model;
  selm_tokenizer tokenizer;
  selm_log log = {};
};

struct selm_session {
  std::unique_ptr<selm::engine::Session> session;
  selm_log log = {};
};

struct selm_grammar {
  std::shared_ptr<const selm::grammar::Constraint> constraint;
};

struct selm_matcher {
  selm::grammar::Matcher matcher;
};
