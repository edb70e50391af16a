#include "embedding/static_embedder.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <optional>
#include <vector>

#include "gguf/cursor.h"
#include "quant/dequantize.h"

namespace selm::embedding {
namespace {

constexpr const char* kLengthKey = "selm-embedder.embedding_length";
constexpr const char* kMostKey = "selm-embedder.max_word_characters";
constexpr const char* kRowsName = "token_embd.weight";
constexpr uint64_t kMostDimensions = 65536;
constexpr uint64_t kMostCharacters = 1000;

Status check_architecture(const gguf::File& file) {
  SELM_ASSIGN(const std::optional<std::string_view> architecture, file.get_string("general.architecture"));
  if (!architecture) return error(Code::format, "the key general.architecture is missing");
  if (*architecture == StaticEmbedder::kArchitecture) return {};
  return gguf::at_byte(Code::unsupported, file.find("general.architecture")->offset,
                       "general.architecture is '%s', not %s", gguf::printable(*architecture).c_str(),
                       StaticEmbedder::kArchitecture);
}

// A whole number from 1 to `most`; `otherwise` where the key is missing (0: it must be there).
Result<size_t> read_size(const gguf::File& file, const char* key, uint64_t most, size_t otherwise) {
  SELM_ASSIGN(const std::optional<uint64_t> value, file.get_uint(key));
  if (!value && otherwise == 0) return error(Code::format, "the key %s is missing", key);
  if (!value) return otherwise;
  if (*value < 1 || *value > most) {
    return gguf::at_byte(Code::format, file.find(key)->offset, "%s is %" PRIu64 ", not 1 to %" PRIu64, key,
                         *value, most);
  }
  return static_cast<size_t>(*value);
}

Result<const gguf::Tensor*> find_rows(const gguf::File& file, uint64_t tokens, uint64_t dimension) {
  for (const gguf::Tensor& tensor : file.tensors()) {
    if (tensor.name == kRowsName) continue;
    return gguf::at_byte(Code::unsupported, tensor.offset, "the tensor %s is not one that an embedder has",
                         gguf::printable(tensor.name).c_str());
  }
  const gguf::Tensor* rows = file.find_tensor(kRowsName);
  if (rows == nullptr) return error(Code::format, "the tensor %s is missing", kRowsName);
  const auto& ne = rows->ne;
  if (ne[0] != dimension || ne[1] != tokens || ne[2] != 1 || ne[3] != 1) {
    return gguf::at_byte(Code::format, rows->offset,
                         "the tensor %s has shape [%" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64
                         "]; %s and the vocabulary ask for [%" PRIu64 ", %" PRIu64 "]",
                         kRowsName, ne[0], ne[1], ne[2], ne[3], kLengthKey, dimension, tokens);
  }
  return rows;
}

}  // namespace

Result<StaticEmbedder> StaticEmbedder::open(const std::string& path) {
  SELM_ASSIGN(gguf::File file, gguf::File::open(path));
  return load(std::move(file));
}

Result<StaticEmbedder> StaticEmbedder::load(gguf::File file) {
  SELM_TRY(check_architecture(file));
  SELM_ASSIGN(const size_t dimension, read_size(file, kLengthKey, kMostDimensions, 0));
  SELM_ASSIGN(const size_t most, read_size(file, kMostKey, kMostCharacters, 100));
  SELM_ASSIGN(text::WordPiece tokenizer, text::WordPiece::load(file, most));
  SELM_ASSIGN(const gguf::Tensor* rows, find_rows(file, tokenizer.vocabulary().size(), dimension));
  const gguf::Tensor found = *rows;
  StaticEmbedder embedder(std::move(file), std::move(tokenizer));
  embedder.rows_ = found.data;
  embedder.type_ = found.type;
  embedder.dimension_ = dimension;
  embedder.row_bytes_ = quant::row_bytes(found.type, dimension);
  return embedder;
}

Result<bool> StaticEmbedder::embed(std::string_view text, std::span<float> vector) const {
  if (vector.size() != dimension_) {
    return error(Code::invalid_argument, "room for %zu numbers; a vector has %zu", vector.size(), dimension_);
  }
  std::vector<double> sum(dimension_, 0.0);
  std::vector<float> row(dimension_);
  std::vector<text::Token> ids;
  for (text::BertWords word = tokenizer_.words(text); word.next(); ids.clear()) {
    tokenizer_.encode(word, ids);
    for (const text::Token id : ids) {
      if (id == tokenizer_.unknown() || id == text::kNoToken) continue;
      quant::dequantize_row(type_, rows_ + static_cast<size_t>(id) * row_bytes_, row.data(), dimension_);
      for (size_t i = 0; i < dimension_; ++i) sum[i] += static_cast<double>(row[i]);
    }
  }
  double square = 0;
  for (const double x : sum) square += x * x;
  if (!std::isfinite(square)) {
    return error(Code::format, "the tensor %s holds numbers that are not finite", kRowsName);
  }
  const double scale = square > 0 ? 1 / std::sqrt(square) : 0;
  std::transform(sum.begin(), sum.end(), vector.begin(),
                 [scale](double x) { return static_cast<float>(x * scale); });
  return square > 0;
}

}  // namespace selm::embedding
