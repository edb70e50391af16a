// The part of the C API for vectors of texts.
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "api/report.h"
#include "embedding/static_embedder.h"
#include "selm/selm.h"

using selm::api::invalid;
using selm::api::report;

struct selm_embedder {
  selm::embedding::StaticEmbedder embedder;
};

selm_status selm_embedder_open(const char* path, selm_embedder** embedder) {
  if (path == nullptr || embedder == nullptr) return invalid("path and embedder must not be NULL");
  *embedder = nullptr;
  auto opened = selm::embedding::StaticEmbedder::open(path);
  if (!opened.ok()) return report(opened.status());
  *embedder = new selm_embedder{std::move(opened.value())};
  return SELM_OK;
}

void selm_embedder_free(selm_embedder* embedder) { delete embedder; }

uint32_t selm_embedder_dimension(const selm_embedder* embedder) {
  return embedder == nullptr ? 0 : static_cast<uint32_t>(embedder->embedder.dimension());
}

selm_status selm_embedder_embed(const selm_embedder* embedder, const char* text, size_t length, float* vector,
                                bool* found) {
  if (embedder == nullptr || (text == nullptr && length > 0) || vector == nullptr || found == nullptr) {
    return invalid("embedder, text, vector and found must not be NULL");
  }
  const auto embedded = embedder->embedder.embed(std::string_view(text, length),
                                                 std::span(vector, embedder->embedder.dimension()));
  if (!embedded.ok()) return report(embedded.status());
  *found = embedded.value();
  return SELM_OK;
}
