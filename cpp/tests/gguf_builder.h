// Makes GGUF files in memory, good and bad: an independent writer for the tests of everything that
// reads one. Layout after the header comment of ggml/include/gguf.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace selm::test {

// Bytes written one number after another, little-endian.
class Bytes {
 public:
  template <class T>
  Bytes& number(T value) {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
    const auto* raw = reinterpret_cast<const std::byte*>(&value);
    for (size_t i = 0; i < sizeof value; ++i) data_.push_back(raw[i]);  // GCC 12 warns of an insert
    return *this;
  }
  Bytes& text(std::string_view text) {  // without its length
    for (const char c : text) data_.push_back(static_cast<std::byte>(c));
    return *this;
  }
  Bytes& string(std::string_view s) { return number<uint64_t>(s.size()).text(s); }
  Bytes& append(const std::vector<std::byte>& more) {
    data_.insert(data_.end(), more.begin(), more.end());
    return *this;
  }
  Bytes& pad_to(size_t multiple) {
    while (data_.size() % multiple != 0) data_.push_back(std::byte{0});
    return *this;
  }
  size_t size() const { return data_.size(); }
  const std::vector<std::byte>& data() const { return data_; }

 private:
  std::vector<std::byte> data_;
};

// The GGUF value type of a C++ number.
template <class T>
constexpr uint32_t value_type() {
  if constexpr (std::is_same_v<T, uint8_t>)
    return 0;
  else if constexpr (std::is_same_v<T, int8_t>)
    return 1;
  else if constexpr (std::is_same_v<T, uint16_t>)
    return 2;
  else if constexpr (std::is_same_v<T, int16_t>)
    return 3;
  else if constexpr (std::is_same_v<T, uint32_t>)
    return 4;
  else if constexpr (std::is_same_v<T, int32_t>)
    return 5;
  else if constexpr (std::is_same_v<T, float>)
    return 6;
  else if constexpr (std::is_same_v<T, bool>)
    return 7;
  else if constexpr (std::is_same_v<T, uint64_t>)
    return 10;
  else if constexpr (std::is_same_v<T, int64_t>)
    return 11;
  else {
    static_assert(std::is_same_v<T, double>);
    return 12;
  }
}

// What it is not told otherwise it makes right. The public fields overrule single facts, to make
// the bad files. build() may be called again after a change.
class GgufBuilder {
 public:
  std::string magic = "GGUF";
  uint32_t version = 3;
  uint32_t padding = 32;  // of the data section; set together with general.alignment
  std::optional<uint64_t> n_tensors, n_entries;
  bool pad_end = true;

  // One value. Numbers, bool, text.
  template <class T>
  GgufBuilder& set(std::string_view key, T value) {
    Bytes b;
    b.string(key);
    if constexpr (std::is_convertible_v<T, std::string_view>) {
      b.number<uint32_t>(8).string(value);
    } else {
      b.number(value_type<T>());
      put(b, value);
    }
    return entry(b);
  }
  template <class T>
  GgufBuilder& set_array(std::string_view key, const std::vector<T>& values) {
    Bytes b;
    b.string(key).number<uint32_t>(9);
    if constexpr (std::is_convertible_v<T, std::string_view>) {
      b.number<uint32_t>(8).number<uint64_t>(values.size());
      for (const T& s : values) b.string(s);
    } else {
      b.number(value_type<T>()).template number<uint64_t>(values.size());
      for (const T value : values) put(b, value);
    }
    return entry(b);
  }
  // The bytes of one whole key-value pair, right or wrong.
  GgufBuilder& entry(const Bytes& raw) {
    entries_.push_back(raw);
    return *this;
  }

  struct TensorInfo {
    std::string name;
    std::vector<uint64_t> ne;
    uint32_t type = 0;
    std::vector<std::byte> data;
    std::optional<uint64_t> offset;  // instead of the right one
    std::optional<uint32_t> n_dims;  // instead of ne.size()
  };
  GgufBuilder& tensor(TensorInfo info) {
    tensors_.push_back(std::move(info));
    return *this;
  }
  GgufBuilder& tensor(std::string name, std::vector<uint64_t> ne, uint32_t type, size_t bytes) {
    return tensor(TensorInfo{std::move(name), std::move(ne), type, std::vector<std::byte>(bytes), {}, {}});
  }
  GgufBuilder& tensor_f32(std::string name, std::vector<uint64_t> ne, const std::vector<float>& values) {
    Bytes b;
    for (const float v : values) b.number(v);
    return tensor(TensorInfo{std::move(name), std::move(ne), 0, b.data(), {}, {}});
  }
  std::vector<TensorInfo>& tensors() { return tensors_; }

  std::vector<std::byte> build() const {
    Bytes out;
    out.text(magic).number(version);
    out.number<uint64_t>(n_tensors.value_or(tensors_.size()));
    out.number<uint64_t>(n_entries.value_or(entries_.size()));
    for (const Bytes& e : entries_) out.append(e.data());
    uint64_t offset = 0;
    for (const TensorInfo& t : tensors_) {
      out.string(t.name).number<uint32_t>(t.n_dims.value_or(static_cast<uint32_t>(t.ne.size())));
      for (const uint64_t n : t.ne) out.number(n);
      out.number(t.type).number<uint64_t>(t.offset.value_or(offset));
      offset += (t.data.size() + padding - 1) / padding * padding;
    }
    if (tensors_.empty()) return out.data();
    out.pad_to(padding);
    for (size_t i = 0; i < tensors_.size(); ++i) {
      out.append(tensors_[i].data);
      if (pad_end || i + 1 < tensors_.size()) out.pad_to(padding);
    }
    return out.data();
  }

  // To a file; false where it could not be written.
  bool write(const std::string& path) const {
    const std::vector<std::byte> bytes = build();
    std::FILE* file = std::fopen(path.c_str(), "wb");
    if (file == nullptr) return false;
    const bool whole = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
    return (std::fclose(file) == 0) && whole;
  }

 private:
  template <class T>
  static void put(Bytes& b, T value) {
    if constexpr (std::is_same_v<T, bool>) {
      b.number<uint8_t>(value ? 1 : 0);
    } else {
      b.number(value);
    }
  }

  std::vector<Bytes> entries_;
  std::vector<TensorInfo> tensors_;
};

}  // namespace selm::test
